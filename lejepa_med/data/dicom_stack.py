"""Decides whether ordered slices form a regular grid, and which affine it has.

A gap is regular within max(5 %, 0.05 mm) of the median gap; a multiple of it is a hole. Spacing comes from positions,
never from SliceThickness. Slices that shift against their normal (gantry tilt) keep a sheared affine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.frame import Frame

TILT_DEGREES = 0.5
"""Below this angle between the slice normal and the direction of stacking, nothing is sheared."""


@dataclass(frozen=True)
class Stack:
    """Slices in order, and where they are on a regular grid.

    `slots[k]` is the grid index of slice k; `num_slots` counts missing slices too. `affine` takes `[column, row, slot]`
    to millimetres in RAS+. `gaps_mm` are the smallest, the median and the largest gap.
    """

    frames: tuple[Frame, ...]
    slots: tuple[int, ...]
    affine: NDArray[np.float64]
    reason: str
    flags: tuple[str, ...]
    gaps_mm: tuple[float, float, float]

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
    """Distance of each frame along the slice normal, mm; `[frame]`."""
    normal = np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
    places: NDArray[np.float64] = np.array([frame.position for frame in frames], dtype=np.float64) @ normal
    return places


def stack(frames: Sequence[Frame], max_missing: int) -> Stack:
    """The grid of frames with distinct positions along the normal, in that order.

    `reason` is `irregular_spacing` where they form none; the affine is then only the best guess.
    """
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    gaps = np.diff(along_normal(frames))
    slots = list(range(len(frames)))
    reason, summary = "", (0.0, 0.0, 0.0)
    if len(gaps):
        median = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower one: a hole must not be averaged in
        summary = (float(gaps.min()), median, float(gaps.max()))
        steps = np.maximum(np.rint(gaps / median), 1)
        off_grid = np.abs(gaps - steps * median) > np.maximum(0.05 * median, 0.05)
        slots = [0, *np.cumsum(steps).astype(int).tolist()]
        if off_grid.any() or slots[-1] + 1 - len(slots) > max_missing:
            reason, slots = "irregular_spacing", list(range(len(frames)))
    start, step = _line(positions, np.array(slots, dtype=np.float64), frames[0])
    if not reason and _off_line(positions, start, step, slots, summary[1]):
        reason = "irregular_spacing"
    affine = affine_ras(frames[0], start, step)
    return Stack(tuple(frames), tuple(slots), affine, reason, _flags(frames[0], step, slots), summary)


def affine_ras(frame: Frame, start: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Affine from `[column, row, slice]` to RAS+ millimetres, from DICOM's LPS vectors (PS3.3 C.7.6.2.1.1)."""
    affine = np.eye(4)
    affine[:3, 0] = np.array(frame.orientation[:3]) * frame.pixel_spacing[1]
    affine[:3, 1] = np.array(frame.orientation[3:]) * frame.pixel_spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = start
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _line(
    positions: NDArray[np.float64], slots: NDArray[np.float64], frame: Frame
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start and step of the straight line through the positions, by least squares."""
    if len(positions) < 2:
        return positions[0], np.cross(frame.orientation[:3], frame.orientation[3:])
    centred = slots - slots.mean()
    step = centred @ positions / (centred @ centred)
    return positions.mean(axis=0) - slots.mean() * step, step


def _off_line(
    positions: NDArray[np.float64],
    start: NDArray[np.float64],
    step: NDArray[np.float64],
    slots: Sequence[int],
    gap: float,
) -> bool:
    residual = positions - (start + np.array(slots)[:, None] * step)
    return bool(np.linalg.norm(residual, axis=1).max() > max(0.1 * gap, 0.1))


def _flags(frame: Frame, step: NDArray[np.float64], slots: Sequence[int]) -> tuple[str, ...]:
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    length = float(np.linalg.norm(step) * np.linalg.norm(normal))
    angle = np.degrees(np.arccos(min(1.0, float(np.dot(step, normal)) / length))) if length else 0.0
    flags = []
    if angle > TILT_DEGREES:
        flags.append("gantry_tilt")
    if slots[-1] + 1 > len(slots):
        flags.append("missing_slices")
    return tuple(flags)
