"""Turns a Siemens mosaic (many slices tiled into one image) into single frames.

ImagePositionPatient of a mosaic is the corner of a full-size image around the centre of one tile's plane, so it is
moved to the first tile by half the difference of the sizes; slices are stacked along the CSA header's SliceNormalVector.
"""

from __future__ import annotations

import dataclasses
import math
import struct

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from lejepa_med.data.dicom_header import number
from lejepa_med.data.frame import Frame

_TILES = Tag(0x0019, 0x100A)
_CSA = Tag(0x0029, 0x1010)


def tiles(whole: Frame, header: Dataset) -> tuple[Frame, ...]:
    """One frame per tile; a mosaic whose tiles or spacing are unknown keeps no geometry."""
    csa = csa_values(bytes(header[_CSA].value)) if _CSA in header else {}
    count = (
        int(header[_TILES].value) if _TILES in header else int(float((csa.get("NumberOfImagesInMosaic") or ["0"])[0]))
    )
    spacing = number(header, "SpacingBetweenSlices")
    if count < 1 or not spacing > 0 or not (whole.orientation and whole.position and whole.pixel_spacing):
        return (dataclasses.replace(whole, position=(), orientation=()),)
    side = math.ceil(math.sqrt(count))
    rows, columns = whole.rows // side, whole.columns // side
    across, down = np.array(whole.orientation[:3]), np.array(whole.orientation[3:])
    normal = np.cross(across, down)
    given = [float(value) for value in csa.get("SliceNormalVector", [])[:3]]
    if len(given) == 3 and float(np.dot(given, normal)) < 0:
        normal = -normal
    shift = across * whole.pixel_spacing[1] * (whole.columns - columns) / 2
    shift = shift + down * whole.pixel_spacing[0] * (whole.rows - rows) / 2
    corner = np.array(whole.position) + shift
    return tuple(
        dataclasses.replace(
            whole,
            index=index,
            rows=rows,
            columns=columns,
            position=tuple(float(part) for part in corner + index * spacing * normal),
            flags=(*whole.flags, "mosaic"),
            mosaic=side,
            bytes=whole.bytes // count,
        )
        for index in range(count)
    )


def csa_values(data: bytes) -> dict[str, list[str]]:
    """The elements of a Siemens CSA2 header by name; empty when it is no such header."""
    if data[:4] != b"SV10":
        return {}
    values: dict[str, list[str]] = {}
    (count,) = struct.unpack_from("<I", data, 8)
    place = 16
    for _ in range(count):
        name = data[place : place + 64].split(b"\0")[0].decode("ascii", "ignore")
        (items,) = struct.unpack_from("<I", data, place + 76)
        place += 84
        values[name] = []
        for _ in range(items):
            (length,) = struct.unpack_from("<I", data, place + 4)
            item = data[place + 16 : place + 16 + length].split(b"\0")[0].decode("ascii", "ignore").strip()
            if item:
                values[name].append(item)
            place += 16 + (length + 3) // 4 * 4
    return values
