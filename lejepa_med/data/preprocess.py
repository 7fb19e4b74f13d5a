"""The steps from a scan to a prepared array, each a pure function; `prepare_volume` is their fixed order.

Prepared arrays are `[R, A, S]` (a 2D image: `[row, column]`). MRI and images: uint8, 0..255 for [0, 1]. CT: int16, HU.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.data.foreground import body_mask, bounding_box
from lejepa_med.data.regridding import resample
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec

CODE_VERSION = 2
"""Raised whenever the result of any step changes; part of every cache key."""

_CONSTANT = "the volume is constant or holds values that are not finite"


@dataclass(frozen=True)
class Prepared:
    """A prepared array with its voxel size in mm (`None` for pictures without one) and its affine."""

    array: NDArray[np.generic]
    spacing_mm: tuple[float, ...] | None
    affine: NDArray[np.float64]
    modality: str


def prepare_volume(volume: Volume, spec: PreprocessSpec) -> Prepared:
    """Clipping of CT, orientation, resampling, foreground, intensity.

    Raises:
        DataError: the modality is unknown, nothing but a constant is left, or slices lie too far apart.
    """
    if volume.modality == "image":
        return _prepare_image(volume, spec)
    if volume.modality not in ("mri", "ct", "pet"):
        raise DataError("modality is unknown; give it in the prepare config, e.g. modality: mri")
    _check_values(volume)
    if volume.modality == "ct":
        volume = clip(volume, spec.ct_range_hu)
    volume = reorient(volume)
    _check_upsampling(volume, spec)
    volume = resample(volume, spec.spacing_mm)
    array = volume.array.astype(np.float32, copy=False)
    if float(array.min()) == float(array.max()):
        raise DataError(_CONSTANT)
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


def clip(volume: Volume, limits: tuple[float, float]) -> Volume:
    """Values within limits, of the same type: padding of -3024 HU and metal must not bleed into their neighbours."""
    low, high = limits
    if np.issubdtype(volume.array.dtype, np.integer):
        holds = np.iinfo(volume.array.dtype.name)
        low, high = max(np.ceil(low), holds.min), min(np.floor(high), holds.max)
    if low <= volume.array.min() and volume.array.max() <= high:
        return volume
    bounds = np.array([low, high]).astype(volume.array.dtype)
    return Volume(np.clip(volume.array, bounds[0], bounds[1]), volume.affine, volume.modality)


def _check_values(volume: Volume) -> None:
    low, high = float(volume.array.min()), float(volume.array.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low == high:
        raise DataError(_CONSTANT)


def _check_upsampling(volume: Volume, spec: PreprocessSpec) -> None:
    for source, target in zip(volume.spacing_mm, spec.spacing_mm, strict=True):
        if source > spec.max_upsampling * target * (1 + 1e-6):
            raise DataError(
                f"voxels too far apart: {source:.3g} mm, and interpolating them to {target:.3g} mm would invent most "
                f"of the volume; raise preprocess.spacing_mm, or max_upsampling ({spec.max_upsampling:.3g})"
            )


def to_unit_range(array: NDArray[np.float32], mask: NDArray[np.bool_], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Percentiles of the body to 0 and 1, stored in 8 bits."""
    low, high = np.percentile(array[mask], spec.mri_percentiles, overwrite_input=True)
    if high <= low:
        raise DataError("the foreground is constant")
    stored = np.empty(array.shape, dtype=np.uint8)
    for plane, values in zip(stored, array, strict=True):  # by planes, for their temporary copies
        plane[:] = np.round(np.clip((values - low) / (high - low), 0, 1) * 255)
    return stored


def to_hu(array: NDArray[np.float32], spec: PreprocessSpec) -> NDArray[np.int16]:
    """HU clipped to the stored range; windows come later, in the views."""
    stored = np.empty(array.shape, dtype=np.int16)
    for plane, values in zip(stored, array, strict=True):
        plane[:] = np.round(np.clip(values, *spec.ct_range_hu))
    return stored


def _prepare_image(volume: Volume, spec: PreprocessSpec) -> Prepared:
    array = volume.array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(array).all() or low == high:
        raise DataError("the image is constant or holds values that are not finite")
    unit = array / 255.0 if volume.array.dtype == np.uint8 else (array - low) / (high - low)
    size, corner = canvas_place(array.shape, spec.image_size)
    picture = Image.fromarray(unit.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR)
    canvas = np.zeros((spec.image_size, spec.image_size), dtype=np.uint8)
    values = np.round(np.clip(np.asarray(picture), 0, 1) * 255).astype(np.uint8)
    canvas[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = values
    return Prepared(canvas, None, np.eye(4), "image")


def canvas_place(shape: tuple[int, ...], side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size of a picture whose longer side becomes `side` pixels, and its corner in the middle of a square of that."""
    scale = side / max(shape)
    rows, columns = (max(1, round(length * scale)) for length in shape)
    return (rows, columns), ((side - rows) // 2, (side - columns) // 2)
