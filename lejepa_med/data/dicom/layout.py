"""Where the pixels of a DICOM file are, how they are stored, and whether they are all there; no pixel is read.

An image whose header claims more than any scan has is refused here, before anything of that size is allocated. File
meta information that says compressed over plain pixels is seen by their length; other contradictions are refused.
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

from pydicom.uid import AllTransferSyntaxes

from lejepa_med.data.dicom.elements import Elements, integer
from lejepa_med.data.dicom.frame import StoredPixels
from lejepa_med.data.dicom.stream import DEFLATED, PixelElement, Source, Walked, size_of

LARGEST_SIDE = 16_384
LARGEST_OBJECT = 8 << 30
_NATIVE = {"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED}
_KNOWN = {str(uid) for uid in AllTransferSyntaxes}
_MOST_FRAGMENTS = 1_000_000
_INTEGER_PIXELS, _FLOAT_PIXELS, _DOUBLE_PIXELS = 0x7FE00010, 0x7FE00008, 0x7FE00009


class Refused(Exception):  # noqa: N818  (an outcome, not an error)
    """Pixels that cannot be read; `reason` is a word of the vocabulary."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Layout(NamedTuple):
    """A `StoredPixels`, empty where there are none, and the damage: empty, `truncated` or `no_pixels`."""

    pixels: tuple[str | int, ...]
    damage: str


def look(header: Elements, walked: Walked, file: Source) -> Layout:
    """The layout of the pixels in a file; raises `Refused`."""
    element = walked.pixels
    if element is None:
        return Layout((), "truncated" if walked.ends_inside else "no_pixels")
    stored = _stored(header, walked, element)
    frame_bytes = (stored.rows * stored.columns * stored.allocated + 7) // 8
    needed = frame_bytes * stored.frames
    if element.length < 0:
        damage = "" if _complete_fragments(file, element.offset) >= stored.frames else "truncated"
    else:
        damage = "truncated" if element.length < needed or element.offset + needed > size_of(file) else ""
    if damage:
        return Layout((), damage)
    if max(stored.rows, stored.columns) > LARGEST_SIDE or needed > LARGEST_OBJECT:
        raise Refused("too_large")
    native = walked.syntax in _NATIVE
    if native == (element.length < 0):
        # Compressed pixels have no length, and plain ones have one: the file meta information lies.
        if native or element.length not in (needed, needed + needed % 2):
            raise Refused("unreadable")
        stored = stored._replace(syntax="")
    return Layout(stored, "")


def _stored(header: Elements, walked: Walked, element: PixelElement) -> StoredPixels:
    if walked.syntax not in _NATIVE and walked.syntax not in _KNOWN:
        raise Refused("unreadable")
    floating = element.tag in (_FLOAT_PIXELS, _DOUBLE_PIXELS)
    allocated = integer(header, "BitsAllocated", {_FLOAT_PIXELS: 32, _DOUBLE_PIXELS: 64}.get(element.tag, 0))
    used = integer(header, "BitsStored") or allocated
    rows, columns, frames = (integer(header, word) for word in ("Rows", "Columns", "NumberOfFrames"))
    if min(rows, columns, allocated, used) <= 0 or frames < 0 or used > allocated:
        raise Refused("unreadable")
    words = not walked.encoding.little and element.vr == b"OW" and allocated == 8
    order = "swapped" if words else "<" if walked.encoding.little else ">"
    high = integer(header, "HighBit", used - 1)
    return StoredPixels(
        "" if walked.syntax in _NATIVE - {DEFLATED} else walked.syntax,
        element.offset, element.length, frames or 1, rows, columns,
        allocated, used, high, int(integer(header, "PixelRepresentation") == 1), int(floating), order,
    )  # fmt: skip


def _complete_fragments(file: Source, begin: int) -> int:
    """Fragments of encapsulated pixels, without the offset table; 0 if the last one is incomplete."""
    size = size_of(file)
    for count in range(-1, _MOST_FRAGMENTS):
        if begin + 8 > size:
            # Some writers leave the delimiter out: complete if the last fragment ends with the file.
            return count if begin == size else 0
        file.seek(begin, io.SEEK_SET)
        group, element, length = struct.unpack("<HHI", file.read(8))
        if (group, element) == (0xFFFE, 0xE0DD):
            return count
        if (group, element) != (0xFFFE, 0xE000):
            return 0
        begin += 8 + length
    return 0
