"""Single elements of a DICOM header as plain values; what is absent or malformed is empty or NaN, never an error.

Plain values are read from their bytes; whatever is odd (texts beyond ASCII, unexpected representations, several values
where one is expected) is left to pydicom, so that both give what pydicom alone would.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Mapping
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from lejepa_med.data.dicom.frame import Vector
from lejepa_med.data.dicom.stream import Encoding, Raw, items

CHARSET = 0x00080005
_TEXTS = {b"CS", b"UI", b"LO", b"SH", b"TM", b"DT", b"DA", b"AS", b"AE"}
_BY_CHARSET = {b"LO", b"SH"}
_ASCII_CHARSETS = {b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 101", b"ISO_IR 144", b"ISO_IR 192", b"GB18030"}
_BINARY = {
    vr: struct.Struct("<" + letter)
    for vr, letter in ((b"US", "H"), (b"SS", "h"), (b"UL", "I"), (b"SL", "i"), (b"FL", "f"), (b"FD", "d"))
}
_PLAIN_NUMBER = frozenset(b"0123456789+-.eE \\")
_TAGS: dict[str, int] = {}
_REPRESENTATIONS: dict[int, bytes] = {}


def tag_of(word: str) -> int:
    """The tag of a keyword."""
    tag = _TAGS.get(word)
    if tag is None:
        found = tag_for_keyword(word)
        assert found is not None, word
        tag = _TAGS[word] = int(found)
        _REPRESENTATIONS[tag] = dictionary_VR(tag).encode()
    return tag


class Elements:
    """The elements of a data set or of an item of a sequence, as bytes."""

    __slots__ = ("charset", "encoding", "raw")

    def __init__(self, raw: Mapping[int, Raw], encoding: Encoding, charset: Raw | None = None) -> None:
        self.raw, self.encoding = raw, encoding
        self.charset = raw.get(CHARSET, charset)

    def __contains__(self, word: str) -> bool:
        return tag_of(word) in self.raw

    def plain(self, word: str) -> tuple[bytes, bytes] | None:
        """Representation and bytes of an element, None where it is absent or empty."""
        tag = _TAGS.get(word) or tag_of(word)
        found = self.raw.get(tag)
        if found is None or not found[1]:
            return None
        if not found[0] or found[0] == b"UN":
            return _REPRESENTATIONS[tag], found[1]
        return found

    def converted(self, tag: int) -> Any:
        """What pydicom makes of an element; None where it is absent or pydicom fails on it."""
        present = {key: self.raw.get(key) for key in (tag, tag_of("PixelRepresentation"))}
        dataset = Dataset()
        for key, found in {**present, CHARSET: self.charset}.items():
            if found is not None:
                dataset[key] = RawDataElement(  
                    Tag(key), found[0].decode("latin-1") or None, len(found[1]), found[1], 0,
                    not found[0], self.encoding.little,
                )  # fmt: skip
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return dataset[tag].value
        except Exception:
            return None

    def is_ascii(self) -> bool:
        """Whether bytes below 128 are ASCII in the texts of this data set."""
        return self.charset is None or self.charset[1].strip(b" \0") in _ASCII_CHARSETS

    def sequence(self, word: str) -> list[Elements]:
        """The items of a sequence; none where it is absent or malformed."""
        found = self.raw.get(tag_of(word))
        if found is None or found[0] not in (b"SQ", b"UN", b""):
            return []
        # A sequence whose representation is unknown holds implicit elements (PS3.5 6.2.2).
        encoding = self.encoding if found[0] != b"UN" else Encoding(False, True)
        return [Elements(raw, encoding, self.charset) for raw in items(found[1], encoding)]


def text(header: Elements | None, word: str) -> str:
    """An element as stripped text, empty when absent."""
    if header is None:
        return ""
    found = header.plain(word)
    if found is None:
        return ""
    vr, data = found
    if vr in _TEXTS and data.isascii() and b"\\" not in data and b"\x1b" not in data:
        if vr not in _BY_CHARSET or header.is_ascii():
            plain = data.decode("ascii").strip(" \0")
            if plain.isprintable():
                return plain
    elif (vr == b"IS" and data.strip(b" ").isdigit()) or (vr == b"DS" and _is_plain_decimal(data)):
        return data.decode("ascii").strip(" ")
    elif vr in _BINARY and len(data) == _BINARY[vr].size:
        return str(_BINARY[vr].unpack(data if header.encoding.little else data[::-1])[0])
    value = header.converted(tag_of(word))
    return "" if value is None else str(value).strip(" \0")


def strings(header: Elements, word: str) -> tuple[str, ...]:
    """A multi-valued element as upper-case texts."""
    found = header.plain(word)
    if found is None:
        return ()
    if found[0] == b"CS" and found[1].isascii():
        parts = found[1].decode("ascii").rstrip(" \0").split("\\")
        return tuple(part.strip().rstrip("\0").strip().upper() for part in parts)
    value = header.converted(tag_of(word))
    if value is None:
        return ()
    values = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return tuple(str(part).strip().upper() for part in values)


def number(header: Elements, word: str) -> float:
    """An element as a number, NaN when absent or unreadable."""
    found = header.plain(word)
    if found is None:
        return math.nan
    vr, data = found
    if vr == b"DS" or (vr == b"IS" and data.strip(b" +-").isdigit()):
        try:
            return float(data)
        except ValueError:
            pass
    elif vr in _BINARY and len(data) == _BINARY[vr].size:
        return float(_BINARY[vr].unpack(data if header.encoding.little else data[::-1])[0])
    try:
        return float(header.converted(tag_of(word)))
    except (TypeError, ValueError):
        return math.nan


def integer(header: Elements, word: str, default: int = 0) -> int:
    """An element as a whole number, the default when absent; raises ValueError when it is none."""
    found = header.plain(word)
    if found is None:
        return default
    if found[0] == b"US" and len(found[1]) == 2:
        return int.from_bytes(found[1], "little" if header.encoding.little else "big")
    value = number(header, word)
    if not value.is_integer():
        raise ValueError(f"{word} is no whole number")
    return int(value)


def vector(header: Elements, word: str, length: int) -> Vector:
    """An element as that many finite numbers, empty when it is anything else."""
    found = header.plain(word)
    if found is None:
        return ()
    numbers: tuple[float, ...] | None = None
    if found[0] == b"DS" and _PLAIN_NUMBER.issuperset(found[1]):
        try:
            numbers = tuple(map(float, found[1].split(b"\\")))
        except ValueError:
            return ()
    else:
        try:
            numbers = tuple(float(part) for part in header.converted(tag_of(word)) or ())
        except (TypeError, ValueError):
            return ()
    return numbers if len(numbers) == length and all(map(math.isfinite, numbers)) else ()


def _is_plain_decimal(data: bytes) -> bool:
    if not _PLAIN_NUMBER.issuperset(data) or b"\\" in data:
        return False
    try:
        float(data)
    except ValueError:
        return False
    return True
