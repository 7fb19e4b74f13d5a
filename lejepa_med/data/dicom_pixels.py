"""Pixels of DICOM frames: decoded as stored, and in real units."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.utils import iter_pixels, pixel_array

from lejepa_med.data.frame import Frame


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
