"""A 3D vision transformer (Dosovitskiy et al. 2021) on timm's blocks; fixed sine-cosine positions fit any view size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lejepa_med.backbones.protocol import Backbone

SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Name to (dimension, depth, heads), as in 2D."""


class ViT3d(Backbone):
    """Cubic patches, one class token, LayerNorm at the end. The embedding is the class token."""

    def __init__(self, size: str, in_channels: int, patch_size: int) -> None:
        super().__init__()
        dim, depth, heads = SIZES[size]
        self.patch_size = patch_size
        self.embed = nn.Conv3d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.dim = self.token_dim = dim
        self.spatial_dims, self.in_channels = 3, in_channels

    def _run(
        self, images: Float[Tensor, "batch channel *spatial"], last: int
    ) -> tuple[list[Float[Tensor, "batch token dim"]], tuple[int, ...]]:
        """Normalised outputs of the last blocks, class token first, and the grid of patches."""
        patches = self.embed(images)
        grid = tuple(patches.shape[2:])
        positions = sine_cosine_positions(grid, self.dim).to(patches)
        x = patches.flatten(2).transpose(1, 2) + positions
        x = torch.cat([self.class_token.expand(len(x), -1, -1).to(x), x], dim=1)
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
        return outputs[-1][:, 1:], grid

    def intermediate(
        self, images: Float[Tensor, "batch channel *spatial"], last: int = 2
    ) -> list[Float[Tensor, "batch _"]]:
        outputs, _ = self._run(images, last)
        return [torch.cat([x[:, 0], x[:, 1:].mean(1)], dim=-1) for x in outputs]


def sine_cosine_positions(grid: tuple[int, ...], dim: int) -> Float[Tensor, "token dim"]:
    """Sines and cosines of the centred patch coordinates, `dim // 6` frequencies per axis (Vaswani et al. 2017)."""
    frequencies = 10000.0 ** -(torch.arange(dim // (2 * len(grid))) / (dim // (2 * len(grid))))
    axes = [torch.arange(side) - (side - 1) / 2 for side in grid]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(grid))
    angles = (coordinates[:, :, None] * frequencies).flatten(1)
    encoded = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return nn.functional.pad(encoded, (0, dim - encoded.shape[-1]))
