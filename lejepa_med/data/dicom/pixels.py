"""Pixels of DICOM frames: as stored, and in real units.

Plain pixels are taken from the file where the header pass found them; compressed ones go through a decoder. Of each
stored word only the bits count that the header calls used (PS3.5 8.1.1); the others may hold overlays or rubbish.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import RLELossless

from lejepa_med.data.dicom import codestream
from lejepa_med.data.dicom import header as dicom_header
from lejepa_med.data.dicom.frame import Frame, StoredPixels
from lejepa_med.data.dicom.stream import DEFLATED, Source, data_set
from lejepa_med.data.files import storage

_BLOCK = 1 << 15  # numbers converted at a time: no temporary array larger than this


def stored_values(frames: Sequence[Frame]) -> list[NDArray[np.generic]]:
    """The pixels of frames of one file as stored, each `[row, column]`, possibly read-only.

    Any exception of pydicom or its decoders may come out.
    """
    with _opened(frames) as image:
        return [image(frame) for frame in frames]


def stored_or_none(frames: Sequence[Frame]) -> Iterator[NDArray[np.generic] | None]:
    """The same one by one, with None for each frame that does not decode; raises where none of them can be reached."""
    with _opened(frames) as image:
        for frame in frames:
            try:
                values = image(frame)
            except MemoryError:  # says nothing of the frame
                raise
            except Exception:
                yield None
            else:
                yield values


def needs_decoder(frame: Frame) -> bool:
    """Whether a look at the header does not tell that the pixels are there."""
    return bool(frame.pixels) and StoredPixels(*frame.pixels).syntax not in ("", DEFLATED)  # type: ignore[arg-type]


@contextlib.contextmanager
def _opened(frames: Sequence[Frame]) -> Iterator[Callable[[Frame], NDArray[np.generic]]]:
    """What gives the image of a frame of this file."""
    first = frames[0]
    pixels = _pixels(first)
    indexes = {0 if frame.mosaic else frame.index for frame in frames}
    with storage.open_binary(first.path) as file:
        stored = _images(file, pixels, indexes, first.padding)
        if first.mosaic:
            stored = functools.cache(stored)

        def image(frame: Frame) -> NDArray[np.generic]:
            found = _tile(stored(0), frame) if frame.mosaic else stored(frame.index)
            if found.shape != (frame.rows, frame.columns):
                raise ValueError("pixels do not have the size that the header gives")
            return found

        yield image


def _pixels(frame: Frame) -> StoredPixels:
    given = frame.pixels or dicom_header.read_header(frame.path)[0].pixels
    if not given:
        raise ValueError("no pixels")
    return StoredPixels(*given)  # type: ignore[arg-type]


def _images(
    file: Source, pixels: StoredPixels, indexes: Iterable[int], padding: tuple[int, ...]
) -> Callable[[int], NDArray[np.generic]]:
    """What gives one of these stored images by its index."""
    if pixels.syntax == DEFLATED:
        file = data_set(file)
    elif pixels.syntax:
        file.seek(pixels.offset)
        found = codestream.streams(file.read(), pixels, indexes)
        return lambda index: _of_codestream(codestream.decode_one(found[index], pixels), pixels, padding)
    return lambda index: used_bits(_words(file, pixels, index), pixels, padding)


def _words(file: Source, pixels: StoredPixels, index: int) -> NDArray[np.generic]:
    """A frame of plain pixels as it lies in the file."""
    if pixels.allocated not in (8, 16, 32, 64) or not 0 <= index < pixels.frames:
        raise ValueError("no whole bytes")
    count = pixels.rows * pixels.columns
    size = count * pixels.allocated // 8
    begin = index * size
    if pixels.order == "swapped":
        file.seek(pixels.offset + begin // 2 * 2)
        data = np.frombuffer(file.read((begin % 2 + size + 1) // 2 * 2), np.uint8)
        data = data.reshape(-1, 2)[:, ::-1].reshape(-1)[begin % 2 :]
        return data[:count].reshape(pixels.rows, pixels.columns)
    file.seek(pixels.offset + begin)
    kind = "f" if pixels.floating else "u"
    words = np.frombuffer(file.read(size), f"{pixels.order}{kind}{pixels.allocated // 8}")
    return words.reshape(pixels.rows, pixels.columns).astype(f"={kind}{pixels.allocated // 8}", copy=False)


def used_bits(words: NDArray[np.generic], pixels: StoredPixels, padding: tuple[int, ...] = ()) -> NDArray[np.generic]:
    """Unsigned words as the numbers in their used bits; words that equal a padding value beyond these bits stay so.

    Raises ValueError where words left of the lowest used bit hold something and HighBit may or may not be true.
    """
    if pixels.floating:
        return words
    bits = words.dtype.itemsize * 8
    unsigned = words.view(f"u{bits // 8}")
    numbers = unsigned
    shift = max(0, pixels.high + 1 - pixels.stored) if pixels.high < pixels.allocated else 0
    if shift and (unsigned & ((1 << shift) - 1)).any():
        if int(unsigned.max()) >> pixels.stored:
            raise ValueError("HighBit contradicts the pixels")
        shift = 0
    if shift:
        numbers = unsigned >> shift
    unused = bits - pixels.stored
    if pixels.signed:
        numbers = numbers.view(f"i{bits // 8}")
        numbers = (numbers << unused) >> unused if unused else numbers
    elif unused and int(numbers.max()) >> pixels.stored:
        numbers = numbers & ((1 << pixels.stored) - 1)
    return _keeping_padding(numbers, words, pixels, padding)


def _keeping_padding(
    numbers: NDArray[np.generic], words: NDArray[np.generic], pixels: StoredPixels, padding: tuple[int, ...]
) -> NDArray[np.generic]:
    if not padding or pixels.stored == pixels.allocated:
        return numbers
    low, high = padding
    least, most = (
        (-(1 << pixels.stored - 1), (1 << pixels.stored - 1) - 1) if pixels.signed else (0, (1 << pixels.stored) - 1)
    )
    if least <= low and high <= most:
        return numbers
    whole = words.view(numbers.dtype)
    return np.where((whole >= low) & (whole <= high), whole, numbers)


def _of_codestream(image: NDArray[np.generic], pixels: StoredPixels, padding: tuple[int, ...]) -> NDArray[np.generic]:
    """RLE keeps words bit by bit; other codestreams hold numbers."""
    if pixels.syntax == RLELossless:
        return used_bits(image, pixels, padding)
    return codestream.numbers_of(image, pixels)


def _tile(whole: NDArray[np.generic], frame: Frame) -> NDArray[np.generic]:
    row, column = divmod(frame.index, frame.mosaic)
    top, left = row * frame.rows, column * frame.columns
    return whole[top : top + frame.rows, left : left + frame.columns]


def rescaled(frame: Frame, stored: NDArray[np.generic]) -> NDArray[np.generic]:
    """Stored pixels in real units: int32 or smaller where slope is 1 and intercept whole, else float32."""
    whole = frame.slope == 1 and float(frame.intercept).is_integer() and stored.dtype.kind in "iu"
    if whole and stored.dtype.itemsize <= 2:
        if frame.intercept == 0:
            return stored
        if abs(frame.intercept) < 1 << 30:
            shifted: NDArray[np.int32] = np.add(stored, np.int32(frame.intercept), dtype=np.int32)
            return shifted
    elif whole and abs(frame.intercept) < 1 << 30:
        low, high = int(stored.min()), int(stored.max())
        offset = int(frame.intercept)
        if min(low, low + offset) >= -(1 << 31) and max(high, high + offset) < 1 << 31:
            return stored.astype(np.int32) + np.int32(offset)
    return _scaled(stored, frame.slope, frame.intercept)


def _scaled(stored: NDArray[np.generic], slope: float, intercept: float) -> NDArray[np.generic]:
    """`stored * slope + intercept` in float64, rounded once to float32, block by block."""
    flat = np.ascontiguousarray(stored).reshape(-1)
    values = np.empty(flat.shape, np.float32)
    block = np.empty(min(_BLOCK, flat.size), np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are a reason, found later
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK]
            scaled = block[: part.size]
            np.multiply(part, slope, out=scaled)
            scaled += intercept
            values[start : start + part.size] = scaled
    return values.reshape(stored.shape)


def padding_mask(frame: Frame, stored: NDArray[np.generic]) -> NDArray[np.bool_] | None:
    """Where stored pixels mean "nothing here"; None if the header names no such value or none is there."""
    if not frame.padding:
        return None
    low, high = frame.padding
    mask: NDArray[np.bool_] = np.equal(stored, low)
    if high != low:
        mask = np.greater_equal(stored, low) & np.less_equal(stored, high)
    return mask if mask.any() else None
