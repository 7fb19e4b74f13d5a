"""Labelled volumes as windows for training, and windows of a test volume put together again, voxel by voxel.

A case is `[plane, channel, *spatial]`: one plane, or the slices along one axis for a 2D backbone on volumes. Volumes
are brought to the pitch of the inference spec, pictures to its window; predictions go back to the prepared voxels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lejepa_med.config.segmentation import SegmentationRecipe
from lejepa_med.data.cache import Cache
from lejepa_med.data.inference import to_unit
from lejepa_med.data.sources import PLANE_AXIS
from lejepa_med.errors import DataError
from lejepa_med.resampling import fitting, resize
from lejepa_med.spec import InferenceSpec

_WINDOWS_PER_PASS = 8
_RIGHT, _COLUMN = 0, 1  # axes that are never flipped: left-right of a volume and of a picture


@dataclass(frozen=True)
class Geometry:
    """Windows of an inference spec, and the mask values that are classes 1, 2, ...

    `fitted`: a plane is brought to the window's longest side in true proportions, whatever its size.
    """

    spec: InferenceSpec
    values: tuple[int, ...]
    fitted: bool = False

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(self.spec.window)


@dataclass(frozen=True)
class Case:
    """`image` and `classes` `[plane, *spatial]` at the pitch of the windows, `truth` as prepared.

    `slice_axis` is that of the planes, -1 where there is one plane. `flips` are the spatial axes that may be mirrored.
    """

    image: Float[Tensor, "plane channel *spatial"]
    classes: Int64[Tensor, " plane *spatial"]
    truth: NDArray[np.int64]
    spacing_mm: tuple[float, ...]
    slice_axis: int
    flips: tuple[int, ...]

    @property
    def has_foreground(self) -> bool:
        return bool((self.classes > 0).any())


def load_case(cache: Cache, series_key: str, geometry: Geometry) -> Case:
    """One volume with its mask. Raises DataError if the windows are 3D and it is a picture."""
    volume, spec = cache.read(series_key), geometry.spec
    table = np.zeros(256, dtype=np.int64)
    table[list(geometry.values)] = range(1, len(geometry.values) + 1)
    truth = table[cache.read_mask(series_key)]
    image = to_unit(volume.array, volume.modality, spec.ct_window_hu)
    dims = len(spec.window)
    if truth.ndim not in (dims, dims + 1) or (truth.ndim == 3 and volume.spacing_mm is None and dims == 2):
        raise DataError(f"series {series_key}: a {truth.ndim}D image does not fit a window of {spec.window}")
    spacing = volume.spacing_mm or (1.0,) * truth.ndim
    axis, names = -1, tuple(range(truth.ndim))
    flips = tuple(name for name in names if name != (_RIGHT if truth.ndim == 3 else _COLUMN))
    planes, classes = image[None], torch.from_numpy(truth)[None]
    if truth.ndim > dims:
        axis = PLANE_AXIS[spec.planes[0]]
        planes, classes = image.movedim(1 + axis, 0), torch.from_numpy(truth).movedim(axis, 0)
        kept = [name for name in names if name != axis]
        flips = tuple(place for place, name in enumerate(kept) if name != _RIGHT)
    in_plane = tuple(mm for name, mm in enumerate(spacing) if name != axis)
    sides = tuple(classes.shape[1:])
    if geometry.fitted:
        size = fitting(sides, in_plane, max(spec.window))
    else:
        size = _size_seen(sides, None if volume.spacing_mm is None else in_plane, spec)
    if size != tuple(classes.shape[1:]):
        planes = torch.stack([resize(plane, size) for plane in planes])
        classes = functional.interpolate(classes[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
    return Case(planes.contiguous(), classes.contiguous(), truth, spacing, axis, flips)


def _size_seen(sides: tuple[int, ...], spacing: tuple[float, ...] | None, spec: InferenceSpec) -> tuple[int, ...]:
    if spacing is None:
        return tuple(spec.window)
    if spec.pitch_mm is None:
        return sides
    return tuple(max(1, round(side * mm / spec.pitch_mm)) for side, mm in zip(sides, spacing, strict=True))


def training_windows(
    cases: Sequence[Case], geometry: Geometry, recipe: SegmentationRecipe, generator: np.random.Generator
) -> tuple[Float[Tensor, "window channel *size"], Int64[Tensor, " window *size"]]:
    """A batch of windows of random cases, some around a voxel of a random class, shifted and mirrored."""
    images, targets = [], []
    for _ in range(recipe.batch_size):
        case = cases[int(generator.integers(len(cases)))]
        plane, centre = _centre(case, recipe.foreground_share, generator)
        start = []
        for middle, side, have in zip(centre, geometry.window, case.classes.shape[1:], strict=True):
            wanted = middle - side // 2 + int(generator.integers(-(side // 4), side // 4 + 1))
            low, high = min(0, (have - side) // 2), max(have - side, (have - side) // 2)
            shift = int(generator.integers(-recipe.shift_voxels, recipe.shift_voxels + 1))
            start.append(int(np.clip(wanted, low, high)) + shift)
        image = _cut(case.image[plane], start, geometry.window)
        target = _cut(case.classes[plane][None], start, geometry.window)[0]
        mirrored = [axis for axis in case.flips if recipe.flips and generator.random() < 0.5]
        images.append(image.flip([1 + axis for axis in mirrored]))
        targets.append(target.flip(mirrored))
    return torch.stack(images), torch.stack(targets)


def _centre(case: Case, share: float, generator: np.random.Generator) -> tuple[int, list[int]]:
    """A plane and a voxel in it: of a random class of the case, or any."""
    present = torch.unique(case.classes)
    present = present[present > 0]
    if len(present) and generator.random() < share:
        value = present[int(generator.integers(len(present)))]
        voxels = (case.classes == value).nonzero()
        plane, *centre = voxels[int(generator.integers(len(voxels)))].tolist()
        return plane, centre
    plane, *centre = (int(generator.integers(side)) for side in case.classes.shape)
    return plane, centre


def _cut(array: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """`[channel, *size]` from `start`, zeros beyond the edges."""
    out = array.new_zeros((array.shape[0], *size))
    source, target = [slice(None)], [slice(None)]
    for low, side, have in zip(start, size, array.shape[1:], strict=True):
        first, last = max(0, low), min(have, low + side)
        source.append(slice(first, max(first, last)))
        target.append(slice(first - low, max(first, last) - low))
    out[tuple(target)] = array[tuple(source)]
    return out


def window_starts(have: int, side: int, overlap: float) -> list[int]:
    """Starts of windows that cover every voxel of an axis; one, centred, where the axis is shorter than a window."""
    if have <= side:
        return [(have - side) // 2]
    count = math.ceil((have - side) / (side * (1 - overlap)) - 1e-9) + 1
    return [round(number * (have - side) / (count - 1)) for number in range(count)]


def stitched(
    predict: Callable[[Float[Tensor, "window channel *size"]], Float[Tensor, "window output *size"]],
    case: Case,
    geometry: Geometry,
    overlap: float,
) -> Float[Tensor, " output *voxels"]:
    """Logits of the prepared voxels: the mean over windows that overlap, enlarged linearly from the pitch seen."""
    sides = tuple(case.classes.shape[1:])
    axes = [window_starts(have, side, overlap) for have, side in zip(sides, geometry.window, strict=True)]
    places = list(itertools.product(range(len(case.image)), itertools.product(*axes)))
    total: Tensor | None = None
    count = torch.zeros(len(case.image), 1, *sides)
    for first in range(0, len(places), _WINDOWS_PER_PASS):
        batch = places[first : first + _WINDOWS_PER_PASS]
        logits = predict(torch.stack([_cut(case.image[plane], start, geometry.window) for plane, start in batch]))
        if total is None:
            total = logits.new_zeros(len(case.image), logits.shape[1], *sides)
        for (plane, start), piece in zip(batch, logits, strict=True):
            inside, within = _overlap(start, geometry.window, sides)
            total[plane][inside] += piece[within]
            count[plane][inside] += 1
    assert total is not None
    mean = total / count
    voxels = tuple(side for axis, side in enumerate(case.truth.shape) if axis != case.slice_axis)
    if voxels != sides:
        mean = functional.interpolate(mean, size=voxels, mode="bilinear" if len(sides) == 2 else "trilinear")
    return mean[0] if case.slice_axis < 0 else mean.movedim(0, 1 + case.slice_axis)


def _overlap(
    start: Sequence[int], window: Sequence[int], sides: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a window that is in the case, as places in the case and in the window, channels first."""
    inside = [(max(0, low), min(have, low + side)) for low, side, have in zip(start, window, sides, strict=True)]
    within = [(first - low, last - low) for (first, last), low in zip(inside, start, strict=True)]
    every = slice(None)
    return (every, *(slice(*pair) for pair in inside)), (every, *(slice(*pair) for pair in within))
