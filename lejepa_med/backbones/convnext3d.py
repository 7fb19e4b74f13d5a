"""ConvNeXt (Liu et al. 2022, https://arxiv.org/abs/2201.03545) in 3D, with the names of timm's 2D networks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.config import ModelConfig
from lejepa_med.errors import ConfigError

DEPTHS = {"tiny": (3, 3, 9, 3), "small": (3, 3, 27, 3)}
_DIMS = (96, 192, 384, 768)


class ConvNeXt3d(StagedBackbone):
    """Depthwise 7 x 7 x 7, LayerNorm, four times wider and back; LayerNorm on the last map."""

    stage_pattern = r"net\.stages\.(\d)\."
    stride = smallest = 32

    def __init__(self, size: str, config: ModelConfig) -> None:
        super().__init__()
        dims = [int(dim * config.width) for dim in _DIMS]
        if dims[0] < 1:
            raise ConfigError(f"model.width {config.width:g}: nothing is left of the 96 channels of convnext_{size}_3d")
        stages = nn.ModuleList()
        for number, (depth, dim) in enumerate(zip(DEPTHS[size], dims, strict=True)):
            stages.append(Stage(dims[number - 1] if number else None, dim, depth))
        stem = nn.Sequential(nn.Conv3d(config.in_channels, dims[0], 4, 4), ChannelNorm(dims[0]))
        self.net = nn.ModuleDict({"stem": stem, "stages": stages, "norm": ChannelNorm(dims[-1])})
        for module in self.net.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self._finish(config.in_channels, dims[-1], config.norm)

    def _stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        x, maps = self.net["stem"](images), []
        stages = self.net["stages"]
        assert isinstance(stages, nn.ModuleList)
        for stage in stages:
            x = stage(x)
            maps.append(x)
        return [*maps[:-1], self.net["norm"](x)]


class Stage(nn.Module):
    """Halves the resolution, except in the first stage, then `depth` blocks."""

    def __init__(self, before: int | None, dim: int, depth: int) -> None:
        super().__init__()
        self.downsample = (
            nn.Identity() if before is None else nn.Sequential(ChannelNorm(before), nn.Conv3d(before, dim, 2, 2))
        )
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        blocks: Tensor = self.blocks(self.downsample(x))
        return blocks


class Block(nn.Module):
    """x + gamma * MLP(LayerNorm(depthwise(x))), gamma 1e-6 at the start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv3d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.conv_dw(x).movedim(1, -1))
        hidden = self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](hidden)))
        out: Tensor = x + (self.gamma * hidden).movedim(-1, 1)
        return out


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of `[batch, channel, *spatial]`."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)
