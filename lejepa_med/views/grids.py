"""From boxes to voxels: where each view samples its base crop, and how much it averages there.

A view along the axes is resampled in one step. A tilted one takes two: the region that it covers is resampled along the
axes, antialiased for the view's pitch but on a finer grid (or its own voxels, if the view does not shrink them), and
this grid is interpolated linearly. docs/design/views.md has the measurements behind the two constants.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import grid_sample

from lejepa_med.resampling import axis_weights, resample
from lejepa_med.views.geometry import Boxes

FINER = 0.7
"""Pitch of the grid of a tilted view / pitch of the view."""
FILTER = 0.9
"""Half-width of the filter of that grid / pitch of the view."""


@dataclass(frozen=True)
class Grids:
    """Per view a grid along the axes, and for tilted views the matrix from view voxels to source voxels.

    Grid voxel i is centred at start + (i + 1/2) pitch, in source voxels from the outer edge of voxel 0.
    """

    start: Float[Tensor, "N V A"]
    pitch: Float[Tensor, "N V A"]
    half: Float[Tensor, "N V A"]
    count: Int[Tensor, "N V A"]
    origin: Float[Tensor, "N V A"]
    matrix: Float[Tensor, "N V A A"]
    edge: Float[Tensor, "N V A"]
    tilted: Bool[Tensor, "N V"]

    def rows(self, chosen: slice) -> Grids:
        """The same for some samples."""
        return Grids(*(getattr(self, field.name)[chosen] for field in fields(self)))


def lay_grids(boxes: Boxes, in_size: tuple[int, ...], out_size: tuple[int, ...]) -> Grids:
    """Grids of all views of `out_size` voxels in base crops of `in_size`."""
    out, base = (torch.tensor(size, dtype=torch.float64) for size in (out_size, in_size))
    start, length, blur = (x.double() for x in (boxes.start, boxes.length, boxes.blur))
    pitch = length / out
    matrix = torch.diag_embed(pitch) if boxes.matrix is None else boxes.matrix.double() * pitch.unsqueeze(-2)
    tilted = torch.zeros(start.shape[:2], dtype=torch.bool) if boxes.tilts is None else boxes.tilts.tilted
    origin = start + length / 2 - (matrix @ (out / 2).view(-1, 1)).squeeze(-1)
    footprint = matrix.square().sum(-1).sqrt()  # pitch of the tilted view along the axes of the source
    reach = (matrix.abs() @ (out / 2).view(-1, 1)).squeeze(-1)
    fine = (footprint * FINER).clamp(min=1)
    low = (start + length / 2 - reach - fine).clamp(min=0).floor()  # on the edges of voxels: pitch 1 is then a copy
    high = torch.minimum(start + length / 2 + reach + fine, base)
    count = ((high - low) / fine).ceil().clamp(min=1)
    choose = tilted.unsqueeze(-1)
    return Grids(
        start=torch.where(choose, low, start),
        pitch=torch.where(choose, fine, pitch),
        half=torch.where(choose, footprint * FILTER * blur, pitch.abs() * blur).clamp(min=1),
        count=torch.where(choose, count, out).long(),
        origin=origin,
        matrix=matrix,
        edge=footprint,
        tilted=tilted,
    )


def resample_views(
    images: Float[Tensor, "N C *spatial"], grids: Grids, size: tuple[int, ...], air: Float[Tensor, " N"]
) -> Float[Tensor, "N V C *size"]:
    """All views, on any device. Tilted ones are made view by view for the whole batch; beyond the source is `air`."""
    if bool(grids.tilted.all()):
        views = images.new_empty(len(images), grids.tilted.shape[1], images.shape[1], *size)
    else:
        views = resample(images, _weights(images, grids, slice(None), slice(None), size))
    for view in range(views.shape[1]):
        rows = grids.tilted[:, view].nonzero().flatten()
        if len(rows):
            views[rows.to(images.device), view] = _tilted(images, grids, rows, view, size, air)
    return views


def _weights(
    images: Tensor, grids: Grids, rows: Tensor | slice, views: slice, size: tuple[int, ...]
) -> list[Float[Tensor, "N V _ _"]]:
    weights = []
    for axis, side in enumerate(size):
        start, pitch, half = (x[rows, views, axis].float() for x in (grids.start, grids.pitch, grids.half))
        start, length, blur = (x.to(images.device) for x in (start, pitch * side, half / pitch.abs()))
        weights.append(axis_weights(start, length, images.shape[2 + axis], side, blur))
    return weights


def _tilted(
    images: Float[Tensor, "N C *spatial"],
    grids: Grids,
    rows: Int[Tensor, " K"],
    view: int,
    size: tuple[int, ...],
    air: Float[Tensor, " N"],
) -> Float[Tensor, "K C *size"]:
    """One tilted view of the samples `rows`; the larger grids of other samples only add voxels that are not used."""
    device, axes = images.device, len(size)
    count = tuple(grids.count[rows, view].amax(0).tolist())
    weights = _weights(images, grids, rows, slice(view, view + 1), count)
    grid = resample(images[rows.to(device)], weights)[:, 0]
    parts = (grids.origin, grids.matrix, grids.start, grids.pitch, grids.edge, grids.count)
    origin, matrix, start, pitch, edge, used = (x[rows, view].float().to(device) for x in parts)
    steps = torch.meshgrid(*[torch.arange(side, device=device) + 0.5 for side in size], indexing="ij")
    shape, places, inside = (-1, *(1,) * axes), [], torch.ones(len(rows), *size, device=device)
    for axis in range(axes):
        x = origin[:, axis].view(shape) + sum(matrix[:, axis, b].view(shape) * steps[b] for b in range(axes))
        depth = torch.minimum(x, images.shape[2 + axis] - x)
        inside = inside * (depth / edge[:, axis].view(shape) + 0.5).clamp(0, 1)
        place = (x - start[:, axis].view(shape)) / pitch[:, axis].view(shape) - 0.5
        place = torch.minimum(place.clamp(min=0), used[:, axis].view(shape) - 1)
        places.append(place * (2 / max(count[axis] - 1, 1)) - 1)
    found = grid_sample(grid, torch.stack(places[::-1], -1), padding_mode="border", align_corners=True)
    outside = air.to(device)[rows.to(device)].view(-1, 1, *(1,) * axes)
    return outside + inside.unsqueeze(1) * (found - outside)
