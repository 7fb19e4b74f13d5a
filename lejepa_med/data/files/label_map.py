"""Whether voxels are class numbers or intensities: integers in both cases, but only classes lie in regions.

Of each value it is measured how often a neighbour of its voxels has the same value. In a label map that holds for the
typical value (a region at least two voxels thick); in an image it holds for a background or a clipped maximum at most.
A very smooth image in few bits has thick layers too, but then each layer borders on the next value; regions border on
the background, or on any other value. Regions numbered in the order in which they touch cannot be told from it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_LABELS = 256
CERTAIN_LABELS = 3
"""Integer data with at most this many values (a mask, or two classes and background) are labels in any case."""
FEW_LABELS = 8
"""Up to this many values nested regions and a coarse image are the same; they count as labels."""
SELF_AGREEMENT = 0.3
"""Share of equal neighbours, of the median value, from which many values are labels; images reach it as layers only."""
FEW_AGREEMENT = 0.25
"""The same over all voxels where values are few; counts of a PET scan agree by chance in 20 % at most."""
SPARSE = 0.01
"""Few values on less than this share of the voxels are lesions, also where each is a voxel or two."""
LAYERED = 0.8
"""Share of borders between values that are next to each other, from which many values are an image ..."""
ISLAND = 0.5
"""... unless the median value has this share of its borders with the background, as numbered vertebrae have."""

_SLAB_VOXELS = 1 << 22
_Pairs = NDArray[np.int64]


def looks_like_labels(array: NDArray[np.generic]) -> bool:
    """Whether voxels are class numbers. Needs a byte or two per voxel besides the array."""
    if array.dtype.kind not in "iubf" or not array.size:
        return False
    sample = array[tuple(slice(None, None, max(1, size // 16)) for size in array.shape)]
    if not _integer_valued(sample) or len(np.unique(sample)) > MAX_LABELS:
        return False
    values = _values(array)
    if values is None or values[0] < -1:
        return False
    if len(values) <= CERTAIN_LABELS:
        return True
    depth = sum(size > 1 for size in array.shape)
    if depth < 3:  # pictures have large areas of one grey (paper, collimators): only volumes are judged by neighbours
        return len(values) <= FEW_LABELS
    pairs = _neighbours(_ranks(array, values), len(values))
    return _are_regions(pairs, values, array)


def _are_regions(pairs: _Pairs, values: NDArray[np.generic], array: NDArray[np.generic]) -> bool:
    zero = int(np.searchsorted(values, 0))
    inside = np.ones(len(values), dtype=bool)
    if zero < len(values) and values[zero] == 0:
        inside[zero] = False
    equal = np.diag(pairs)
    if len(values) <= FEW_LABELS:
        total = pairs.sum() - (0 if inside.all() else pairs[zero, zero])
        filled = np.count_nonzero(array) / array.size
        return bool(equal[inside].sum() >= FEW_AGREEMENT * total or filled < SPARSE)
    of_value = pairs.sum(0) + pairs.sum(1) - equal
    if np.median(equal[inside] / np.maximum(1, of_value[inside])) < SELF_AGREEMENT:
        return False
    if not inside.all():
        outer = pairs[zero, inside] + pairs[inside, zero]
        if np.median(outer / np.maximum(1, (of_value - equal)[inside])) >= ISLAND:
            return True
    both = pairs[np.ix_(inside, inside)]
    borders = both.sum() - np.trace(both)
    layers = np.trace(both, 1) + np.trace(both, -1)
    return bool(layers < LAYERED * borders or borders == 0)


def _neighbours(ranks: NDArray[np.uint8], count: int) -> _Pairs:
    """How often each pair of values stands side by side, in the order of the axes."""
    pairs = np.zeros((count, count), dtype=np.int64)
    for axis in range(ranks.ndim):
        lanes = np.moveaxis(ranks, axis, 0)
        step = max(1, _SLAB_VOXELS // max(1, lanes[0].size))
        for first in range(0, len(lanes) - 1, step):
            last = min(len(lanes) - 1, first + step)
            joined = lanes[first:last].astype(np.int32) * count + lanes[first + 1 : last + 1]
            pairs += np.bincount(joined.ravel(), minlength=count * count).reshape(count, count)
    return pairs


def _ranks(array: NDArray[np.generic], values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The place of each voxel's value among the distinct ones."""
    ranks = np.empty_like(array, dtype=np.uint8)
    flat, places = array.ravel(order="K"), ranks.ravel(order="K")
    assert np.shares_memory(ranks, places)
    low, high = int(values[0]), int(values[-1])
    table = np.zeros(high - low + 1, dtype=np.uint8) if high - low < 1 << 16 else None
    if table is not None:
        table[values.astype(np.int64) - low] = range(len(values))
    for first in range(0, flat.size, _SLAB_VOXELS):
        slab = flat[first : first + _SLAB_VOXELS]
        found = table[slab.astype(np.int64) - low] if table is not None else np.searchsorted(values, slab)
        places[first : first + len(slab)] = found
    return ranks


def _values(array: NDArray[np.generic]) -> NDArray[np.generic] | None:
    """The distinct values, None if they are too many or no integers."""
    flat = array.ravel(order="K")
    values: NDArray[np.generic] = flat[:0]
    for first in range(0, flat.size, _SLAB_VOXELS):
        slab = flat[first : first + _SLAB_VOXELS]
        if not _integer_valued(slab):
            return None
        values = np.union1d(values, np.unique(slab))
        if len(values) > MAX_LABELS:
            return None
    return values


def _integer_valued(array: NDArray[np.generic]) -> bool:
    return bool(array.dtype.kind in "iub" or (array.dtype.kind == "f" and (np.trunc(array) == array).all()))
