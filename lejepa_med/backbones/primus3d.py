"""Primus (Wald et al. 2025, https://arxiv.org/abs/2503.01835), nnU-Net's and OpenMind's transformer, on timm's blocks.

Names are those of `dynamic_network_architectures` (Apache-2.0), of which nnU-Net builds it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from timm.layers import RotaryEmbeddingCat
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from lejepa_med.backbones.convolution import keep_tiny_maps_in_float32
from lejepa_med.backbones.protocol import Backbone
from lejepa_med.backbones.staged import refuse_sides
from lejepa_med.config import ModelConfig

REFERENCE_GRID = (20, 20, 20)
"""Patches that learnt positions are stored for: OpenMind's volumes of 160 x 160 x 160 voxels in patches of 8."""


class PrimusSize(NamedTuple):
    """Dimension, depth and heads."""

    dim: int
    depth: int
    heads: int


SIZES = {
    "s": PrimusSize(396, 12, 6),
    "b": PrimusSize(792, 12, 12),
    "m": PrimusSize(864, 16, 12),
    "l": PrimusSize(1056, 24, 16),
}


class Primus3d(Backbone):
    """Patches, learnt and rotary positions, SwiGLU, LayerScale .1; the embedding is the mean of the patch tokens.

    Learnt positions are interpolated trilinearly to the grid of a view. Rotary positions count patches, so that the
    distance of two patches reads the same in every view. At `REFERENCE_GRID` both are nnU-Net's own.
    """

    def __init__(self, size: str, config: ModelConfig) -> None:
        super().__init__()
        dim, depth, heads = SIZES[size]
        patch = config.patch_size
        self.patch_size = (patch, patch, patch) if isinstance(patch, int) else patch
        proj = nn.Conv3d(config.in_channels, dim, kernel_size=self.patch_size, stride=self.patch_size)
        nn.init.kaiming_normal_(proj.weight, a=1e-2)
        assert proj.bias is not None
        nn.init.zeros_(proj.bias)
        self.down_projection = nn.ModuleDict({"proj": proj})
        self.eva = _Eva(dim, depth, heads)
        self.dim = self.token_dim = dim
        self.spatial_dims, self.in_channels = 3, config.in_channels
        keep_tiny_maps_in_float32(self)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's, from the input on."""
        return self.eva.blocks

    def _run(
        self, images: Float[Tensor, "batch channel *spatial"], last: int
    ) -> tuple[list[Float[Tensor, "batch token dim"]], tuple[int, ...]]:
        refuse_sides(type(self).__name__, tuple(images.shape[2:]), min(self.patch_size), self.patch_size)
        patches = self.down_projection["proj"](images)
        return self.eva(patches, last), tuple(patches.shape[2:])

    def forward(self, images: Float[Tensor, "batch channel *spatial"]) -> Float[Tensor, "batch dim"]:
        return self._run(images, 1)[0][-1].mean(1)

    def tokens(
        self, images: Float[Tensor, "batch channel *spatial"]
    ) -> tuple[Float[Tensor, "batch token token_dim"], tuple[int, ...]]:
        outputs, grid = self._run(images, 1)
        return outputs[-1], grid

    def intermediate(
        self, images: Float[Tensor, "batch channel *spatial"], last: int = 2
    ) -> list[Float[Tensor, "batch _"]]:
        return [output.mean(1) for output in self._run(images, last)[0]]

    def nnunet_state_dict(self) -> dict[str, Tensor]:
        """The weights by the names of nnU-Net's network, but its decoder `up_projection`, which we do not have."""
        return {**self.state_dict(), "mask_token": torch.zeros(1, 1, self.dim)}


class _Eva(nn.Module):
    """The blocks with their positions."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        count = REFERENCE_GRID[0] * REFERENCE_GRID[1] * REFERENCE_GRID[2]
        self.pos_embed = nn.Parameter(torch.empty(1, count, dim))
        self.blocks = nn.ModuleList(
            EvaBlock(
                dim,
                heads,
                qkv_fused=False,
                mlp_ratio=4 * 2 / 3,
                swiglu_mlp=True,
                scale_mlp=True,
                scale_attn_inner=True,
                num_prefix_tokens=0,
                init_values=0.1,
                norm_layer=nn.LayerNorm,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        # three axes share the channels of a head; without a shape, angles are computed for the grid that is asked for
        self.rope = RotaryEmbeddingCat(round(dim / heads / 1.5), in_pixels=False)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normals of .02, residual branches shrunk with depth, as in EVA (Fang et al. 2023)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                assert isinstance(block, EvaBlock)
                for layer in (block.attn.proj, block.mlp.fc2):
                    layer.weight /= (2 * number) ** 0.5

    def forward(self, patches: Float[Tensor, "batch dim *grid"], last: int) -> list[Float[Tensor, "batch token dim"]]:
        """Normalised outputs of the last blocks."""
        grid = tuple(patches.shape[2:])
        x = patches.flatten(2).transpose(1, 2) + self.positions(grid).to(patches)
        angles = self.rope.get_embed(shape=list(grid)).to(x)
        outputs = []
        for depth, block in enumerate(self.blocks):
            x = block(x, rope=angles)
            if depth >= len(self.blocks) - last:
                outputs.append(self.norm(x))
        return outputs

    def positions(self, grid: tuple[int, ...]) -> Float[Tensor, "1 token dim"]:
        """Learnt positions of a grid of patches."""
        if grid == REFERENCE_GRID:
            return self.pos_embed
        learnt = self.pos_embed.float().transpose(1, 2).reshape(1, -1, *REFERENCE_GRID)
        return nn.functional.interpolate(learnt, grid, mode="trilinear").flatten(2).transpose(1, 2)
