"""2D images (PNG, JPEG, TIFF) as grey volumes `[row, column]` of modality `image`, without physical size.

Each page of a TIFF is an image of its own. What a header claims is checked before pixels are decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.data import storage
from lejepa_med.data.file_volume import MAX_PARTS, BadFile, FileVolume, describe
from lejepa_med.data.volume import Volume

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_PIXELS = 1 << 27
"""Of one image; the largest radiographs have a quarter of that. A page that claims more is `too_large`."""
MAX_PIXELS_OF_FILE = 1 << 30
_FORMATS = ("PNG", "JPEG", "TIFF")  # whatever the name says, nothing reaches Pillow's other readers
_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L")


def look(path: Path) -> list[FileVolume]:
    """The pages of an image file; raises `BadFile`."""
    with _opened(path) as image:
        pages, described, pixels = _num_pages(image), [], 0
        for page in range(pages):
            array = _grey(image, page)
            pixels += array.size
            if pixels > MAX_PIXELS_OF_FILE:
                raise BadFile("too_large")
            described.append(describe(array, np.eye(4), page, pages))
        return described


def read(path: Path, part: int) -> Volume:
    """One page of an image file; raises `BadFile`."""
    with _opened(path) as image:
        if part >= _num_pages(image):
            raise BadFile("truncated")
        return Volume(_grey(image, part), np.eye(4), "image")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image before decoding; whatever goes wrong then becomes a `BadFile`."""
    reason = "unreadable"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with storage.open_binary(path) as file, Image.open(file, formats=_FORMATS) as image:
                reason = "truncated"
                yield image
        except BadFile:
            raise
        except PermissionError:
            raise BadFile("permission_denied") from None
        except (Image.DecompressionBombError, MemoryError):
            raise BadFile("too_large") from None
        except Exception:  # Pillow has no exception of its own for damage
            raise BadFile(reason) from None


def _num_pages(image: Image.Image) -> int:
    pages = int(getattr(image, "n_frames", 1))
    if pages > MAX_PARTS:
        raise BadFile("too_large")
    return pages


def _grey(image: Image.Image, page: int) -> NDArray[np.generic]:
    image.seek(page)
    if image.width * image.height > MAX_PIXELS:
        raise BadFile("too_large")
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
