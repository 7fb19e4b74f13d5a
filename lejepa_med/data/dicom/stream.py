"""Walks over the data elements of a DICOM file without interpreting them: tags, lengths and the bytes that are wanted.

What is not wanted is stepped over, nested sequences without recursion; pixels are located and not read. How elements
are encoded (explicit or implicit, byte order) is seen from the first one, because the file meta information may lie.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Container
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

UNDEFINED = 0xFFFFFFFF
PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
DEFLATED = "1.2.840.10008.1.2.1.99"
MAX_INFLATED = 1 << 30
"""Bytes of a deflated file that are unpacked; larger ones are refused (in practice they have a few MB)."""

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_SHORT = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
_CHUNK = 16 * 1024
_LARGEST_VALUE = 64 << 20  # a wanted value beyond this is not what it claims to be
_MOST_STEPS = 3_000_000  # elements of one file; zeros at the end of a large file would take hours
_SYNTAX, _MEDIA_CLASS = 0x00020010, 0x00020002
_STRUCTS = {
    little: (struct.Struct(order + "HH2sH").unpack_from, struct.Struct(order + "I").unpack_from)
    for little, order in ((True, "<"), (False, ">"))
}

_ALL = range(1 << 32)

Raw = tuple[bytes, bytes]
"""A value representation (empty where it is implicit) and the bytes of the value."""


@runtime_checkable
class Source(Protocol):
    """An open file, or bytes in memory that act as one."""

    def read(self, size: int = -1, /) -> bytes:
        """Bytes from here on."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Goes to a place and says where that is."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the elements of a file are written."""

    explicit: bool
    little: bool


@dataclass(frozen=True, slots=True)
class PixelElement:
    """Where the pixels of a file are. `length` is -1 where they are encapsulated."""

    tag: int
    vr: bytes
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Walked:
    """The wanted elements of a file, and its pixel element if the walk came so far."""

    raw: dict[int, Raw]
    encoding: Encoding
    syntax: str
    sop_class: str  # of the file meta information
    pixels: PixelElement | None
    ends_inside: bool  # the file ends in the middle of an element


def inflated(file: Source, start: int) -> Source:
    """The data set of a deflated file, unpacked; raises ValueError where it is damaged or too large."""
    file.seek(start)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(file.read(), MAX_INFLATED)
    except zlib.error:
        raise ValueError("not deflated") from None
    if unpacker.unconsumed_tail:
        raise ValueError("too large")
    return io.BytesIO(data)


def size_of(file: Source) -> int:
    """Bytes of an open file."""
    return file.seek(0, io.SEEK_END)


def data_set(file: Source) -> Source:
    """The unpacked data set of a deflated file."""
    return inflated(file, _Window(file).meta({}))


def walk_file(file: Source, wanted: Container[int]) -> tuple[Walked, Source]:
    """The wanted elements of a file, and the file that pixel offsets refer to (another one where it is deflated)."""
    window = _Window(file)
    meta: dict[int, Raw] = {}
    place = window.meta(meta)
    syntax, sop_class = (meta.get(tag, (b"", b""))[1].decode("latin-1").strip(" \0") for tag in (_SYNTAX, _MEDIA_CLASS))
    if syntax == DEFLATED:
        file = inflated(file, place)
        window, place = _Window(file), 0
    encoding = _encoding(window.at(place, 8), syntax)
    raw: dict[int, Raw] = {}
    place, pixels = window.walk(place, encoding, wanted, raw)
    return Walked(raw, encoding, syntax, sop_class, pixels, pixels is None and place != size_of(file)), file


def _encoding(first: bytes, syntax: str) -> Encoding:
    """What the first element shows: groups start low, and a value representation is two capitals."""
    if len(first) < 8:
        return Encoding(True, True)
    little, big = struct.unpack("<H", first[:2])[0], struct.unpack(">H", first[:2])[0]
    order = little < big or (little == big and syntax != "1.2.840.10008.1.2.2")
    return Encoding(first[4:6].isalpha() and first[4:6].isupper(), order)


class _Window:
    """A part of a file in memory, moved forward as the walk needs it."""

    def __init__(self, file: Source) -> None:
        self.file, self.base, self.data = file, 0, file.read(_CHUNK)
        self.steps = 0

    def at(self, place: int, length: int) -> bytes:
        """Bytes at a place of the file, fewer at its end."""
        if place < self.base or place + length > self.base + len(self.data):
            self.file.seek(place)
            self.base = place
            self.data = self.file.read(_CHUNK)
            if len(self.data) == _CHUNK < length:  # a length that lies must not allocate what is not there
                present = size_of(self.file) - place
                self.file.seek(place + _CHUNK)
                self.data += self.file.read(max(0, min(length, present) - _CHUNK))
        begin = place - self.base
        return self.data[begin : begin + length]

    def meta(self, found: dict[int, Raw]) -> int:
        """Collects transfer syntax and class of the file meta information; where the data set begins."""
        start = 132 if self.data[128:132] == b"DICM" else 0
        return self.walk(start, Encoding(True, True), (_SYNTAX, _MEDIA_CLASS), found, (2, 2))[0]

    def walk(
        self,
        place: int,
        encoding: Encoding,
        wanted: Container[int],
        found: dict[int, Raw],
        groups: tuple[int, int] = (0, 0xFFFF),
    ) -> tuple[int, PixelElement | None]:
        """Collects wanted elements up to the pixels, the end, or the first element outside the groups."""
        first_group, last_group = groups
        explicit = encoding.explicit
        heads, longs = _STRUCTS[encoding.little]
        data, base = self.data, self.base
        begin, end = place - base, len(data) - 12
        for _ in range(_MOST_STEPS):
            if begin > end:
                place = base + begin
                self.at(place, 12)
                data, base = self.data, self.base
                begin, end = place - base, len(data) - 12
                if len(data) - begin < 8:
                    return place, None
            group, element, vr, length = heads(data, begin)
            value = begin + 8
            if not explicit or not (vr in _SHORT or vr in _LONG or vr.isupper()):
                vr, length = b"", longs(data, begin + 4)[0]
            elif vr in _LONG:
                if len(data) - begin < 12:
                    return base + begin, None
                length, value = longs(data, value)[0], begin + 12
            tag = group << 16 | element
            if not first_group <= group <= last_group:
                return base + begin, None
            if tag in PIXEL_TAGS:
                return base + begin, PixelElement(tag, vr, base + value, -1 if length == UNDEFINED else length)
            if length == UNDEFINED:
                place = base + value
                begin = _after_undefined(self, place, encoding) - base
                if tag in wanted:
                    found[tag] = (vr or b"SQ", self._whole(place, begin + base - place))
                continue
            if tag in wanted:
                if value + length > len(data):
                    limit = UNDEFINED if vr in (b"SQ", b"") else _LARGEST_VALUE
                    found[tag] = (vr, self._whole(base + value, length) if length <= limit else b"")
                else:
                    found[tag] = (vr, data[value : value + length])
            begin = value + length
        raise ValueError("too many elements")

    def _whole(self, place: int, length: int) -> bytes:
        """Bytes at a place, whatever the window holds; the window stays where it is."""
        present = size_of(self.file) - place
        self.file.seek(place)
        return self.file.read(max(0, min(length, present)))


def _after_undefined(window: _Window, place: int, encoding: Encoding, closing: int = _SEQUENCE_END) -> int:
    """Where a value of undefined length ends, its delimiter included; the end of the file if it never does."""
    heads, longs = _STRUCTS[encoding.little]
    open_values = [closing]  # what closes each of the nested values, innermost last
    while open_values:
        window.steps += 1
        if window.steps > _MOST_STEPS:
            raise ValueError("too many elements")
        head = window.at(place, 12)
        if len(head) < 8:
            return place + len(head)
        group, element, vr, length = heads(head, 0)
        tag, step = group << 16 | element, 8
        if group == 0xFFFE or not encoding.explicit or not (vr in _SHORT or vr in _LONG or vr.isupper()):
            length = longs(head, 4)[0]
        elif vr in _LONG:
            if len(head) < 12:
                return place + len(head)
            length, step = longs(head, 8)[0], 12
        place += step
        if tag in (_ITEM_END, _SEQUENCE_END):
            while open_values and open_values.pop() != tag:
                pass
        elif length == UNDEFINED:
            open_values.append(_ITEM_END if tag == _ITEM else _SEQUENCE_END)
        else:
            place += length
    return place


def items(data: bytes, encoding: Encoding) -> list[dict[int, Raw]]:
    """The items of a sequence, each as its elements; stops where the bytes are no items."""
    window, found, place = _Window(io.BytesIO(data)), [], 0
    longs = _STRUCTS[encoding.little][1]
    pair = "<HH" if encoding.little else ">HH"
    while place + 8 <= len(data):
        group, element = struct.unpack_from(pair, data, place)
        if group << 16 | element != _ITEM:
            break
        length = longs(data, place + 4)[0]
        place += 8
        end = _after_undefined(window, place, encoding, _ITEM_END) if length == UNDEFINED else place + length
        elements: dict[int, Raw] = {}
        _Window(io.BytesIO(data[place:end])).walk(0, encoding, _ALL, elements, (0, 0xFFFD))
        found.append(elements)
        place = end
    return found
