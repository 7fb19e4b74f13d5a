"""2D images (PNG, JPEG, TIFF) as grey volumes `[row, column]` of modality `image`, without physical size.

Each page of a TIFF is an image of its own. What a header claims is checked before pixels are decoded.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.data.files import storage
from lejepa_med.data.files.file_volume import MAX_PARTS, BadFile, FileVolume, describe
from lejepa_med.data.volume import Volume

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_PIXELS = 1 << 27
"""Of one image; the largest radiographs have a quarter of that. A page that claims more is `too_large`."""
MAX_PIXELS_OF_FILE = 1 << 30
_SMALL_PIXELS = 1 << 24
_PIXELS_PER_BYTE = 8192  # no compression of these formats stands for more, but for empty pages of fax
_FORMATS = ("PNG", "JPEG", "TIFF")  # whatever the name says, nothing reaches Pillow's other readers
_stderr_lock = threading.Lock()
_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L")


def look(path: Path) -> list[FileVolume]:
    """The pages of an image file; raises `BadFile`."""
    with _opened(path) as (image, size):
        pages, described, pixels = _num_pages(image), [], 0
        for page in range(pages):
            array = _grey(image, page, size)
            pixels += array.size
            if pixels > MAX_PIXELS_OF_FILE:
                raise BadFile("too_large")
            described.append(describe(array, np.eye(4), page, pages))
        return described


def read(path: Path, part: int) -> Volume:
    """One page of an image file; raises `BadFile`."""
    with _opened(path) as (image, size):
        if part >= _num_pages(image):
            raise BadFile("truncated")
        return Volume(_grey(image, part, size), np.eye(4), "image")


def read_labels(path: Path) -> Volume:
    """The class numbers of a mask stored as a picture: grey values as they are, places in a palette; else `BadFile`."""
    with _opened(path) as (image, _):
        if image.width * image.height > MAX_PIXELS:
            raise BadFile("too_large")
        if image.mode not in ("P", *_GREY_MODES):
            raise BadFile("colour")
        return Volume(np.array(image).astype(np.float32), np.eye(4), "mask")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, int]]:
    """The image before decoding, and the size of its file; whatever goes wrong then becomes a `BadFile`."""
    reason = "unreadable"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with storage.open_binary(path) as file, Image.open(file, formats=_FORMATS) as image:
                reason = "truncated"
                with _silent_libtiff() if image.format == "TIFF" else nullcontext():
                    yield image, storage.size(path)
        except BadFile:
            raise
        except PermissionError:
            raise BadFile("permission_denied") from None
        except (Image.DecompressionBombError, MemoryError):
            raise BadFile("too_large") from None
        except Exception:  # Pillow has no exception of its own for damage
            raise BadFile(reason) from None


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """libtiff writes what it thinks of damaged files to the process's stderr, past Python, and has no switch."""
    with _stderr_lock, Path(os.devnull).open("wb") as nowhere:
        if sys.stderr is not None:
            sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _num_pages(image: Image.Image) -> int:
    pages = int(getattr(image, "n_frames", 1))
    if pages > MAX_PARTS:
        raise BadFile("too_large")
    return pages


def _grey(image: Image.Image, page: int, size: int) -> NDArray[np.generic]:
    image.seek(page)
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise BadFile("too_large")
    if pixels > max(_SMALL_PIXELS, _PIXELS_PER_BYTE * size) and image.mode != "1":
        raise BadFile("truncated")
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in _GREY_MODES:
        array = np.array(image)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # A transparent pixel shows the background; black is what scans have there.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image.convert("L"))
