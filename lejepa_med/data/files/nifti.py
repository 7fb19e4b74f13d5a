"""NIfTI files: what is in them, with their headers' contradictions named, and their voxels.

sform is used where its code is set, else qform; an axis beyond the third makes parts, one volume each, read one by
one. NaN outside the body is the lowest value (`file_volume.without_nan`). What a header claims is compared with what
the file can hold before anything is allocated. A file may be compressed whatever its name says.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.files import storage
from lejepa_med.data.files.file_volume import MAX_PARTS, MAX_VOXELS, BadFile, FileVolume, describe, without_nan
from lejepa_med.data.volume import Volume

SUFFIXES = (".nii", ".nii.gz")
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # NIfTI's unit codes for metres and microns
_POSSIBLE_SPACING_MM = (1e-3, 200.0)
_FARTHEST_MM = 1e6
_GZIP_RATIO = 1032  # no deflated byte stands for more
_CHUNK_VOXELS = 1 << 21
_SIZES = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class _Header:
    """What is needed to read the voxels: where they start, how they are stored, and what they mean."""

    offset: int
    shape: tuple[int, ...]
    parts: int
    stored: np.dtype[Any]
    scaling: tuple[float, float] | None
    affine: NDArray[np.float64]
    flags: tuple[str, ...]

    @property
    def part_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.stored.itemsize


def look(path: Path) -> list[FileVolume]:
    """The volumes of a file, one per part; raises `BadFile`. Never holds more than one part."""
    with _opened(path) as (stream, longest):
        header = _header(stream, longest)
        found = [_described(stream, header, part) for part in range(header.parts)]
        _check_sum(stream)
    return found


def _described(stream: io.BufferedIOBase, header: _Header, part: int) -> FileVolume:
    array, filled = without_nan(_voxels(stream, header))
    volume = describe(array, header.affine, part, header.parts)
    return dataclasses.replace(volume, flags=(*header.flags, "nan_filled") if filled else header.flags)


def read(path: Path, part: int, modality: str) -> Volume:
    """One volume of a file; raises `BadFile`."""
    with _opened(path) as (stream, longest):
        header = _header(stream, longest)
        if part >= header.parts:
            raise BadFile("truncated")
        stream.seek(header.offset + part * header.part_bytes)
        array, _ = without_nan(_voxels(stream, header))
    return Volume(array, header.affine, modality)


def read_affine(path: Path) -> NDArray[np.float64]:
    """Where the voxels of a file are, without reading them; raises `BadFile`."""
    with _opened(path) as (stream, longest):
        return _header(stream, longest).affine


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """The file without its compression, and the most bytes it can hold; whatever goes wrong then is a `BadFile`."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            with storage.open_binary(path) as file:
                packed = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                size = storage.size(path)
                if packed:
                    with gzip.GzipFile(fileobj=file) as unpacked:
                        yield unpacked, size * _GZIP_RATIO
                else:
                    yield cast(io.BufferedIOBase, file), size
        except BadFile:
            raise
        except PermissionError:
            raise BadFile("permission_denied") from None
        except MemoryError:
            raise BadFile("too_large") from None
        except EOFError:
            raise BadFile("truncated") from None
        except (OSError, zlib.error, ValueError):
            raise BadFile("unreadable") from None


def _header(stream: io.BufferedIOBase, longest: int) -> _Header:
    """The header, its claims checked, and the stream at the first voxel."""
    try:
        start = stream.read(540)
    except EOFError:  # not even a header
        raise BadFile("unreadable") from None
    kind, block = _kind(start)
    try:
        header: Any = kind(block)
        shape = tuple(int(size) for size in header.get_data_shape())
        stored, offset = header.get_data_dtype(), float(header["vox_offset"])
        scaling = _scaling(header)
        affine, flags = geometry(header)
    except BadFile:
        raise
    except Exception:  # nibabel has many ways to dislike a header
        raise BadFile("unreadable") from None
    first = kind.single_vox_offset
    offset = float(first) if offset == 0 else offset  # written by programs that mean "right after the header"
    if len(shape) < 2 or min(shape) < 1 or not first <= offset < 2**53:
        raise BadFile("unreadable")
    if stored.names is not None:
        raise BadFile("colour")
    if stored.kind not in "iufc":
        raise BadFile("unreadable")
    if scaling is not None:
        flags = (*flags, "intensity_scaled")
    parts = 1
    for size in shape[3:]:
        parts *= size
    described = _Header(int(offset), (*shape[:3], 1)[:3], parts, stored, scaling, affine, flags)
    _check_claims(described, longest)
    stream.seek(described.offset)
    return described


def _kind(start: bytes) -> tuple[Any, bytes]:
    """The header class for NIfTI-1 or -2 in one file, by the magic, and its bytes; pairs and Analyze are not read."""
    if start[344:348] == b"n+1\0":
        return nibabel.Nifti1Header, start[:348]
    if start[4:8] == b"n+2\0" and len(start) == 540:
        return nibabel.Nifti2Header, start
    raise BadFile("unreadable" if len(start) > 348 or start[:4] not in _SIZES else "truncated")


def _check_claims(header: _Header, longest: int) -> None:
    voxels = 1
    for size in header.shape:
        voxels *= size
    needed = header.offset + voxels * header.stored.itemsize * header.parts
    if needed > longest:
        raise BadFile("truncated")
    if voxels > MAX_VOXELS or header.parts > MAX_PARTS:
        raise BadFile("too_large")


def _scaling(header: Any) -> tuple[float, float] | None:
    slope, intercept = header.get_slope_inter()
    return None if (slope, intercept) in ((None, None), (1, 0)) else (float(slope), float(intercept or 0))


def _voxels(stream: io.BufferedIOBase, header: _Header) -> NDArray[np.generic]:
    """The next part, in real units and at most 32 bits per number; needs its own size and a chunk."""
    count = header.part_bytes // header.stored.itemsize
    kind, size = header.stored.kind, header.stored.itemsize
    wide_integer = kind in "iu" and size == 8 and header.scaling is None
    if header.scaling is not None and kind != "c":
        kept = np.dtype(np.float32)
    elif wide_integer or kind == "c":
        kept = header.stored.newbyteorder("=")
    else:
        kept = np.dtype(np.float32) if kind == "f" else header.stored.newbyteorder("=")
    array = np.empty(count, kept)
    for first in range(0, count, _CHUNK_VOXELS):
        last = min(count, first + _CHUNK_VOXELS)
        array[first:last] = _scaled(_exactly(stream, (last - first) * size, header.stored), header.scaling)
    if wide_integer:
        array = array.astype(_fitting(array))
    return array.reshape(header.shape, order="F")


def _exactly(stream: io.BufferedIOBase, count: int, stored: np.dtype[Any]) -> NDArray[np.generic]:
    data = stream.read(count)
    if len(data) < count:
        raise BadFile("truncated")
    return np.frombuffer(data, stored)


def _scaled(values: NDArray[np.generic], scaling: tuple[float, float] | None) -> NDArray[np.generic]:
    if scaling is None or values.dtype.kind == "c":
        return values
    slope, intercept = scaling
    scaled: NDArray[np.float64] = values.astype(np.float64) * slope + intercept
    return scaled


def _fitting(array: NDArray[np.generic]) -> np.dtype[Any]:
    fits = int(array.min()) >= -(2**31) and int(array.max()) < 2**31
    return np.dtype(np.int32 if fits else np.float32)


def _check_sum(stream: io.BufferedIOBase) -> None:
    """A compressed file that ends here is compared with its checksum; what follows the voxels is not looked at."""
    try:
        stream.read(1)
    except gzip.BadGzipFile as error:
        if str(error).startswith(("CRC", "Incorrect")):
            raise BadFile("unreadable") from None
    except EOFError:  # all voxels are there, only the checksum is cut off
        return


def geometry(header: Any) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Affine to RAS+ millimetres of a NIfTI header, and what is odd about it; raises `BadFile("no_geometry")`."""
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    flags = []
    try:
        affine = np.array(header.get_best_affine(), dtype=np.float64)
    except ValueError:  # a quaternion that is none
        raise BadFile("no_geometry") from None
    if qform_code and sform_code and _apart_mm(affine, _qform(header), header.get_data_shape()) > 1.0:
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
    low, high = _POSSIBLE_SPACING_MM
    if spacing.min() < low or spacing.max() > high or np.abs(affine[:3, 3]).max() > _FARTHEST_MM:
        raise BadFile("no_geometry")
    if spacing.min() < 0.05 or spacing.max() > 20:
        flags.append("spacing_suspect")
    return affine, tuple(flags)


def _qform(header: Any) -> NDArray[np.float64]:
    """The affine of the qform, nowhere if its numbers are no rotation."""
    try:
        return np.array(header.get_qform(), dtype=np.float64)
    except ValueError:
        return np.full((4, 4), np.inf)


def _apart_mm(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance between the places that two affines give to the corners of a volume."""
    if not np.isfinite(second).all():
        return np.inf
    ends = [(0, size - 1) for size in (*shape[:3], 1, 1)[:3]]
    corners = np.array(np.meshgrid(*ends)).reshape(3, -1)
    shift = (first - second)[:3, :3] @ corners + (first - second)[:3, 3:]
    return float(np.linalg.norm(shift, axis=0).max())
