"""What turns a backbone's feature maps into a class per voxel: a linear map, or a small decoder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.convolution import keep_tiny_maps_in_float32
from lejepa_med.config.segmentation import SegmentationRecipe

_GROUPS = 4
_MODES = {2: "bilinear", 3: "trilinear"}


class LinearHead(nn.Module):
    """Standardised tokens of the deepest map, a linear layer, enlarged to the window."""

    def __init__(self, channels: Sequence[int], outputs: int, spatial_dims: int) -> None:
        super().__init__()
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[spatial_dims - 2]
        convolution = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        self.norm = norm(channels[-1], affine=False)
        self.linear = convolution(channels[-1], outputs, 1)

    def forward(
        self, maps: list[Float[Tensor, "batch _ *_grid"]], size: tuple[int, ...]
    ) -> Float[Tensor, "batch output *size"]:
        return _enlarged(self.linear(self.norm(maps[-1].float())), size)


class DecoderHead(nn.Module):
    """From the deepest map up: each enlarged to the next and added to it, one 3-wide convolution at every resolution.

    The last convolution works at half of the window's resolution, or at that of the finest map if that is finer.
    """

    def __init__(self, channels: Sequence[int], outputs: int, spatial_dims: int, width: int) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        self.lateral = nn.ModuleList([_block(spatial_dims, size, width, 1) for size in channels])
        self.smooth = nn.ModuleList([_block(spatial_dims, width, width, 3) for _ in channels])
        self.fine = _block(spatial_dims, width, width, 3)
        self.output = convolution(width, outputs, 1)

    def forward(
        self, maps: list[Float[Tensor, "batch _ *_grid"]], size: tuple[int, ...]
    ) -> Float[Tensor, "batch output *size"]:
        x: Tensor | None = None
        for features, lateral, smooth in zip(
            maps[::-1], list(self.lateral)[::-1], list(self.smooth)[::-1], strict=True
        ):
            y = lateral(features)
            x = smooth(y if x is None else y + _enlarged(x, tuple(y.shape[2:])))
        assert x is not None
        finer = tuple(max(have, side // 2) for have, side in zip(x.shape[2:], size, strict=True))
        return _enlarged(self.output(self.fine(_enlarged(x, finer))), size)


class Segmenter(nn.Module):
    """A backbone and a head; a frozen backbone stays in evaluation mode and gets no gradient."""

    def __init__(
        self, backbone: Backbone, outputs: int, method: Literal["linear", "decoder"], recipe: SegmentationRecipe
    ) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, not recipe.finetune_backbone
        channels = _channels(backbone)
        self.head: nn.Module
        if method == "linear":
            self.head = LinearHead(channels, outputs, backbone.spatial_dims)
        else:
            self.head = DecoderHead(channels, outputs, backbone.spatial_dims, recipe.decoder_channels)
        keep_tiny_maps_in_float32(self.head)

    def train(self, mode: bool = True) -> Segmenter:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch output *size"]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.backbone.feature_maps(images)
        outputs: Tensor = self.head(maps, tuple(images.shape[2:]))
        return outputs


@torch.no_grad()
def _channels(backbone: Backbone) -> list[int]:
    """Channels of every map, by one pass over an empty window."""
    assert backbone.spec is not None
    training = backbone.training
    parameter = next(itertools.chain(backbone.parameters(), backbone.buffers()), torch.zeros(1))
    window = torch.zeros(1, backbone.in_channels, *backbone.spec.inference.window, device=parameter.device)
    found = [features.shape[1] for features in backbone.eval().feature_maps(window)]
    backbone.train(training)
    return found


def _block(spatial_dims: int, channels: int, width: int, side: int) -> nn.Sequential:
    convolution = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
    return nn.Sequential(
        convolution(channels, width, side, padding=side // 2, bias=False), nn.GroupNorm(_GROUPS, width), nn.GELU()
    )


def _enlarged(x: Float[Tensor, "batch channel *grid"], size: tuple[int, ...]) -> Float[Tensor, "batch channel *size"]:
    if tuple(x.shape[2:]) == size:
        return x
    return functional.interpolate(x, size=size, mode=_MODES[len(size)], align_corners=False)
