"""One volume of a NIfTI file, or one image: what a look at the file tells about it, before settings judge it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.files.label_map import looks_like_labels

MAX_VOXELS = 1 << 31
"""Of one volume: 8 GiB in 32 bits, more than any scanner makes; a larger claim is `too_large`."""
MAX_PARTS = 10_000
"""Volumes or pages in one file; a file that claims more is `too_large`."""
MAX_NAN_SHARE = 0.001
MIN_NAN_SHARE_OF_FACES = 0.5


class BadFile(Exception):  # noqa: N818  (an outcome, not an error)
    """A file without a usable volume; `reason` is a word of the vocabulary."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class FileVolume:
    """Facts on part `part` of a file; `problem` is a reason to reject it, `content` a hash of voxels and geometry."""

    part: int
    num_parts: int
    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    problem: str
    labels: bool
    low: float
    high: float
    flags: tuple[str, ...]
    content: str


def describe(array: NDArray[np.generic], affine: NDArray[np.float64], part: int, num_parts: int) -> FileVolume:
    """The facts on one array in real units; makes no copy of it."""
    problem, low, high = "", 0.0, 0.0
    if np.iscomplexobj(array):
        problem = "complex_values"
    else:
        with np.errstate(invalid="ignore"):
            lowest, highest = float(array.min()), float(array.max())
        if not np.isfinite([lowest, highest]).all():  # NaN anywhere makes both NaN
            problem = "not_finite"
        else:
            low, high = lowest, highest
            problem = "constant" if low == high else ""
    digest = hashlib.blake2b(np.ascontiguousarray(affine).tobytes(), digest_size=16)
    digest.update(str((array.shape, array.dtype.str)).encode())
    digest.update(np.ascontiguousarray(array.T if array.flags.f_contiguous else array).data)
    return FileVolume(
        part=part,
        num_parts=num_parts,
        shape=array.shape,
        affine=tuple(tuple(float(value) for value in row) for row in affine),
        problem=problem,
        labels=not problem and looks_like_labels(array),
        low=low,
        high=high,
        flags=(),
        content=digest.hexdigest(),
    )


def without_nan(array: NDArray[np.generic]) -> tuple[NDArray[np.generic], bool]:
    """The array with the lowest value in place of NaN where NaN means "nothing here", and whether there was any.

    That is so where it fills half of the outer faces (a masked scan), or at most one voxel in a thousand (a division
    by zero); elsewhere, and beside infinite values, NaN stays and the volume is `not_finite`.
    """
    if array.dtype.kind != "f":
        return array, False
    with np.errstate(invalid="ignore"):
        if not np.isnan(array.min()):
            return array, False
    missing = np.isnan(array)
    present = array[~missing]
    if not present.size or not np.isfinite(present).all():
        return array, False
    faces = np.concatenate([missing.take([0, -1], axis).ravel() for axis in range(array.ndim)])
    if missing.mean() > MAX_NAN_SHARE and faces.mean() < MIN_NAN_SHARE_OF_FACES:
        return array, False
    array[missing] = present.min()
    return array, True
