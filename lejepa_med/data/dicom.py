"""DICOM files in, frames out: the header pass."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path

import pydicom

from lejepa_med.data import dicom_enhanced, dicom_mosaic
from lejepa_med.data.dicom_header import NotAVolume, read_header
from lejepa_med.data.frame import Frame

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
