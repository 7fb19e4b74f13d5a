"""DICOM files in, frames out: the header pass."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from lejepa_med.data.dicom import enhanced, mosaic
from lejepa_med.data.dicom.elements import Elements, integer, text
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.header import NotAVolume, read_header

# pydicom's log messages quote header values, and a log must hold none.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
logging.getLogger("pylibjpeg").setLevel(logging.CRITICAL + 1)


def read_frames(path: Path | str) -> tuple[Frame, ...]:
    """The slices of a DICOM file; raises `NotAVolume` for everything that is no CT, MR or PET image, OSError too.

    The frames say where their pixels are, so `stored_values` reads these without a second look at the header.
    """
    frame, header = read_header(str(path))
    try:
        return _frames(frame, header)
    except NotAVolume as outcome:
        raise NotAVolume(outcome.reason, header) from None
    except Exception:
        raise NotAVolume("unreadable", header) from None


def _frames(frame: Frame, header: Elements) -> tuple[Frame, ...]:
    if "PerFrameFunctionalGroupsSequence" in header:
        return enhanced.frames(frame, header)
    if integer(header, "NumberOfFrames", 1) > 1:  # nothing says where its frames are
        return (dataclasses.replace(frame, position=()),)
    if frame.kind == "image" and text(header, "ComplexImageComponent").upper() in enhanced.NOT_MAGNITUDE:
        return (dataclasses.replace(frame, kind="phase_image"),)
    if "MOSAIC" in frame.image_type:
        return mosaic.tiles(frame, header)
    return (frame,)
