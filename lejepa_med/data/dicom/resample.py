"""Puts slices onto a regular grid, in place: fills empty slots and moves slices that lie beside theirs.

Values are interpolated linearly between the two slices around a slot; integers are rounded. A shift within the plane
below `ON_GRID_MM` is left alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.dicom.stack import ON_GRID_MM

_Plane = NDArray[np.floating]


def onto_grid(
    array: NDArray[np.generic], slots: NDArray[np.int64], shifts: NDArray[np.float64], affine: NDArray[np.float64]
) -> None:
    """Changes `array` `[slot, row, column]`, which holds slice k in `slots[k]`, to what lies at its slots.

    `shifts[k]` says by how many columns, rows and slots slice k lies beyond its slot. The first and the last slot hold
    slices without a shift, so that nothing is extrapolated along the stack.
    """
    if len(slots) == len(array) and not shifts.any():
        return
    own = {slot: k for k, slot in enumerate(slots.tolist())}
    passed = (0, array[0])  # the last slice below the slot, as it was before its own slot changed

    def plane(k: int) -> _Plane:
        found: _Plane = (passed[1] if k == passed[0] else array[slots[k]]).astype(
            np.promote_types(array.dtype, np.float32)
        )
        return found

    for slot in range(1, len(array) - 1):
        before = array[slot].copy()
        between = _between(slot, slots + shifts[:, 2])
        mixed: _Plane = np.add.reduce([weight * plane(k) for k, weight in between])
        beside: NDArray[np.float64] = np.add.reduce([weight * shifts[k, :2] for k, weight in between])
        if np.linalg.norm(affine[:3, :2] @ beside) > ON_GRID_MM:
            mixed = _moved(_moved(mixed, float(beside[0]), axis=1), float(beside[1]), axis=0)
        array[slot] = _as_type(mixed, array.dtype)
        if slot in own:
            passed = (own[slot], before)


def _between(slot: int, places: NDArray[np.float64]) -> list[tuple[int, float]]:
    """The slices around a slot, of slices at ascending places, and their weights; one where it is exact."""
    below = int(np.searchsorted(places, slot, side="right")) - 1
    weight = float((slot - places[below]) / (places[below + 1] - places[below]))
    return [(below, 1 - weight), (below + 1, weight)] if weight else [(below, 1.0)]


def _moved(plane: _Plane, pixels: float, axis: int) -> _Plane:
    """A plane whose pixel 0 lies at `pixels`, sampled at whole pixels; linear, beyond the edge too."""
    count = plane.shape[axis]
    if count == 1 or not pixels:
        return plane
    sources = np.arange(count) - pixels
    low = np.clip(np.floor(sources), 0, count - 2).astype(np.int64)
    weight = np.expand_dims((sources - low).astype(plane.dtype), 1 - axis)
    moved: _Plane = np.take(plane, low, axis) * (1 - weight) + np.take(plane, low + 1, axis) * weight
    return moved


def _as_type(values: _Plane, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    limits: np.iinfo[Any] = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
