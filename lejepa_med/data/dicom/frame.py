"""One slice as its DICOM header describes it: all that grouping, ordering and reading need, and no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Vector = tuple[float, ...]


class StoredPixels(NamedTuple):
    """Where the pixels of a file are and how they are stored, so that reading them needs no second look at the header.

    `offset` is that of the value in the file (in the unpacked data set of a deflated file); `length` is -1 for
    encapsulated pixels. `syntax` is empty where they are plain numbers in the file. `rows` and `columns` are those of
    the stored image, which a mosaic divides.
    """

    syntax: str
    offset: int
    length: int
    frames: int
    rows: int
    columns: int
    allocated: int  # bits of a stored number
    stored: int  # of which these are used,
    high: int  # and this is the highest
    signed: int
    floating: int
    order: str  # of bytes: <, >, or "swapped", 8 bits in big-endian words


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice of a DICOM file (a frame of a multi-frame file, a tile of a mosaic). LPS millimetres, as in DICOM.

    `index` is the frame in its file; geometry is empty where the header has none; -1 or "" mean "not given".
    """

    path: str
    index: int
    sop_uid: str
    series_uid: str
    study_uid: str
    patient_id: str
    frame_of_reference: str
    modality: str
    rows: int
    columns: int
    pixel_spacing: Vector  # between rows, between columns
    orientation: Vector  # direction of a row, direction of a column
    position: Vector  # centre of the first voxel
    slope: float
    intercept: float
    padding: tuple[int, ...]  # stored values that mean "nothing here": empty, or lowest and highest
    kind: str  # image, or a reason to reject it by its image type
    image_type: tuple[str, ...]
    temporal: str
    trigger: str
    echo: str
    b_value: str
    direction: str
    stack: str
    acquisition: str
    time: str
    sequence: str
    body_part: str
    flags: tuple[str, ...]
    damage: str  # "", truncated, no_pixels or undecodable
    mosaic: int  # tiles along each side of the stored image, 0 if it is no mosaic
    bytes: int
    pixels: tuple[str | int, ...] = ()  # a `StoredPixels`, empty where there are none
