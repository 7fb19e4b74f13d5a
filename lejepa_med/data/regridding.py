"""Resampling of whole volumes onto an upright grid: slice by slice, one axis after another, in float32 arithmetic.

An axis that shrinks is averaged by a triangle as wide as two output voxels, one that grows is interpolated linearly,
and one that keeps its grid is copied untouched. Slices of a tilted gantry are shifted back before anything is
interpolated between them. No matrix library takes part, so that every machine of a cluster writes the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.volume import Volume

_ON_GRID = 1e-3  # voxels: closer than this, a voxel is taken as it is
_AIR_HU = -1024.0
_UPRIGHT = 1e-4  # cosine between axes that counts as a right angle


@dataclass(frozen=True)
class Grid:
    """An upright grid around a volume. `sheared` takes voxel steps of the source to mm along `directions` (columns)."""

    affine: NDArray[np.float64]
    shape: tuple[int, ...]
    directions: NDArray[np.float64]
    sheared: NDArray[np.float64]
    slice_axis: int


@dataclass(frozen=True)
class _Taps:
    """Which source voxels make each output voxel along one axis, `[output, tap]`, and which outputs lie beside all."""

    index: NDArray[np.int64]
    weight: NDArray[np.float32]
    outside: NDArray[np.bool_]


def resample(volume: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """On a grid with orthogonal axes and the given voxel size; a sheared stack (tilted gantry) becomes upright.

    In-plane axes keep their direction. What no slice covers is air: -1024 HU in CT, else the darkest value.
    """
    grid = upright_grid(volume, spacing_mm)
    s = grid.slice_axis
    a, b = (axis for axis in range(3) if axis != s)
    slices = np.moveaxis(volume.array, s, 0)
    air = air_of(volume)
    middle = np.empty((slices.shape[0], grid.shape[a], grid.shape[b]), dtype=np.float32)
    for number, plane in enumerate(slices):
        middle[number] = _in_plane(np.asarray(plane, dtype=np.float32), number, grid, volume, air)
    taps = _taps(slices.shape[0], grid.shape[s], *_positions(grid, volume, s, np.zeros(3)))
    resampled = middle if taps is None else _along_slices(middle, taps)
    return Volume(np.moveaxis(resampled, 0, s), grid.affine, volume.modality)


def upright_grid(volume: Volume, spacing_mm: tuple[float, float, float]) -> Grid:
    """The grid that covers the box around a volume, centred on it."""
    steps, spacing = volume.affine[:3, :3], np.asarray(spacing_mm)
    s = _slice_axis(volume, spacing)
    directions = _orthogonal(steps, s)
    corners = np.stack(np.meshgrid(*[(-0.5, size - 0.5) for size in volume.array.shape], indexing="ij"), -1)
    along = (corners.reshape(-1, 3) @ steps.T + volume.affine[:3, 3]) @ directions  # mm along the new axes
    low, extent = along.min(0), np.ptp(along, axis=0)
    shape = np.maximum(1, np.round(extent / spacing - 1e-3)).astype(int)
    first = low + (extent - (shape - 1) * spacing) / 2
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * spacing, directions @ first
    sheared = directions.T @ steps
    shifts = np.abs(sheared) * volume.array.shape / np.diag(sheared)[:, None]  # voxels, from end to end
    sheared[(shifts < _ON_GRID) & ~np.eye(3, dtype=bool)] = 0
    return Grid(affine, tuple(int(size) for size in shape), directions, sheared, s)


def air_of(volume: Volume) -> float:
    """The value of what was not scanned. A CT may be padded with values that no matter has: those are no air."""
    lowest = float(volume.array.min())
    return max(lowest, _AIR_HU) if volume.modality == "ct" else lowest


def _slice_axis(volume: Volume, spacing: NDArray[np.float64]) -> int:
    """The axis that a shear has tilted: of the two that are not at right angles, the one unlike the third in spacing.

    Without a shear, the axis along which the least is lost, for speed.
    """
    steps, own = volume.affine[:3, :3], np.asarray(volume.spacing_mm)
    unit = steps / own
    cosines = np.abs([unit[:, 1] @ unit[:, 2], unit[:, 0] @ unit[:, 2], unit[:, 0] @ unit[:, 1]])
    if cosines.max() > _UPRIGHT:
        third = int(cosines.argmax())  # a pixel's two sides are usually equal
        unlike = np.round(np.abs(np.log(own / own[third])), 3)
        return max((axis for axis in range(3) if axis != third), key=lambda axis: (unlike[axis], axis))
    factor, strides = spacing / own, np.abs(volume.array.strides)
    return max((axis for axis in range(3) if factor[axis] <= 1.05 * factor.min()), key=lambda axis: strides[axis])


def _orthogonal(steps: NDArray[np.float64], slice_axis: int) -> NDArray[np.float64]:
    a, b = (axis for axis in range(3) if axis != slice_axis)
    directions = np.empty((3, 3))
    directions[:, a] = steps[:, a] / np.linalg.norm(steps[:, a])
    second = steps[:, b] - directions[:, a] * (directions[:, a] @ steps[:, b])
    directions[:, b] = second / np.linalg.norm(second)
    third = np.cross(directions[:, a], directions[:, b])
    directions[:, slice_axis] = third * (np.sign(third @ steps[:, slice_axis]) or 1.0)
    return directions


def _positions(grid: Grid, volume: Volume, axis: int, others: NDArray[np.float64]) -> tuple[float, float]:
    """Source index of the first output voxel along an axis, and the step; `others` are source indices elsewhere."""
    origin = grid.directions[:, axis] @ (grid.affine[:3, 3] - volume.affine[:3, 3])
    length = grid.sheared[axis, axis]
    start = (origin - grid.sheared[axis] @ others) / length
    return float(start), float(grid.directions[:, axis] @ grid.affine[:3, axis] / length)


def _in_plane(plane: NDArray[np.float32], number: int, grid: Grid, volume: Volume, air: float) -> NDArray[np.float32]:
    a, b = (axis for axis in range(3) if axis != grid.slice_axis)
    at = np.zeros(3)
    at[grid.slice_axis] = number
    if grid.sheared[a, b] != 0:  # the plane itself is skewed
        columns = []
        for place in range(plane.shape[1]):
            at[b] = place
            taps = _taps(plane.shape[0], grid.shape[a], *_positions(grid, volume, a, at))
            columns.append(_weighted(plane[:, place : place + 1], taps, 0, air))
        plane, at[b] = np.concatenate(columns, axis=1), 0
    else:
        plane = _weighted(plane, _taps(plane.shape[0], grid.shape[a], *_positions(grid, volume, a, at)), 0, air)
    return _weighted(plane, _taps(plane.shape[1], grid.shape[b], *_positions(grid, volume, b, at)), 1, air)


@lru_cache(maxsize=8)  # the same for every slice of an upright stack
def _taps(size: int, count: int, start: float, pitch: float) -> _Taps | None:
    """Weights of `count` output voxels at `start + pitch * n`; None where they are the source's own voxels.

    They add up to 1 and, away from the ends, put a linear ramp exactly where it was. Beyond the ends the last voxel
    goes on for half a voxel.
    """
    wanted = start + pitch * np.arange(count)
    if count == size and np.abs(wanted - np.arange(size)).max() < _ON_GRID:
        return None
    nearest = np.round(wanted)
    wanted = np.where(np.abs(wanted - nearest) < 1e-6, nearest, wanted)  # a scanned slice stands unchanged
    outside = (wanted < -0.5 - _ON_GRID) | (wanted > size - 0.5 + _ON_GRID)
    centre, half = np.clip(wanted, 0, size - 1), max(1.0, pitch)
    index = np.ceil(centre - half).astype(np.int64)[:, None] + np.arange(int(np.ceil(2 * half)) + 1)
    distance = index - centre[:, None]
    weight = np.maximum(0, 1 - np.abs(distance) / half)
    cut = ((weight > 0) & ((index < 0) | (index >= size))).any(1)
    weight[(index < 0) | (index >= size)] = 0
    zeroth, first, second = (np.sum(weight * distance**power, axis=1) for power in (0, 1, 2))
    determinant = zeroth * second - first**2
    plain = cut | (determinant < 1e-9)
    determinant[plain] = 1.0
    level = np.where(plain, 1 / zeroth, second / determinant)
    slope = np.where(plain, 0.0, -first / determinant)
    weight *= level[:, None] + slope[:, None] * distance
    used = weight.any(0)
    index = np.clip(index, 0, size - 1)
    return _Taps(index[:, used], weight[:, used].astype(np.float32), outside)


def _weighted(plane: NDArray[np.float32], taps: _Taps | None, axis: int, air: float) -> NDArray[np.float32]:
    if taps is None:
        return plane
    out: NDArray[np.float32] | None = None
    for tap in range(taps.index.shape[1]):
        weight = taps.weight[:, tap]
        term = plane.take(taps.index[:, tap], axis)
        term *= weight[:, None] if axis == 0 else weight
        out = term if out is None else np.add(out, term, out=out)
    assert out is not None
    if taps.outside.any():
        out[taps.outside if axis == 0 else (slice(None), taps.outside)] = air
    return out


def _along_slices(slices: NDArray[np.float32], taps: _Taps) -> NDArray[np.float32]:
    out = np.zeros((len(taps.index), *slices.shape[1:]), dtype=np.float32)
    for plane, index, weight in zip(out, taps.index, taps.weight, strict=True):
        for place, share in zip(index, weight, strict=True):
            if share != 0:
                plane += slices[place] * share
    return out
