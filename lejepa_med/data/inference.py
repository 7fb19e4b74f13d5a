"""From a prepared volume to the windows that a backbone sees, by an `InferenceSpec`.

The same function serves embedding, probes, the online probe and the re-estimation of BatchNorm statistics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lejepa_med.data.cache import CachedVolume
from lejepa_med.errors import DataError
from lejepa_med.resampling import resize
from lejepa_med.spec import InferenceSpec

_PLANE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Windows:
    """`images` [window, channel, *size]; `starts` [window, axis], in voxels; `extent` of the padded volume, voxels."""

    images: Float[Tensor, "window channel *size"]
    starts: Float[Tensor, "window axis"]
    extent: tuple[int, ...]
    are_slices: bool = False
    """Whether each window is a slice of a volume."""


def to_unit(
    array: NDArray[np.generic], modality: str, ct_window_hu: tuple[float, float]
) -> Float[Tensor, " 1 *spatial"]:
    """A prepared array as float32 in [0, 1], with a channel axis."""
    values = torch.from_numpy(np.array(array)).to(torch.float32)[None]
    if modality == "ct":
        low, high = ct_window_hu
        return ((values - low) / (high - low)).clamp(0, 1)
    return values / 255.0


def windows(volume: CachedVolume, spec: InferenceSpec) -> Windows:
    """The windows of one volume. 2D windows on a volume: the non-empty slices of the planes asked for.

    The volume is brought to `pitch_mm`, centred in the smallest grid of windows that covers it (up to a tenth of a
    window may be cut off), and padded with air. A picture without physical size is resized to the window as a whole.
    """
    image = to_unit(volume.array, volume.modality, spec.ct_window_hu)
    if volume.spacing_mm is None:
        image = resize(image, spec.window) if image.ndim - 1 == len(spec.window) else image
    elif spec.pitch_mm is not None:
        spacing = volume.spacing_mm
        size = [max(1, round(side * mm / spec.pitch_mm)) for side, mm in zip(image.shape[1:], spacing, strict=True)]
        image = resize(image, size)
    if image.ndim - 1 == len(spec.window):
        return _grid(image, spec.window, spec.overlap)
    if image.ndim == 4 and len(spec.window) == 2:
        return _slices(image, spec)
    raise DataError(f"series {volume.series_key}: a {image.ndim - 1}D image does not fit a window of {spec.window}")


def _grid(image: Float[Tensor, " channel *spatial"], window: tuple[int, ...], overlap: float) -> Windows:
    starts_by_axis, extent = [], []
    for size, side in zip(image.shape[1:], window, strict=True):
        step = side * (1 - overlap)
        count = max(1, math.ceil((size - side) / step + 1 - 0.1))
        covered = max(side, round(side + (count - 1) * step)) if count > 1 else side
        extent.append(covered)
        starts_by_axis.append([round(i * (covered - side) / max(1, count - 1)) for i in range(count)])
    padded = centred(image, tuple(extent))
    starts = torch.cartesian_prod(*[torch.tensor(axis) for axis in starts_by_axis]).reshape(-1, len(window))
    pieces = []
    for start in starts.tolist():
        box = tuple(slice(low, low + side) for low, side in zip(start, window, strict=True))
        pieces.append(padded[(slice(None), *box)])
    return Windows(torch.stack(pieces), starts.to(torch.float32), tuple(extent))


def _slices(image: Float[Tensor, "channel a b c"], spec: InferenceSpec) -> Windows:
    pieces = []
    for plane in spec.planes:
        for piece in image.movedim(1 + _PLANE_AXES[plane], 0):
            if float(piece.mean()) > 0.01:
                pieces.append(centred(piece, spec.window))
    if not pieces:
        pieces = [centred(image[..., image.shape[-1] // 2], spec.window)]
    return Windows(torch.stack(pieces), torch.zeros(len(pieces), 2), tuple(spec.window), are_slices=True)


def centred(image: Float[Tensor, " channel *spatial"], size: tuple[int, ...]) -> Float[Tensor, " channel *out"]:
    """Cut or padded with zeros around the centre to `size`."""
    out = image.new_zeros((image.shape[0], *size))
    source, target = [slice(None)], [slice(None)]
    for have, want in zip(image.shape[1:], size, strict=True):
        keep = min(have, want)
        source.append(slice((have - keep) // 2, (have - keep) // 2 + keep))
        target.append(slice((want - keep) // 2, (want - keep) // 2 + keep))
    out[tuple(target)] = image[tuple(source)]
    return out
