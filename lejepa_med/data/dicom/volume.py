"""A stack of DICOM slices as a volume: decoded into one array, padding settled, then put onto the grid."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.pixels import padding_mask, rescaled, stored_or_none
from lejepa_med.data.dicom.resample import onto_grid
from lejepa_med.data.dicom.stack import Stack
from lejepa_med.data.volume import Volume

_UNDECODABLE_SHARE = 10
"""One slice in so many may fail to decode, and one in any case."""


class UndecodableError(ValueError):
    """Too many slices do not decode: how many, and of how many."""

    def __init__(self, lost: int, total: int) -> None:
        super().__init__(f"{lost} of {total} slices cannot be decoded")
        self.lost, self.total = lost, total


def read_volume(stack: Stack) -> Volume:
    """Decodes a stack; holes, and single interior slices that do not decode, are interpolated between neighbours.

    `Volume.filled_slices` counts both. Raises `UndecodableError` where the first or last slice, or more than a tenth of
    them, do not decode: nothing is invented beyond the slices that are there, and a volume keeps the shape that its
    index row states.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for place, frame in enumerate(stack.frames):
        members[frame.path].append(place)
    slices = _Slices(stack.num_slots)
    decoded: list[int] = []
    for places in members.values():
        frames = [stack.frames[place] for place in places]
        try:
            for place, frame, stored in zip(places, frames, stored_or_none(frames), strict=True):
                if stored is not None:
                    slices.put(stack.slots[place], frame, stored)
                    decoded.append(place)
        except MemoryError:
            raise
        except Exception:  # the rest of this file cannot be reached
            continue
    decoded.sort()
    count, lost = len(stack.frames), len(stack.frames) - len(decoded)
    if not {0, count - 1} <= set(decoded) or lost > max(1, count // _UNDECODABLE_SHARE):
        raise UndecodableError(lost, count)
    array = slices.finished()
    onto_grid(array, np.array(stack.slots)[decoded], stack.shifts[decoded], stack.affine)
    modality = stack.frames[0].modality
    return Volume(array.transpose(2, 1, 0), stack.affine, modality, filled_slices=stack.missing + lost)


class _Slices:
    """One array that takes slices one by one, of the smallest type of number that holds them all."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._array: NDArray[np.generic] | None = None
        self._filled: list[int] = []
        self._range: list[float] = []
        self._masks: dict[int, NDArray[np.uint8]] = {}

    def put(self, slot: int, frame: Frame, stored: NDArray[np.generic]) -> None:
        """Places one slice; padded pixels are remembered and hold 0 until `finished`."""
        values, mask = rescaled(frame, stored), padding_mask(frame, stored)
        if mask is not None:
            self._masks[slot] = np.packbits(mask)
            values = np.where(mask, values.dtype.type(0), values)
            seen = values[~mask]
        else:
            seen = values.ravel()
        if seen.size:
            self._range = [
                min([*self._range[:1], seen.min().item()]),  # Python numbers: exact for every type
                max([*self._range[1:], seen.max().item()]),
            ]
        self._widen(values)
        assert self._array is not None
        self._array[slot] = values
        self._filled.append(slot)

    def finished(self) -> NDArray[np.generic]:
        """`[slot, row, column]`, padding set to the lowest value of the rest; slots without a slice are undefined."""
        assert self._array is not None
        for slot, packed in self._masks.items():
            plane = self._array[slot]
            plane[np.unpackbits(packed, count=plane.size).astype(bool).reshape(plane.shape)] = min(self._range or [0])
        return self._array

    def _widen(self, values: NDArray[np.generic]) -> None:
        wanted: np.dtype[np.generic] = np.dtype(np.float32)
        floating = self._array is not None and self._array.dtype.kind == "f"
        if values.dtype.kind in "iub" and not floating:
            low, high = self._range or (0, 0)
            wanted = _smallest_type(int(low), int(high))
        if self._array is None:
            self._array = np.empty((self._num_slots, *values.shape), dtype=wanted)
        elif self._array.dtype != wanted:
            wider = np.empty(self._array.shape, dtype=wanted)
            for slot in self._filled:
                wider[slot] = self._array[slot]
            self._array = wider


def _smallest_type(low: int, high: int) -> np.dtype[np.generic]:
    for dtype in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.float32)
