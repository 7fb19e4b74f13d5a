"""A 3D vision transformer (Dosovitskiy et al. 2021) on timm's blocks; fixed sine-cosine positions fit any view size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lejepa_med.backbones.convolution import keep_tiny_maps_in_float32
from lejepa_med.backbones.protocol import Backbone
from lejepa_med.backbones.staged import refuse_sides
from lejepa_med.config import ModelConfig


@dataclass(frozen=True)
class VitSize:
    """Dimension, depth, heads and hidden width of the MLPs."""

    dim: int
    depth: int
    heads: int
    hidden: int

    def num_parameters(self, in_channels: int, patch_size: tuple[int, int, int], registers: int) -> int:
        """Of the whole network, counted on paper: embedding, class and register tokens, blocks, last norm."""
        dim, hidden = self.dim, self.hidden
        patch = in_channels * patch_size[0] * patch_size[1] * patch_size[2]
        attention = (3 * dim * dim + 3 * dim) + (dim * dim + dim)
        mlp = (dim * hidden + hidden) + (hidden * dim + dim)
        norms = 2 * 2 * dim
        return (patch + 1) * dim + (1 + registers) * dim + self.depth * (attention + mlp + norms) + 2 * dim


SIZES = {
    "tiny": VitSize(192, 12, 3, 768),
    "small": VitSize(384, 12, 6, 1536),
    "base": VitSize(768, 12, 12, 3072),
    "large": VitSize(1024, 24, 16, 4096),
    "huge": VitSize(1280, 32, 16, 5120),
    "giant": VitSize(1408, 40, 16, 6144),
    "gigantic": VitSize(1664, 48, 16, 8192),
}
"""As in 2D: Touvron et al. 2021 (tiny, small), Dosovitskiy et al. 2021 (to huge), Zhai et al. 2022 (g and G)."""


class ViT3d(Backbone):
    """Patches of any three sides, one class token, LayerNorm at the end. The embedding is the class token.

    `registers` tokens more (Darcet et al. 2024) stand behind the class token and are in no output.
    """

    def __init__(self, size: str, config: ModelConfig) -> None:
        super().__init__()
        shape, patch = SIZES[size], config.patch_size
        self.patch_size = (patch, patch, patch) if isinstance(patch, int) else patch
        self.embed = nn.Conv3d(config.in_channels, shape.dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, shape.dim) * 0.02)
        if config.registers:
            self.register_tokens = nn.Parameter(torch.randn(1, config.registers, shape.dim) * 0.02)
        self.blocks = nn.ModuleList(
            # half a unit more, since timm rounds down
            Block(shape.dim, shape.heads, mlp_ratio=(shape.hidden + 0.5) / shape.dim, qkv_bias=True)
            for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.dim, eps=1e-6)
        self.dim = self.token_dim = shape.dim
        self.spatial_dims, self.in_channels = 3, config.in_channels
        self.num_prefix_tokens = 1 + config.registers
        keep_tiny_maps_in_float32(self)

    def _run(
        self, images: Float[Tensor, "batch channel *spatial"], last: int
    ) -> tuple[list[Float[Tensor, "batch token dim"]], tuple[int, ...]]:
        """Normalised outputs of the last blocks, class and register tokens first, and the grid of patches."""
        refuse_sides(type(self).__name__, tuple(images.shape[2:]), min(self.patch_size), self.patch_size)
        patches = self.embed(images)
        grid = tuple(patches.shape[2:])
        positions = sine_cosine_positions(grid, self.dim).to(patches)
        x = patches.flatten(2).transpose(1, 2) + positions
        prefix = [self.class_token, self.register_tokens] if self.num_prefix_tokens > 1 else [self.class_token]
        x = torch.cat([*(tokens.expand(x.shape[0], -1, -1).to(x) for tokens in prefix), x], dim=1)
        outputs = []
        for depth, block in enumerate(self.blocks):
            x = block(x)
            if depth >= len(self.blocks) - last:
                outputs.append(self.norm(x))
        return outputs, grid

    def forward(self, images: Float[Tensor, "batch channel *spatial"]) -> Float[Tensor, "batch dim"]:
        return self._run(images, 1)[0][-1][:, 0]

    def tokens(
        self, images: Float[Tensor, "batch channel *spatial"]
    ) -> tuple[Float[Tensor, "batch token token_dim"], tuple[int, ...]]:
        outputs, grid = self._run(images, 1)
        return outputs[-1][:, self.num_prefix_tokens :], grid

    def intermediate(
        self, images: Float[Tensor, "batch channel *spatial"], last: int = 2
    ) -> list[Float[Tensor, "batch _"]]:
        outputs, _ = self._run(images, last)
        return [torch.cat([x[:, 0], x[:, self.num_prefix_tokens :].mean(1)], dim=-1) for x in outputs]


def sine_cosine_positions(grid: tuple[int, ...], dim: int) -> Float[Tensor, "token dim"]:
    """Sines and cosines of the centred patch coordinates, `dim // 6` frequencies per axis (Vaswani et al. 2017)."""
    frequencies = 10000.0 ** -(torch.arange(dim // (2 * len(grid))) / (dim // (2 * len(grid))))
    axes = [torch.arange(side) - (side - 1) / 2 for side in grid]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(grid))
    angles = (coordinates[:, :, None] * frequencies).flatten(1)
    encoded = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return nn.functional.pad(encoded, (0, dim - encoded.shape[-1]))
