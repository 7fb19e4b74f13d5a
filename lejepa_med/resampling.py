"""Antialiased resampling of axis-aligned boxes: one small matrix per axis, for a whole batch at once.

A box is `(start, length)` along each axis, in source voxels, measured from the outer edge of voxel 0. Each output voxel
is a triangle-filtered mean whose half-width is the larger of one source voxel and one output voxel times `blur`, so a
shrunk image shows no aliasing and an enlarged one is linear interpolation (as in Pillow's BILINEAR). Sampled at few
source voxels, a triangle's centre of gravity is up to 0.086 of them off its centre (at pitches from 1 to 3); its two
sides are weighed so that it is not, and a ramp stays the ramp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def fitting(sides: Sequence[int], spacing: Sequence[float], longest: int) -> tuple[int, ...]:
    """The size in true proportions, voxel for voxel as long as `spacing` says, whose longest side is `longest`."""
    lengths = [count * step for count, step in zip(sides, spacing, strict=True)]
    return tuple(max(1, round(longest * length / max(lengths))) for length in lengths)


def axis_weights(
    start: Float[Tensor, "*batch"],
    length: Float[Tensor, "*batch"],
    in_size: int,
    out_size: int,
    blur: Float[Tensor, "*batch"] | float = 1.0,
) -> Float[Tensor, "*batch out in"]:
    """Matrices that resample boxes along one axis; a negative `length` runs backwards from `start` (a flip).

    Each weight is (1 - |d| / half) (1 + tilt d) at the distance d from the centre, of which the second factor lies
    between 0.5 and 1.6. Weights outside the source are left out and the rest renormalised.
    """
    device = start.device
    pitch = length / out_size
    centre = start[..., None] + (torch.arange(out_size, device=device) + 0.5) * pitch[..., None] - 0.5
    half = (pitch.abs() * blur).clamp(min=1.0)[..., None]
    centre = centre.clamp(0, in_size - 1)
    offset = torch.arange(in_size, device=device) - centre[..., None]
    weights = (1 - offset.abs() / half[..., None]).clamp(min=0) * (1 + _tilt(centre, half)[..., None] * offset)
    return weights / weights.sum(-1, keepdim=True)


def _tilt(centre: Float[Tensor, "*batch out"], half: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch out"]:
    """Minus the first moment of the sampled triangle / its second, both about its centre, in closed form.

    As if there were voxels beyond the edges: what is cut off there must not be made up for.
    """
    right = centre.ceil() - centre
    first, second = torch.zeros_like(centre), torch.zeros_like(centre)
    for sign, nearest in ((-1.0, 1 - right), (1.0, right)):  # voxels at nearest, nearest + 1, ... on either side
        count = (half - nearest).floor() + 1
        pairs = count * (count - 1) / 2
        squares = pairs * (2 * count - 1) / 3
        sum_1 = count * nearest + pairs
        sum_2 = count * nearest**2 + 2 * nearest * pairs + squares
        sum_3 = count * nearest**3 + 3 * nearest**2 * pairs + 3 * nearest * squares + pairs**2
        first += sign * (sum_1 - sum_2 / half)
        second += sum_2 - sum_3 / half
    return torch.where(half > 1, -first / second.clamp(min=1e-6), 0.0)  # interpolation is exact as it is


def resample(
    images: Float[Tensor, "batch channel *spatial"], weights: Sequence[Float[Tensor, "batch view _ _"]]
) -> Float[Tensor, "batch view channel *size"]:
    """Several views of every image, by the matrices `[.., out, in]` of `axis_weights`, one per spatial axis."""
    batch, channels, *spatial = images.shape
    views, axes = weights[0].shape[1], len(spatial)
    first = weights[0].flatten(1, 2)  # all views in one product: the source is read once
    source = images.transpose(1, 2).reshape(batch, spatial[0], -1)
    out = first[0] @ source[0] if batch == 1 else first @ source
    out = out.reshape(batch, views, weights[0].shape[2], channels, *spatial[1:])
    for axis in reversed(range(1, axes)):  # the last axis before the middle one: no copies
        before, after = math.prod(out.shape[2 : 3 + axis]), math.prod(out.shape[4 + axis :])
        shape = (*out.shape[: 3 + axis], weights[axis].shape[2], *out.shape[4 + axis :])
        if after == 1:
            out = out.reshape(batch, views, before, -1) @ weights[axis].transpose(-1, -2)
        else:
            out = weights[axis].unsqueeze(2) @ out.reshape(batch, views, before, -1, after)
        out = out.reshape(shape)
    return out.transpose(2, 3).contiguous()


def resize(image: Float[Tensor, " channel *spatial"], size: Sequence[int]) -> Float[Tensor, " channel *out"]:
    """A whole image at another size."""
    weights = []
    for in_size, out_size in zip(image.shape[1:], size, strict=True):
        start, length = torch.zeros(1, 1), torch.full((1, 1), float(in_size))
        weights.append(axis_weights(start.to(image.device), length.to(image.device), in_size, out_size))
    return resample(image[None], weights)[0, 0]
