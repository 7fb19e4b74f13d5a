"""Turns a Siemens mosaic (many slices tiled into one image) into single frames.

ImagePositionPatient of a mosaic is the corner of a full-size image around the centre of the first tile, so it is moved
by half the difference of the sizes. Slices are stacked along the CSA header's SliceNormalVector, or by the slice
positions of the protocol (volumes may be numbered from head to feet, which dicom2nifti misplaces by their height).
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.dicom.elements import Elements, number
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.stream import walk_file
from lejepa_med.data.files import storage

_TILES, _CSA_IMAGE, _CSA_SERIES = 0x0019100A, 0x00291010, 0x00291020
_MOST_TILES, _SMALLEST_SIDE = 1024, 4  # what no scanner exceeds: a damaged header must not make a million tiles
_PROTOCOL_SLICES = re.compile(rb"sSliceArray\.lSize\s*=\s*(\d+)")


def tiles(whole: Frame, header: Elements) -> tuple[Frame, ...]:
    """One frame per tile; a mosaic whose tiles cannot be placed keeps no geometry."""
    with storage.open_binary(whole.path) as file:
        walked = walk_file(file, (_TILES, _CSA_IMAGE, _CSA_SERIES))[0]
    private = Elements(walked.raw, walked.encoding)
    csa = csa_values(_bytes(private, _CSA_IMAGE))
    count = _count(private, csa)
    spacing = number(header, "SpacingBetweenSlices")
    side = math.ceil(math.sqrt(max(count, 1)))
    sensible = 0 < count <= _MOST_TILES and min(whole.rows, whole.columns) >= side * _SMALLEST_SIDE
    sensible = sensible and whole.rows % side == 0 and whole.columns % side == 0
    placed = sensible and spacing > 0 and whole.orientation and whole.position and whole.pixel_spacing
    with np.errstate(all="ignore"):
        direction = _direction(whole, private, csa, count) if placed else None
    if direction is None:
        return (dataclasses.replace(whole, position=(), orientation=()),)
    rows, columns = whole.rows // side, whole.columns // side
    corner = _corner(whole, rows, columns)
    flags = tuple(sorted({*whole.flags, "mosaic"}))
    return tuple(
        dataclasses.replace(
            whole,
            index=index,
            rows=rows,
            columns=columns,
            position=tuple(float(part) for part in corner + index * spacing * direction),
            flags=flags,
            mosaic=side,
            bytes=whole.bytes // count,
        )
        for index in range(count)
    )


def _corner(whole: Frame, rows: int, columns: int) -> NDArray[np.float64]:
    across, down = np.array(whole.orientation[:3]), np.array(whole.orientation[3:])
    shift = across * whole.pixel_spacing[1] * (whole.columns - columns) / 2
    shift = shift + down * whole.pixel_spacing[0] * (whole.rows - rows) / 2
    corner: NDArray[np.float64] = np.array(whole.position) + shift
    return corner


def _direction(whole: Frame, private: Elements, csa: dict[str, list[str]], count: int) -> NDArray[np.float64] | None:
    """The unit vector from the first tile to the last; None where the header does not tell."""
    normal = np.cross(whole.orientation[:3], whole.orientation[3:])
    given = [float(value) for value in csa.get("SliceNormalVector", [])[:3]]
    if len(given) == 3:
        return normal if float(np.dot(given, normal)) > 0 else -normal
    protocol = _bytes(private, _CSA_SERIES)
    first, last = (float(np.dot(normal, _protocol_position(protocol, index))) for index in (0, count - 1))
    if abs(last - first) < 1e-3:
        return None
    # The image's own plane is that of the first tile; slices may be numbered from either end of the protocol's list.
    place = float(np.dot(normal, whole.position))
    ascending = (last > first) == (abs(place - first) < abs(place - last))
    return normal if ascending else -normal


def _protocol_position(protocol: bytes, index: int) -> NDArray[np.float64]:
    """Centre of a slice in the protocol, LPS mm; what the protocol leaves out is 0."""
    pattern = rb"sSliceArray\.asSlice\[%d\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*([-+.\deE]+)" % index
    found = {name: float(value) for name, value in re.findall(pattern, protocol)}
    return np.array([found.get(name, 0.0) for name in (b"Sag", b"Cor", b"Tra")])


def _count(private: Elements, csa: dict[str, list[str]]) -> int:
    vr, tiles_given = private.raw.get(_TILES, (b"", b""))
    if len(tiles_given) == 2 and vr not in (b"IS", b"DS"):
        return int.from_bytes(tiles_given, "little" if private.encoding.little else "big")
    if tiles_given.strip(b" \0").isdigit():
        return int(tiles_given.strip(b" \0"))
    if csa.get("NumberOfImagesInMosaic"):
        return int(float(csa["NumberOfImagesInMosaic"][0]))
    found = _PROTOCOL_SLICES.search(_bytes(private, _CSA_SERIES))
    return int(found[1]) if found else 0


def _bytes(header: Elements, tag: int) -> bytes:
    return header.raw.get(tag, (b"", b""))[1]


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
