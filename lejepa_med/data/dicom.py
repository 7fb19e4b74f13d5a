"""DICOM files in, frames and volumes out: the header pass for `index`, and the pixels when a volume is read."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.utils import iter_pixels, pixel_array

from lejepa_med.data import dicom_enhanced, dicom_mosaic
from lejepa_med.data.dicom_header import NotAVolume, read_header
from lejepa_med.data.dicom_stack import Stack
from lejepa_med.data.frame import Frame
from lejepa_med.data.volume import Volume

# pydicom's log messages quote header values, and a log must hold none.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
logging.getLogger("pylibjpeg").setLevel(logging.CRITICAL + 1)


def read_frames(path: Path) -> tuple[Frame, ...]:
    """The slices of a DICOM file; raises `NotAVolume` for everything that is no CT, MR or PET image."""
    # pydicom parses values when they are used, and its warnings quote them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame, header = read_header(path)
        try:
            return _frames(frame, header)
        except Exception:
            raise NotAVolume("unreadable", header) from None


def _frames(frame: Frame, header: pydicom.Dataset) -> tuple[Frame, ...]:
    if "PerFrameFunctionalGroupsSequence" in header:
        return dicom_enhanced.frames(frame, header)
    if int(header.get("NumberOfFrames") or 1) > 1:  # nothing says where its frames are
        return (dataclasses.replace(frame, position=()),)
    if "MOSAIC" in frame.image_type:
        return dicom_mosaic.tiles(frame, header)
    return (frame,)


def stored_values(frames: Sequence[Frame]) -> list[NDArray[np.generic]]:
    """The pixels of frames of one file as stored, each `[row, column]`.

    Any exception of pydicom or its decoders may come out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(frames[0].path, force=True)
        if "TransferSyntaxUID" not in header.file_meta:  # files without preamble do not name it
            header.file_meta.TransferSyntaxUID = _native_syntax(header)
        if int(header.get("NumberOfFrames") or 1) > 1:
            images: list[NDArray[np.generic]] = list(iter_pixels(header, indices=[frame.index for frame in frames]))
        else:
            whole = pixel_array(header)
            images = [_tile(whole, frame) if frame.mosaic else whole for frame in frames]
    if any(image.shape != (frame.rows, frame.columns) for image, frame in zip(images, frames, strict=True)):
        raise ValueError("pixels do not have the size that the header gives")
    return images


def _tile(whole: NDArray[np.generic], frame: Frame) -> NDArray[np.generic]:
    row, column = divmod(frame.index, frame.mosaic)
    top, left = row * frame.rows, column * frame.columns
    return whole[top : top + frame.rows, left : left + frame.columns]


def _native_syntax(header: pydicom.FileDataset) -> pydicom.uid.UID:
    implicit, little = header.original_encoding
    if not little:
        return pydicom.uid.ExplicitVRBigEndian
    return pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian


def rescaled(frame: Frame, stored: NDArray[np.generic]) -> NDArray[np.generic]:
    """Stored pixels in real units; integers stay integers where slope and intercept are."""
    if frame.slope == 1 and frame.intercept == 0:
        return stored
    if frame.slope == 1 and float(frame.intercept).is_integer():
        return stored.astype(np.int32) + np.int32(frame.intercept)
    return (stored.astype(np.float64) * frame.slope + frame.intercept).astype(np.float32)


def padding_mask(frame: Frame, stored: NDArray[np.generic]) -> NDArray[np.bool_] | None:
    """Where stored pixels mean "nothing here"; None if the header names no such value."""
    if not frame.padding:
        return None
    low, high = frame.padding
    mask: NDArray[np.bool_] = np.greater_equal(stored, low) & np.less_equal(stored, high)
    return mask if mask.any() else None


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
