"""A stack of DICOM slices as a volume: holes filled, padding settled, one type of number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.dicom_pixels import padding_mask, rescaled, stored_values
from lejepa_med.data.dicom_stack import Stack
from lejepa_med.data.frame import Frame
from lejepa_med.data.volume import Volume


def read_volume(stack: Stack) -> Volume:
    """Decodes a stack; holes, and interior slices that do not decode, are interpolated between their neighbours.

    Raises ValueError where the first or last slice or more than half of them do not decode.
    """
    slices: dict[int, NDArray[np.generic]] = {}
    masks: dict[int, NDArray[np.bool_]] = {}
    members: dict[str, list[tuple[int, Frame]]] = defaultdict(list)
    for slot, frame in zip(stack.slots, stack.frames, strict=True):
        members[frame.path].append((slot, frame))
    for placed in members.values():
        try:
            images = stored_values([frame for _, frame in placed])
        except Exception:
            continue
        for (slot, frame), stored in zip(placed, images, strict=True):
            slices[slot] = rescaled(frame, stored)
            mask = padding_mask(frame, stored)
            if mask is not None:
                masks[slot] = mask
    if 0 not in slices or stack.num_slots - 1 not in slices or 2 * len(slices) < stack.num_slots:
        raise ValueError("too many slices cannot be decoded")
    array = _pile(slices, stack.num_slots)
    _fill_padding(array, slices, masks)
    return Volume(array.transpose(2, 1, 0), stack.affine, stack.frames[0].modality)


def _pile(slices: dict[int, NDArray[np.generic]], num_slots: int) -> NDArray[np.generic]:
    """`[slice, row, column]` of one type, with holes interpolated."""
    dtype = np.result_type(*{array.dtype for array in slices.values()})
    if np.issubdtype(dtype, np.integer):
        dtype = _smallest_integer(
            min(int(a.min()) for a in slices.values()), max(int(a.max()) for a in slices.values())
        )
    else:
        dtype = np.dtype(np.float32)
    known = sorted(slices)
    array = np.empty((num_slots, *slices[known[0]].shape), dtype=dtype)
    for slot in range(num_slots):
        array[slot] = slices[slot] if slot in slices else _between(slices, known, slot, dtype)
    return array


def _between(
    slices: dict[int, NDArray[np.generic]], known: Sequence[int], slot: int, dtype: np.dtype[np.generic]
) -> NDArray[np.generic]:
    below = max(k for k in known if k < slot)
    above = min(k for k in known if k > slot)
    weight = (slot - below) / (above - below)
    mixed = slices[below].astype(np.float64) * (1 - weight) + slices[above].astype(np.float64) * weight
    return (np.rint(mixed) if np.issubdtype(dtype, np.integer) else mixed).astype(dtype)


def _smallest_integer(low: int, high: int) -> np.dtype[np.generic]:
    for dtype in (np.uint8, np.int16, np.uint16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int32)


def _fill_padding(
    array: NDArray[np.generic], slices: dict[int, NDArray[np.generic]], masks: dict[int, NDArray[np.bool_]]
) -> None:
    """Sets padded voxels to the lowest value of the others, in place."""
    if not masks:
        return
    lowest = [
        array[slot][~masks[slot]].min() if slot in masks else array[slot].min()
        for slot in slices
        if slot not in masks or not masks[slot].all()
    ]
    if lowest:
        for slot, mask in masks.items():
            array[slot][mask] = min(lowest)
