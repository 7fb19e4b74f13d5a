"""Slices of prepared volumes in radiological convention, as pictures `[row, column]` in 0..255.

Axial and coronal: the patient's right is on the left of the picture, as if seen from the feet or from the front.
Sagittal: the face looks left. Anterior and superior are up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.spec import InferenceSpec

Plane = Literal["axial", "coronal", "sagittal"]
PLANE_AXES: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis of a volume `[R, A, S]` that each plane cuts across."""
_GAP = 4
_CT_WINDOW_HU: tuple[float, float] = InferenceSpec.model_fields["ct_window_hu"].default


def grey(array: NDArray[np.generic], ct_window_hu: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Values as they are shown: uint8 as it is, floats from [0, 1], other integers are HU seen through a CT window."""
    if array.dtype == np.uint8:
        return np.asarray(array, dtype=np.uint8)
    low, high = (0.0, 1.0)
    if np.issubdtype(array.dtype, np.integer):
        low, high = ct_window_hu or _CT_WINDOW_HU
    unit = (array.astype(np.float32) - low) / (high - low)
    shown: NDArray[np.uint8] = np.round(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    return shown


def turn(slice_: NDArray[np.generic]) -> NDArray[np.generic]:
    """A slice `[R, A]`, `[R, S]` or `[A, S]` (colours after that) as it is displayed."""
    return slice_.swapaxes(0, 1)[::-1, ::-1]


def plane_slice(array: NDArray[np.generic], plane: Plane, index: int | None = None) -> NDArray[np.generic]:
    """Slice `index` (the middle one if None) of a volume `[R, A, S]`, as it is displayed; values unchanged."""
    axis = PLANE_AXES[plane]
    return turn(np.take(array, array.shape[axis] // 2 if index is None else index, axis=axis))


def square_pixels(picture: NDArray[np.uint8], plane: Plane, spacing_mm: Sequence[float]) -> NDArray[np.uint8]:
    """The picture resampled so that both sides of a pixel are the smaller of its two spacings."""
    across, down = (mm for axis, mm in enumerate(spacing_mm) if axis != PLANE_AXES[plane])
    if across == down:
        return picture
    pitch = min(across, down)
    size = (round(picture.shape[1] * across / pitch), round(picture.shape[0] * down / pitch))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def middle_slice(
    array: NDArray[np.generic], spacing_mm: Sequence[float] | None = None, plane: Plane = "axial"
) -> NDArray[np.uint8]:
    """The middle slice of a volume in one plane; a 2D image as it is."""
    if array.ndim == 2:
        return grey(array)
    picture = np.ascontiguousarray(grey(plane_slice(array, plane)))
    return picture if spacing_mm is None else square_pixels(picture, plane, spacing_mm)


def middle_slices(array: NDArray[np.generic], spacing_mm: Sequence[float] | None = None) -> NDArray[np.uint8]:
    """Axial, coronal and sagittal middle slices side by side, centred on black; a 2D image as it is."""
    if array.ndim == 2:
        return grey(array)
    planes: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
    pictures = [middle_slice(array, spacing_mm, plane) for plane in planes]
    height = max(len(picture) for picture in pictures)
    out = np.zeros((height, sum(picture.shape[1] for picture in pictures) + 2 * _GAP), dtype=np.uint8)
    left = 0
    for picture in pictures:
        top = (height - len(picture)) // 2
        out[top : top + len(picture), left : left + picture.shape[1]] = picture
        left += picture.shape[1] + _GAP
    return out
