"""2D images (PNG, JPEG, TIFF) as grey volumes `[row, column]` of modality `image`, without physical size."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.data.file_volume import BadFile, FileVolume, describe
from lejepa_med.data.volume import Volume

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L")


def look(path: Path) -> list[FileVolume]:
    """The pages of an image file; raises `BadFile`."""
    pages = _pages(path)
    return [describe(page, np.eye(4), index, len(pages)) for index, page in enumerate(pages)]


def read(path: Path, part: int) -> Volume:
    """One page of an image file; raises `BadFile`."""
    pages = _pages(path)
    if part >= len(pages):
        raise BadFile("truncated")
    return Volume(pages[part], np.eye(4), "image")


def _pages(path: Path) -> list[NDArray[np.generic]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(path)
        except PermissionError:
            raise BadFile("permission_denied") from None
        except Exception:
            raise BadFile("unreadable") from None
        with image:
            try:
                count = getattr(image, "n_frames", 1)
                return [_grey(image, page) for page in range(count)]
            except Exception:
                raise BadFile("truncated") from None


def _grey(image: Image.Image, page: int) -> NDArray[np.generic]:
    image.seek(page)
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
