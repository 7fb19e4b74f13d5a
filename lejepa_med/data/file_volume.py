"""One volume of a NIfTI file, or one image: what a look at the file tells about it, before settings judge it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_LABELS = 256
CERTAIN_LABELS = 8
"""Integer data with at most this many values are labels whatever they look like."""
LABEL_AGREEMENT = 0.5
"""Share of equal neighbours inside the non-zero region from which integer data are labels."""


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
    """The facts on one array in real units."""
    problem, low, high = "", 0.0, 0.0
    if np.iscomplexobj(array):
        problem = "complex_values"
    elif not np.isfinite(array).all():
        problem = "not_finite"
    else:
        low, high = float(array.min()), float(array.max())
        problem = "constant" if low == high else ""
    digest = hashlib.blake2b(np.ascontiguousarray(affine).tobytes(), digest_size=16)
    digest.update(str((array.shape, array.dtype.str)).encode())
    digest.update(np.ascontiguousarray(array).data)
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


def looks_like_labels(array: NDArray[np.generic]) -> bool:
    """Whether voxels are class numbers: few distinct integers, and neighbours mostly equal.

    An intensity image that happens to be stored in 8 bits has many values and few equal neighbours.
    """
    if not _integer_valued(array[tuple(slice(None, None, max(1, size // 16)) for size in array.shape)]):
        return False
    if not _integer_valued(array):
        return False
    values = np.unique(array)
    if len(values) > MAX_LABELS or values[0] < -1:
        return False
    if len(values) <= CERTAIN_LABELS:
        return True
    # Pictures have large areas of one grey (paper, collimators); only volumes are judged by their neighbours.
    return array.ndim > 2 and _agreement(array) >= LABEL_AGREEMENT


def _integer_valued(array: NDArray[np.generic]) -> bool:
    return bool(array.dtype.kind in "iub" or (array.dtype.kind == "f" and (np.trunc(array) == array).all()))


def _agreement(array: NDArray[np.generic]) -> float:
    equal = total = 0
    for axis in range(array.ndim):
        first = np.take(array, range(array.shape[axis] - 1), axis)
        second = np.take(array, range(1, array.shape[axis]), axis)
        inside = (first != 0) | (second != 0)
        equal += int(((first == second) & inside).sum())
        total += int(inside.sum())
    return equal / max(1, total)
