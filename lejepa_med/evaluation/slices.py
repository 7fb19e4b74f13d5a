"""A 2D network on volumes: non-empty slices of three planes, by the statistics that the network was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lejepa_med.backbones import Backbone, build
from lejepa_med.config import ModelConfig
from lejepa_med.config.evaluation import Timm2dEncoder
from lejepa_med.data.cache import CachedVolume
from lejepa_med.data.inference import centred, to_unit
from lejepa_med.resampling import resize
from lejepa_med.weights import load_dinov2

_PLANE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
_EMPTY_BELOW = 0.01
_SLICES_PER_PASS = 32
LAYERS = 2
"""Last blocks whose class token and mean patch are used, as for every other encoder."""


def load_timm2d(config: Timm2dEncoder) -> Backbone:
    """The network with the weights at `config.weights`, loaded strictly. Raises WeightsError if they do not fit."""
    assert config.weights is not None
    backbone = build(ModelConfig(name=f"timm/{config.model}", in_channels=3))
    load_dinov2(backbone, config.weights)
    return backbone.eval()


def plane_slices(volume: CachedVolume, config: Timm2dEncoder) -> list[Float[Tensor, "slice 1 side side"]]:
    """Per plane the non-empty slices, evenly spaced, in true proportions on a square of air; 2D images: themselves."""
    image = to_unit(volume.array, volume.modality, config.ct_window_hu)[0]
    if image.ndim == 2:
        return [_squared(image[None], (1.0, 1.0), config.image_size)]
    spacing = volume.spacing_mm or (1.0, 1.0, 1.0)
    stacks = []
    for plane in config.planes:
        axis = _PLANE_AXES[plane]
        stack = image.movedim(axis, 0)
        filled = torch.flatten(stack, 1).mean(1) > _EMPTY_BELOW
        rows = torch.nonzero(filled)[:, 0] if bool(filled.any()) else torch.arange(len(stack))
        if config.slices is not None and len(rows) > config.slices:
            rows = rows[torch.linspace(0, len(rows) - 1, config.slices).round().to(torch.int64)]
        within = tuple(side for number, side in enumerate(spacing) if number != axis)
        stacks.append(_squared(stack[rows], within, config.image_size))
    return stacks


def _squared(
    stack: Float[Tensor, "slice row column"], spacing: tuple[float, ...], side: int
) -> Float[Tensor, "slice 1 side side"]:
    millimetres = [count * step for count, step in zip(stack.shape[1:], spacing, strict=True)]
    size = tuple(max(1, round(side * length / max(millimetres))) for length in millimetres)
    return centred(resize(stack, size), (side, side))[:, None]


@torch.no_grad()
def slice_features(
    backbone: Backbone,
    volumes: Iterable[CachedVolume],
    config: Timm2dEncoder,
    device: torch.device,
    bf16: bool,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Mean and maximum over the slices of each plane, concatenated: `[volume, feature]`."""
    backbone = backbone.to(device).eval()
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in _statistics(backbone))
    rows = []
    for volume in volumes:
        parts = []
        for stack in plane_slices(volume, config):
            features = []
            for piece in torch.split(stack, _SLICES_PER_PASS):
                colour = (piece.to(device).expand(-1, 3, -1, -1) - mean) / std
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    layers = backbone.intermediate(colour, last=LAYERS)
                features.append(torch.cat([layer.float() for layer in layers], dim=-1))
            found = torch.cat(features)
            parts += [found.mean(0), found.amax(0)]
        rows.append(torch.cat(parts).cpu())
        if progress is not None:
            progress(len(rows))
    return torch.stack(rows).numpy()


def _statistics(backbone: Backbone) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and standard deviations of the network's training images (DINOv2: ImageNet's)."""
    described = backbone.net.pretrained_cfg  # type: ignore[union-attr]
    return tuple(described["mean"]), tuple(described["std"])  # type: ignore[index]
