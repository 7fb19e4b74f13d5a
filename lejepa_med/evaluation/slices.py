"""A 2D network on volumes: non-empty slices of some planes, by the statistics that the network was trained with.

Slices become one row by mean, maximum, both, or Raptor's random projection (An et al. 2025): patch tokens averaged over
the slices of a plane, each projected by one Gaussian matrix with entries of variance 1 / `random_dim`, concatenated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lejepa_med.backbones import build
from lejepa_med.backbones.timm2d import Timm2d
from lejepa_med.config import ModelConfig
from lejepa_med.config.evaluation import Timm2dEncoder
from lejepa_med.data.cache import CachedVolume
from lejepa_med.data.inference import centred, to_unit
from lejepa_med.evaluation.volume_store import Arrays, Parts
from lejepa_med.randomness import generator
from lejepa_med.resampling import fitting, resize
from lejepa_med.weights import load_dinov2

_PLANE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
_EMPTY_BELOW = 0.01
_SLICES_PER_PASS = {"cpu": 32, "cuda": 256}
LAYERS = 2
"""Last blocks whose class token and mean patch are used, as for every other encoder."""
Stack = Float[Tensor, "_ 1 side side"]


def load_timm2d(config: Timm2dEncoder) -> Timm2d:
    """The network with the weights at `config.weights`, loaded strictly. Raises WeightsError if they do not fit."""
    assert config.weights is not None
    backbone = build(ModelConfig(name=f"timm/{config.model}", in_channels=3, positions=config.positions))
    assert isinstance(backbone, Timm2d)
    load_dinov2(backbone, config.weights)
    return backbone.eval()


def plane_slices(volume: CachedVolume, config: Timm2dEncoder, device: torch.device | None = None) -> list[Stack]:
    """Per plane the non-empty slices, evenly spaced, in true proportions on a square of air; 2D images: themselves."""
    image = to_unit(volume.array, volume.modality, config.used_window_hu)[0].to(device or torch.device("cpu"))
    if image.ndim == 2:
        return [_squared(image[None], (1.0, 1.0), config.image_size)]
    spacing = volume.spacing_mm or (1.0, 1.0, 1.0)
    stacks = []
    for plane in config.used_planes:
        axis = _PLANE_AXES[plane]
        stack = image.movedim(axis, 0)
        filled = (torch.flatten(stack, 1).mean(1) > _EMPTY_BELOW).cpu()
        rows = torch.nonzero(filled)[:, 0] if bool(filled.any()) else torch.arange(len(stack))
        rows = rows[evenly(len(rows), config.most_slices)]
        within = tuple(side for number, side in enumerate(spacing) if number != axis)
        stacks.append(_squared(stack[rows.to(stack.device)], within, config.image_size))
    return stacks


def evenly(count: int, most: int | None) -> Int[Tensor, " chosen"]:
    """At most so many of `count` places, evenly spaced from the first to the last."""
    if most is None or count <= most:
        return torch.arange(count)
    return torch.linspace(0, count - 1, most).round().to(torch.int64)


def _squared(
    stack: Float[Tensor, "slice row column"], spacing: tuple[float, ...], side: int
) -> Float[Tensor, "slice 1 side side"]:
    return centred(resize(stack, fitting(tuple(stack.shape[1:]), spacing, side)), (side, side))[:, None]


def raptor_projection(token_dim: int, config: Timm2dEncoder) -> Float[Tensor, "token_dim random_dim"]:
    """Gaussian entries of variance 1 / random_dim, a function of the seed alone."""
    drawn = torch.randn(token_dim, config.random_dim, generator=generator("raptor", config.random_seed))
    return drawn / math.sqrt(config.random_dim)


def slice_features(
    backbone: Timm2d,
    volumes: Iterable[CachedVolume],
    config: Timm2dEncoder,
    device: torch.device,
    bf16: bool,
    most_tokens: int | None = None,
) -> Iterator[Parts]:
    """Per volume `pooled`: mean and maximum over the slices, [plane, feature], and what Raptor's projection gives.

    With `most_tokens` also `tokens`: class token and mean patch of so many slices at most, in half precision. Slices
    of several volumes share a pass.
    """
    backbone = backbone.to(device).eval()
    projection = raptor_projection(backbone.token_dim, config).to(device) if "random" in config.aggregations else None
    per_pass = _SLICES_PER_PASS.get(device.type, _SLICES_PER_PASS["cpu"])
    for group in _groups(volumes, config, device, per_pass):
        stacks = [stack for planes in group for stack in planes]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            rows, projected = _run(backbone, stacks, projection, per_pass)
        by_stack = torch.split(rows, [len(stack) for stack in stacks])
        start = 0
        for planes in group:
            mine = slice(start, start + len(planes))
            pooled: Arrays = {
                "mean": torch.stack([found.mean(0) for found in by_stack[mine]]).cpu().numpy(),
                "max": torch.stack([found.amax(0) for found in by_stack[mine]]).cpu().numpy(),
            }
            if projected is not None:
                pooled["random"] = projected[mine].flatten(1).cpu().numpy()
            parts = {"pooled": pooled}
            if most_tokens is not None:
                last = torch.cat(by_stack[mine])[:, -rows.shape[1] // LAYERS :].cpu()
                tokens = last[evenly(len(last), most_tokens)].to(torch.float16)
                parts["tokens"] = {"tokens": tokens.numpy()}
            yield parts
            start = mine.stop


def _groups(
    volumes: Iterable[CachedVolume], config: Timm2dEncoder, device: torch.device, per_pass: int
) -> Iterator[list[list[Stack]]]:
    """Slices of consecutive volumes, `[volume][plane]`, until they fill a pass."""
    group: list[list[Stack]] = []
    for volume in volumes:
        group.append(plane_slices(volume, config, device))
        if sum(len(stack) for planes in group for stack in planes) >= per_pass:
            yield group
            group = []
    if group:
        yield group


@torch.no_grad()
def _run(
    backbone: Timm2d, stacks: Sequence[Stack], projection: Tensor | None, per_pass: int
) -> tuple[Float[Tensor, "slice feature"], Float[Tensor, "stack patch random_dim"] | None]:
    """Features of every slice, and the mean over the slices of a stack of its projected patch tokens."""
    counts = torch.tensor([len(stack) for stack in stacks])
    stack_of = torch.repeat_interleave(torch.arange(len(stacks)), counts).to(stacks[0].device)
    rows, projected = [], None
    pieces = zip(torch.split(torch.cat(list(stacks)), per_pass), torch.split(stack_of, per_pass), strict=True)
    for images, owner in pieces:
        pooled, tokens = backbone.pooled_and_tokens(colour_input(backbone, images), last=LAYERS)
        rows.append(torch.cat([layer.float() for layer in pooled], dim=-1))
        if projection is not None:
            with torch.autocast(images.device.type, enabled=False):
                small = tokens.float() @ projection
            if projected is None:
                projected = small.new_zeros(len(stacks), *small.shape[1:])
            projected.index_add_(0, owner, small)
    if projected is not None:
        projected = projected / counts.to(projected.device)[:, None, None]
    return torch.cat(rows), projected


def colour_input(backbone: Timm2d, images: Float[Tensor, "slice 1 row column"]) -> Float[Tensor, "slice 3 row column"]:
    """Grey three times, by the channel statistics of the network's training images (DINOv2: ImageNet's)."""
    described = backbone.net.pretrained_cfg
    mean, std = (torch.tensor(described[name], device=images.device)[:, None, None] for name in ("mean", "std"))
    return (images.expand(-1, 3, -1, -1) - mean) / std


def aggregated(pooled: Sequence[Arrays], config: Timm2dEncoder) -> dict[str, NDArray[np.float32]]:
    """One row per volume for each of the aggregations asked for.

    Where all stacks are single slices, as 2D images are, mean and maximum are the same, and neither is given twice.
    """
    mean, most = (np.stack([found[name] for found in pooled]) for name in ("mean", "max"))
    rows = {"mean": mean, "max": most, "mean_max": np.stack([mean, most], axis=2)}
    names = list(config.aggregations)
    if np.array_equal(mean, most):
        rows = {"mean_max": mean, "mean": mean, "max": mean}
        names = [name for place, name in enumerate(names) if name == "random" or place == _first_not_random(names)]
    if "random" in names:
        rows["random"] = np.stack([found["random"] for found in pooled])
    return {name: rows[name].reshape(len(pooled), -1).astype(np.float32) for name in names}


def _first_not_random(names: Sequence[str]) -> int:
    return next((place for place, name in enumerate(names) if name != "random"), -1)
