"""NIfTI files: what is in them, with their headers' contradictions named, and their voxels.

sform is used where its code is set, else qform; an axis beyond the third makes parts, one volume each.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.file_volume import BadFile, FileVolume, describe
from lejepa_med.data.volume import Volume

SUFFIXES = (".nii", ".nii.gz")
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # NIfTI's unit codes for metres and microns

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)


def look(path: Path) -> list[FileVolume]:
    """The volumes of a file, one per part; raises `BadFile`."""
    parts, affine, flags = _load(path)
    described = (describe(part, affine, index, len(parts)) for index, part in enumerate(parts))
    return [dataclasses.replace(volume, flags=flags) for volume in described]


def read(path: Path, part: int, modality: str) -> Volume:
    """One volume of a file; raises `BadFile`."""
    parts, affine, _ = _load(path)
    if part >= len(parts):
        raise BadFile("truncated")
    return Volume(parts[part], affine, modality)


def _load(path: Path) -> tuple[list[NDArray[np.generic]], NDArray[np.float64], tuple[str, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image: Any = nibabel.load(path, mmap=False)
            header = image.header
            shape, stored = image.shape, header.get_data_dtype()
            affine, flags = geometry(header)
        except BadFile:
            raise
        except PermissionError:
            raise BadFile("permission_denied") from None
        except Exception:
            raise BadFile("unreadable") from None
        if stored.names is not None:
            raise BadFile("colour")
        if len(shape) < 2 or 0 in shape:
            raise BadFile("unreadable")
        array = _voxels(image)
    if _scaled(header):
        flags = (*flags, "intensity_scaled")
    array = array.reshape(*shape[:3], *([1] * (3 - len(shape[:3]))), -1, order="F")
    return [array[..., part] for part in range(array.shape[3])], affine, flags


def _voxels(image: Any) -> NDArray[np.generic]:
    try:
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        array: NDArray[np.generic] = np.asanyarray(image.dataobj.get_unscaled())
    except PermissionError:
        raise BadFile("permission_denied") from None
    except (zlib.error, ValueError, TypeError):
        raise BadFile("unreadable") from None
    except Exception:  # gzip and mmap each have their own way to say that bytes are missing
        raise BadFile("truncated") from None
    if array.dtype.kind == "c":
        return array
    if (slope, intercept) != (1, 0):
        scaled: NDArray[np.float64] = array.astype(np.float64) * slope + intercept
        return scaled.astype(np.float32)
    return array.astype(_plain(array), copy=False)


def _plain(array: NDArray[np.generic]) -> np.dtype[Any]:
    """The type to hold voxels in: at most 32 bits, in this machine's byte order."""
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        fits = array.size == 0 or (array.min() >= -(2**31) and array.max() < 2**31)
        return np.dtype(np.int32 if fits else np.float32)
    wide = array.dtype.kind == "f" and array.dtype != np.float32
    return np.dtype(np.float32) if wide else array.dtype.newbyteorder("=")


def _scaled(header: Any) -> bool:
    slope, intercept = header.get_slope_inter()
    return (slope, intercept) not in ((None, None), (1, 0))


def geometry(header: Any) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Affine to RAS+ millimetres of a NIfTI header, and what is odd about it; raises `BadFile("no_geometry")`."""
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    flags = []
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    if qform_code and sform_code and _apart_mm(affine, header.get_qform(), header.get_data_shape()) > 1.0:
        flags.append("qform_sform_differ")
    if not qform_code and not sform_code:
        flags.append("no_orientation")
    factor = _MILLIMETRES.get(int(header["xyzt_units"]) & 7)
    if factor is not None:
        affine[:3] *= factor
        flags.append("units_converted")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9 * max(1e-9, spacing.prod()):
        raise BadFile("no_geometry")
    if spacing.min() < 0.05 or spacing.max() > 20:
        flags.append("spacing_suspect")
    return affine, tuple(flags)


def _apart_mm(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance between the places that two affines give to the corners of a volume."""
    ends = [(0, size - 1) for size in (*shape[:3], 1, 1)[:3]]
    corners = np.array(np.meshgrid(*ends)).reshape(3, -1)
    shift = (first - second)[:3, :3] @ corners + (first - second)[:3, 3:]
    return float(np.linalg.norm(shift, axis=0).max())
