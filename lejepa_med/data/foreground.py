"""Where the patient is in a scan: what is brighter than air and hangs together, in one large piece or several."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_AIR_FRACTION = 0.12  # of the 98th percentile: MRI noise in air stays below, fat-free tissue above
_BODY_HU = -500.0
_PART = 0.1  # of the largest piece: a second leg or arm is body, a table's shell or a head holder is not
_THICK = 5  # voxels: thinner axes are left out of the opening, which would erase them


def body_mask(array: NDArray[np.float32], modality: str) -> NDArray[np.bool_]:
    """The pieces over an air threshold that hold at least a tenth of the largest one's voxels; holes are kept."""
    order = np.argsort([-abs(stride) for stride in array.strides], kind="stable")  # as it lies in memory
    ordered, threshold = array.transpose(order), air_threshold(array, modality)
    mask = _opened(ordered > threshold)
    labels, count = ndimage.label(mask)
    if count == 0:
        mask = ordered > threshold
        mask = mask if mask.any() else np.ones_like(mask)
    else:
        sizes = np.zeros(count + 1, dtype=np.int64)
        for plane in labels:  # by planes: these functions would copy all labels in 64 bits
            sizes += np.bincount(plane.ravel(), minlength=count + 1)
        sizes[0] = 0
        kept = sizes >= _PART * sizes.max()
        for number, plane in enumerate(labels):
            mask[number] = kept[plane]
    result: NDArray[np.bool_] = mask.transpose(np.argsort(order))
    return result


def air_threshold(array: NDArray[np.float32], modality: str) -> float:
    """Between air and the patient. CT: -500 HU. Else a share of the bright end, and over the noise of the corners."""
    if modality == "ct":
        return _BODY_HU
    bright = float(np.percentile(array, 98))
    if modality == "pet":
        return _AIR_FRACTION * _without_hot_spots(array, bright)
    return max(_AIR_FRACTION * bright, _noise_ceiling(array, bright))


def _without_hot_spots(array: NDArray[np.float32], bright: float) -> float:
    """Bladder and tumours may be 50 times brighter than the body around them."""
    usual = float(np.percentile(array, 90))
    return min(bright, 5 * usual) if usual > 0.01 * bright else bright


def _noise_ceiling(array: NDArray[np.float32], bright: float) -> float:
    """What background noise stays below where it is strong; 0 unless half of the corners show the same dark noise.

    Below one standard deviation over its mean the opening removes noise by itself. Three leave out under 1 % of it,
    whatever the number of coils.
    """
    sides = [max(1, size // 10) for size in array.shape]
    blocks = []
    for place in itertools.product(*[(slice(None, side), slice(-side, None)) for side in sides]):
        block = array[place].astype(np.float64)
        if block.size > 1 and block.std() > 0:
            blocks.append((float(block.mean()), float(block.std())))
    darkest = sorted(blocks)[:4]
    if len(darkest) < 4 or darkest[-1][0] > 1.3 * darkest[0][0]:
        return 0.0
    strong = any(mean + deviation > _AIR_FRACTION * bright for mean, deviation in darkest)
    ceiling = max(mean + 3 * deviation for mean, deviation in darkest)
    return ceiling if strong and ceiling < 0.5 * bright else 0.0


def _opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Erosion and dilation by a cross of three voxels, as scipy's `binary_opening` (which takes ten times as long)."""
    axes = [axis for axis, size in enumerate(mask.shape) if size >= _THICK]
    if not axes:
        return mask
    eroded = mask.copy()
    for axis in axes:
        inner, shifted = np.moveaxis(eroded, axis, 0), np.moveaxis(mask, axis, 0)
        inner[1:] &= shifted[:-1]
        inner[:-1] &= shifted[1:]
        inner[0] = inner[-1] = False
    opened = eroded.copy()
    for axis in axes:
        inner, shifted = np.moveaxis(opened, axis, 0), np.moveaxis(eroded, axis, 0)
        inner[1:] |= shifted[:-1]
        inner[:-1] |= shifted[1:]
    return opened


def bounding_box(mask: NDArray[np.bool_], margin: NDArray[np.int_]) -> tuple[slice, ...]:
    """Slices around the true part of a mask, with a margin in voxels."""
    box = []
    for axis, extra in enumerate(margin):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(0, int(inside[0] - extra)), min(mask.shape[axis], int(inside[-1] + 1 + extra))))
    return tuple(box)
