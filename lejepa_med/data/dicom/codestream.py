"""Compressed pixels of DICOM files: frames cut out of their fragments, and decoded.

A codestream brings its own size, and a decoder allocates by it: it is compared with the header's before decoding.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gdcm  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit, RLELossless

from lejepa_med.data.dicom.frame import StoredPixels

_J2K_START = b"\xff\x4f\xff\x51"
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_PREFERRED = ("pyjpegls", "pylibjpeg", "pillow")  # GDCM aborts the process on damaged JPEG 2000: where nothing else can
_RUN_STEP = [code + 2 for code in range(128)] + [1] + [2] * 127
_RUN_LENGTH = [code + 1 for code in range(128)] + [0] + [257 - code for code in range(129, 256)]
_MADE_UP = (b"premature end of data segment", b"bad Huffman code")
_LONGEST_SAID = 1 << 20
_FIRST_MARKER, _START_OF_SCAN = 0xC0, 0xDA
_STANDALONE = set(range(0xD0, 0xDA))

for _channel in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
    _channel()  # they write to stderr


def decode(data: bytes, pixels: StoredPixels, indexes: Sequence[int], plugin: str = "") -> list[NDArray[np.generic]]:
    """Frames of an encapsulated pixel element, each `[row, column]` as the decoder gives it.

    `plugin` names the decoder of pydicom to use; by default GDCM comes last. Raises ValueError for
    codestreams that are missing or of another size; any exception of a decoder may come out.
    """
    found = streams(data, pixels, indexes)
    return [decode_one(found[index], pixels, plugin) for index in indexes]


def streams(data: bytes, pixels: StoredPixels, indexes: Iterable[int]) -> dict[int, bytes]:
    """The codestreams of frames; raises ValueError unless all are there, as it is not known then which is whose."""
    wanted = set(indexes)
    found = {}
    for index, stream in enumerate(_streams(data, pixels)):
        if index in wanted:
            found[index] = stream
        if len(found) == len(wanted):
            return found
    raise ValueError("fewer frames than the header says")


def _streams(data: bytes, pixels: StoredPixels) -> Iterator[bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from generate_frames(data, number_of_frames=pixels.frames)


def decode_one(stream: bytes, pixels: StoredPixels, plugin: str = "") -> NDArray[np.generic]:
    """One frame as its decoder gives it; raises as `decode` does."""
    if pixels.syntax == RLELossless:
        _check_runs(stream, pixels)
    else:
        rows, columns, bits = _described(stream)
        if (rows, columns) != (pixels.rows, pixels.columns) or bits > pixels.allocated:
            raise ValueError("the codestream is not of the size that the header gives")
    if pixels.syntax == JPEGExtended12Bit and pixels.stored != 8:
        return _extended_12_bit(stream, pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {
            "rows": pixels.rows, "columns": pixels.columns, "samples_per_pixel": 1, "number_of_frames": 1,
            "photometric_interpretation": "MONOCHROME2", "bits_allocated": pixels.allocated,
            "bits_stored": pixels.stored, "pixel_representation": pixels.signed, "pixel_keyword": "PixelData",
        }  # fmt: skip
        decoder = get_decoder(UID(pixels.syntax))
        plugin = plugin or next((name for name in _PREFERRED if name in decoder.available_plugins), "")
        try:
            with contextlib.nullcontext() if plugin else _listening():
                image, _ = decoder.as_array(encapsulate([stream]), index=0, raw=True, decoding_plugin=plugin, **options)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of a decoder written in Rust is no Exception
            raise ValueError("the decoder gave up") from None
    return image


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """Keeps what the JPEG library inside GDCM writes to stderr from going there; raises ValueError where it is that
    pixels were made up: without their codes they come out as numbers like any others."""
    kept = os.dup(2)
    heard = os.memfd_create("stderr") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(heard, 2)
        yield
        os.lseek(heard, 0, os.SEEK_SET)
        said = os.read(heard, _LONGEST_SAID)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(heard)
    if any(words in said for words in _MADE_UP):
        raise ValueError("the codestream is damaged")


def _check_runs(stream: bytes, pixels: StoredPixels) -> None:
    """Raises ValueError for run lengths (PS3.5 annex G) that do not add up: the decoder panics on them, on stderr."""
    count, segments = pixels.rows * pixels.columns, pixels.allocated // 8
    if len(stream) < 64:
        raise ValueError("no complete run lengths")
    given, *offsets = struct.unpack_from("<16I", stream)
    if given != segments or segments not in (1, 2, 4, 8):
        raise ValueError("segments do not fit the bits")
    for begin, end in itertools.pairwise([*offsets[:given], len(stream)]):
        place, total, limit = begin, 0, min(end, len(stream))
        while place < limit and total < count:
            code = stream[place]
            place += _RUN_STEP[code]
            total += _RUN_LENGTH[code]
        if total != count or place > limit or begin < 64:
            raise ValueError("run lengths do not add up")


def _extended_12_bit(stream: bytes, pixels: StoredPixels) -> NDArray[np.generic]:
    """JPEG process 4, which GDCM decodes and pydicom does not hand to it."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((pixels.columns, pixels.rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, pixels.stored, pixels.stored - 1, pixels.signed))
    with _listening():
        data = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(data, "<i2" if pixels.signed else "<u2").reshape(pixels.rows, pixels.columns)


def numbers_of(image: NDArray[np.generic], pixels: StoredPixels) -> NDArray[np.generic]:
    """Decoded numbers with the sign that the header gives: codestreams may hold negative ones as large ones."""
    top = 1 << (pixels.stored - 1)
    low, high = int(image.min()), int(image.max())
    if pixels.signed and low >= 0 and top <= high < 2 * top:
        signed = image.astype(f"i{image.dtype.itemsize}")
        unused = image.dtype.itemsize * 8 - pixels.stored
        return (signed << unused) >> unused
    if not pixels.signed and -top <= low < 0 and high < top:
        unsigned: NDArray[np.generic] = np.bitwise_and(image, 2 * top - 1)
        return unsigned
    return image


def codestream_size(stream: bytes) -> tuple[int, int]:
    """Rows and columns of a grey JPEG, JPEG-LS or JPEG 2000 codestream; raises ValueError for all others."""
    return _described(stream)[:2]


def _described(stream: bytes) -> tuple[int, int, int]:
    """Rows, columns and the bits of a number (0 for JPEG 2000, whose decoder widens what it gives)."""
    start = stream.find(_J2K_START, 0, 4096)
    bits = 0
    try:
        if start >= 0:
            right, bottom, left, top = struct.unpack_from(">4I", stream, start + 8)
            tile_columns, tile_rows = struct.unpack_from(">2I", stream, start + 24)
            (components,) = struct.unpack_from(">H", stream, start + 40)
            rows, columns = bottom - top, right - left
            if not tile_columns or not tile_rows or (bottom // tile_rows + 1) * (right // tile_columns + 1) > 65_535:
                raise ValueError("more tiles than JPEG 2000 allows")
        else:
            bits, rows, columns, components = _jpeg_frame(stream)
    except (struct.error, IndexError):
        raise ValueError("no complete codestream") from None
    if components != 1:
        raise ValueError("colour")
    return rows, columns, bits


def _jpeg_frame(stream: bytes) -> tuple[int, int, int, int]:
    """Bits, rows, columns and components. All segments before the scan are looked at: GDCM crashes on broken ones."""
    place, found = 2, (0, 0, 0, 0)
    if stream[:2] != b"\xff\xd8":
        raise ValueError("no codestream")
    while True:
        while stream[place] == 0xFF and stream[place + 1] == 0xFF:  # fill bytes
            place += 1
        marker = stream[place + 1]
        if stream[place] != 0xFF or marker < _FIRST_MARKER:
            raise ValueError("no codestream")
        if marker == _START_OF_SCAN:
            if not 2 <= found[0] <= 16:
                raise ValueError("no codestream")
            return found
        if marker in _FRAME_MARKERS:
            found = struct.unpack_from(">BHHB", stream, place + 4)
        place += 2
        if marker not in _STANDALONE:
            place += max(2, struct.unpack_from(">H", stream, place)[0])
