"""Decides whether ordered slices form a regular grid, and which affine it has.

Spacing comes from positions, never from SliceThickness. Slices within 0.05 mm of the grid are taken as they are; those
that are off it by a little are to be interpolated onto it; a gap of several steps is a hole; all else is irregular.
Where gaps are below 0.2 mm, these tolerances shrink with them.
Slices that shift against their normal (gantry tilt) keep a sheared affine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.plane import (
    Plane,
    common_plane,
    corner_distances_mm,
    corrected_by_mm,
    image_sides,
    normal,
    plane,
)
from lejepa_med.data.dicom.plane import directions as directions_of

ON_GRID_MM = 0.05
"""A voxel that is off the grid by less stays as it is."""

NEAR_GRID_MM = 0.1
"""Positions of one decimal are that much off."""

TILT_DEGREES = 0.5
"""Below this angle between the slice normal and the direction of stacking, nothing is called tilted."""


@dataclass(frozen=True)
class Stack:
    """Slices in order, and where they are on a regular grid.

    `slots[k]` is the grid index of slice k; `num_slots` counts missing slices too. `affine` takes `[column, row, slot]`
    to millimetres in RAS+. `shifts[k]` says by how many columns, rows and slots slice k lies beyond its slot; all are 0
    unless slices are to be moved. `gaps_mm` are the smallest, the median and the largest gap.
    """

    frames: tuple[Frame, ...]
    slots: tuple[int, ...]
    affine: NDArray[np.float64]
    reason: str
    flags: tuple[str, ...]
    gaps_mm: tuple[float, float, float]
    shifts: NDArray[np.float64]

    @property
    def num_slots(self) -> int:
        """Slices of the volume, filled holes included."""
        return self.slots[-1] + 1

    @property
    def missing(self) -> int:
        """Slices that are filled by interpolation."""
        return self.num_slots - len(self.slots)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return self.frames[0].columns, self.frames[0].rows, self.num_slots


def along_normal(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Distance of each frame along the normal that most of them have, mm; `[frame]`."""
    places: NDArray[np.float64] = _positions(frames) @ normal(common_plane(frames)[0])
    return places


def stack(frames: Sequence[Frame], max_missing: int) -> Stack:
    """The grid of frames with distinct positions along the normal, in that order.

    `reason` is `irregular_spacing` where they form none; the affine is then only the best guess.
    """
    common, positions = common_plane(frames), _positions(frames)
    gaps = np.diff(along_normal(frames))
    slots, median = _slots(gaps)
    start, step = _line(positions, slots, common)
    beside = positions - start - slots[:, None] * step
    off = np.linalg.norm(beside, axis=1)
    drift = corner_distances_mm(np.stack([image_sides(plane(frame)) for frame in frames]), image_sides(common))
    on_grid = bool((off + drift).max() <= min(ON_GRID_MM, 0.25 * median if len(gaps) else ON_GRID_MM))
    near = _near_grid(gaps, slots, median) and bool(off.max() <= max(0.1 * median, _near_mm(median)))
    regular = slots[-1] + 1 - len(slots) <= max_missing and (gaps > 0).all() and (on_grid or near)
    shifts = np.zeros((len(frames), 3))
    if not regular:
        slots = np.arange(len(frames))
        start, step = _line(positions, slots, common)
    elif not on_grid:  # from the first slice to the last, so that every slot lies between slices
        start, step = positions[0], (positions[-1] - positions[0]) / slots[-1]
        shifts = (positions - start - slots[:, None] * step) @ np.linalg.inv(_columns(common, step)).T
    return Stack(
        frames=tuple(frames),
        slots=tuple(slots.tolist()),
        affine=affine_ras(common, start, step),
        reason="" if regular else "irregular_spacing",
        flags=_flags(common, step, slots, bool(shifts.any())),
        gaps_mm=(float(gaps.min()), median, float(gaps.max())) if len(gaps) else (0.0, 0.0, 0.0),
        shifts=shifts,
    )


def affine_ras(common: Plane, start: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Affine from `[column, row, slice]` to RAS+ millimetres, from DICOM's LPS vectors (PS3.3 C.7.6.2.1.1)."""
    affine = np.eye(4)
    affine[:3, :3] = _columns(common, step)
    affine[:3, 3] = start
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _columns(common: Plane, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """The LPS vectors from voxel to voxel along a row, along a column and from slice to slice, as matrix columns."""
    across, down = directions_of(common[0])
    between_rows, between_columns = common[1]
    return np.stack([across * between_columns, down * between_rows, step], axis=1)


def _positions(frames: Sequence[Frame]) -> NDArray[np.float64]:
    return np.array([frame.position for frame in frames], dtype=np.float64)


def _slots(gaps: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Grid index of each slice, counted in median gaps, and the median gap in mm."""
    if not len(gaps):
        return np.zeros(1, dtype=np.int64), 0.0
    median = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower one: a hole must not be averaged in
    if median <= 0:
        return np.arange(len(gaps) + 1), median
    steps = np.clip(np.rint(gaps / median), 1, 1e6).astype(np.int64)
    return np.concatenate([[0], np.cumsum(steps)]), median


def _near_grid(gaps: NDArray[np.float64], slots: NDArray[np.int64], median: float) -> bool:
    """Whether each gap is a multiple of the median one within 5 % of it or 0.1 mm, as positions of one decimal have."""
    off = np.abs(gaps - np.diff(slots) * median)
    return bool((off <= max(0.05 * median, _near_mm(median) + 1e-6)).all())


def _near_mm(median: float) -> float:
    """What positions may be off at any gap: less where gaps are so fine that slices would change places."""
    return min(NEAR_GRID_MM, 0.5 * median)


def _line(
    positions: NDArray[np.float64], slots: NDArray[np.int64], common: Plane
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start and step of the straight line through the positions, by least squares."""
    if len(positions) < 2:
        return positions[0], normal(common[0])
    centred = slots - slots.mean()
    centre = positions.mean(axis=0)  # taken out first: far from the origin, products would lose digits
    step = centred @ (positions - centre) / (centred @ centred)
    return centre - slots.mean() * step, step


def _flags(common: Plane, step: NDArray[np.float64], slots: NDArray[np.int64], moved: bool) -> tuple[str, ...]:
    length = float(np.linalg.norm(step))
    angle = np.degrees(np.arccos(min(1.0, float(step @ normal(common[0])) / length))) if length else 0.0
    flags = []
    if angle > TILT_DEGREES:
        flags.append("gantry_tilt")
    if slots[-1] + 1 > len(slots):
        flags.append("missing_slices")
    if moved:
        flags.append("resampled_slices")
    if corrected_by_mm(common) > ON_GRID_MM:
        flags.append("orientation_corrected")
    return tuple(flags)
