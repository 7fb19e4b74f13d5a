"""The steps from a scan to a prepared array, each a pure function; `prepare_volume` is their fixed order.

Prepared arrays are `[R, A, S]` (a 2D image: `[row, column]`). MRI and images: uint8, 0..255 for [0, 1]. CT: int16, HU.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec

CODE_VERSION = 1
"""Raised whenever the result of any step changes; part of every cache key."""

_AIR_FRACTION = 0.12  # of the 98th percentile: MRI noise in air stays below, fat-free tissue above
_BODY_HU = -500.0


@dataclass(frozen=True)
class Prepared:
    """A prepared array with its voxel size in mm (`None` for pictures without one) and its affine."""

    array: NDArray[np.generic]
    spacing_mm: tuple[float, ...] | None
    affine: NDArray[np.float64]
    modality: str


def prepare_volume(volume: Volume, spec: PreprocessSpec) -> Prepared:
    """Orientation, resampling, foreground, intensity.

    Raises:
        DataError: the modality is unknown, or nothing but a constant is left.
    """
    if volume.modality == "image":
        return _prepare_image(volume, spec)
    if volume.modality not in ("mri", "ct", "pet"):
        raise DataError("modality is unknown; give it in the prepare config, e.g. modality: mri")
    volume = resample(reorient(volume), spec.spacing_mm)
    array = volume.array.astype(np.float32)
    if not np.isfinite(array).all() or float(array.min()) == float(array.max()):
        raise DataError("the volume is constant or holds values that are not finite")
    mask = body_mask(array, volume.modality)
    affine = volume.affine
    if spec.foreground:
        box = bounding_box(mask, np.ceil(spec.foreground_margin_mm / np.asarray(spec.spacing_mm)).astype(int))
        array, mask = array[box], mask[box]
        affine = affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array([side.start for side in box], dtype=np.float64)
    stored = to_hu(array, spec) if volume.modality == "ct" else to_unit_range(array, mask, spec)
    return Prepared(np.ascontiguousarray(stored), spec.spacing_mm, affine, volume.modality)


def reorient(volume: Volume) -> Volume:
    """Axes permuted and flipped to the closest R, A, S; values are not interpolated."""
    orientation = nib.orientations.io_orientation(volume.affine)
    array = nib.orientations.apply_orientation(volume.array, orientation)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.array.shape)
    return Volume(array, affine, volume.modality)


def resample(volume: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """On a grid with orthogonal axes and the given voxel size; a sheared stack (tilted gantry) becomes upright.

    The first and second axis keep their direction (after orthogonalisation); axes that shrink are smoothed before.
    """
    steps = volume.affine[:3, :3]
    directions = _orthogonal(steps)
    target = directions * np.asarray(spacing_mm)
    corners = np.stack(np.meshgrid(*[(-0.5, size - 0.5) for size in volume.array.shape], indexing="ij"), -1)
    world = corners.reshape(-1, 3) @ steps.T + volume.affine[:3, 3]
    along = world @ directions  # positions of the corners along the new axes, mm
    low, extent = along.min(0), np.ptp(along, axis=0)
    shape = np.maximum(1, np.round(extent / spacing_mm - 1e-3)).astype(int)
    first = low + (extent - (shape - 1) * np.asarray(spacing_mm)) / 2
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = target, directions @ first
    back = np.linalg.inv(volume.affine) @ affine
    array = volume.array.astype(np.float32)
    factor = np.asarray(spacing_mm) / np.asarray(volume.spacing_mm)
    if (factor > 1.01).any():
        array = ndimage.gaussian_filter(array, np.maximum(0, (factor - 1) / 2), mode="nearest")
    sheared = not np.allclose(back[:3, :3], np.diag(np.diag(back[:3, :3])), atol=1e-4)
    outside = float(array.min()) if sheared else 0.0
    mode = "constant" if sheared else "nearest"
    resampled = ndimage.affine_transform(
        array, back[:3, :3], back[:3, 3], output_shape=tuple(shape), order=1, mode=mode, cval=outside
    )
    return Volume(resampled, affine, volume.modality)


def _orthogonal(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    first = steps[:, 0] / np.linalg.norm(steps[:, 0])
    second = steps[:, 1] - first * (first @ steps[:, 1])
    second /= np.linalg.norm(second)
    third = np.cross(first, second)
    third *= np.sign(third @ steps[:, 2]) or 1.0
    return np.stack([first, second, third], axis=1)


def body_mask(array: NDArray[np.float32], modality: str) -> NDArray[np.bool_]:
    """Where the patient is: the largest connected region over an air threshold, holes kept."""
    threshold = _BODY_HU if modality == "ct" else _AIR_FRACTION * float(np.percentile(array, 98))
    mask: NDArray[np.bool_] = array > threshold
    opened = ndimage.binary_opening(mask) if min(mask.shape) >= 5 else mask
    labels, count = ndimage.label(opened)
    if count == 0:
        return mask if mask.any() else np.ones_like(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: NDArray[np.bool_] = labels == int(sizes.argmax())
    return largest


def bounding_box(mask: NDArray[np.bool_], margin: NDArray[np.int_]) -> tuple[slice, ...]:
    """Slices around the true part of a mask, with a margin in voxels."""
    box = []
    for axis, extra in enumerate(margin):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(0, int(inside[0] - extra)), min(mask.shape[axis], int(inside[-1] + 1 + extra))))
    return tuple(box)


def to_unit_range(array: NDArray[np.float32], mask: NDArray[np.bool_], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Percentiles of the body to 0 and 1, stored in 8 bits."""
    low, high = np.percentile(array[mask], spec.mri_percentiles)
    if high <= low:
        raise DataError("the foreground is constant")
    stored: NDArray[np.uint8] = np.round(np.clip((array - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return stored


def to_hu(array: NDArray[np.float32], spec: PreprocessSpec) -> NDArray[np.int16]:
    """HU clipped to the stored range; windows come later, in the views."""
    return np.round(np.clip(array, *spec.ct_range_hu)).astype(np.int16)


def _prepare_image(volume: Volume, spec: PreprocessSpec) -> Prepared:
    array = volume.array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(array).all() or low == high:
        raise DataError("the image is constant or holds values that are not finite")
    scale = spec.image_size / max(array.shape)
    size = tuple(max(1, round(side * scale)) for side in array.shape)
    unit = array / 255.0 if volume.array.dtype == np.uint8 else (array - low) / (high - low)
    picture = Image.fromarray(unit.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR)
    canvas = np.zeros((spec.image_size, spec.image_size), dtype=np.uint8)
    corner = tuple((spec.image_size - side) // 2 for side in size)
    values = np.round(np.clip(np.asarray(picture), 0, 1) * 255).astype(np.uint8)
    canvas[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = values
    return Prepared(canvas, None, np.eye(4), "image")
