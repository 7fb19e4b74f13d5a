"""Base crops for training: one read per sample and step, all views come from it.

A source says what there is (`len`, `patients`, `read`); `StepDataset` turns a step number into a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from lejepa_med.data.cache import Cache
from lejepa_med.data.sampler import StepSampler
from lejepa_med.data.splits import is_monitored
from lejepa_med.errors import DataError
from lejepa_med.randomness import generator

_PLANE_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Item:
    """A prepared array, not yet cropped: `array` `[channel, *spatial]` (may be a memory map), voxel size and kind."""

    array: NDArray[np.generic]
    spacing_mm: tuple[float, ...]
    is_ct: bool
    key: str


@runtime_checkable
class Source(Protocol):
    """Where items come from. `patients[i]` groups items that must not meet in a batch, `groups[i]` near duplicates.

    `patients_known` is False if each item stands for a patient only because nobody said whose it is.
    """

    patients: list[str]
    groups: list[str]
    patients_known: bool
    keys: list[str]

    def read(self, index: int, draw: torch.Generator) -> Item:
        """Item `index`; `draw` decides what is random about it (which slice)."""


class CacheSource:
    """Volumes, slices or images of a cache. `plane` is given for slices."""

    patients_known = True

    def __init__(self, cache: Cache, table: pd.DataFrame, plane: str | None = None) -> None:
        self.cache, self.plane = cache, plane
        self.keys = [str(key) for key in table["series_key"]]
        self.patients = [str(key) for key in table["patient_key"]]
        self.groups = [str(key) for key in table["group_key"]] if "group_key" in table else self.keys

    def read(self, index: int, draw: torch.Generator) -> Item:
        volume = self.cache.read(self.keys[index])
        array, spacing = volume.array, volume.spacing_mm or (1.0,) * volume.array.ndim
        if self.plane is not None and array.ndim == 3:
            axis = _PLANE_AXIS[self.plane]
            position = 0.15 + 0.7 * float(torch.rand(1, generator=draw))  # the ends of a scan are mostly air
            array = np.take(array, int(position * array.shape[axis]), axis=axis)
            spacing = spacing[:axis] + spacing[axis + 1 :]
        return Item(array[None], spacing, volume.modality == "ct", self.keys[index])


class DatasetSource:
    """Any map-style torch dataset: tensors `[channel, *spatial]` in [0, 1], or dictionaries or tuples holding one.

    Each item counts as a patient of its own unless `patients` (one id per item) says otherwise.
    """

    def __init__(self, dataset: Any, patients: Sequence[Any] | None = None, spacing_mm: tuple[float, ...] = ()) -> None:
        if len(dataset) == 0:
            raise DataError("the dataset is empty")
        self.dataset, self.spacing_mm = dataset, spacing_mm
        self.keys = [f"item {number}" for number in range(len(dataset))]
        self.patients_known = patients is not None
        self.patients = self.keys if patients is None else number_patients(patients, len(dataset))
        self.groups = self.keys

    def read(self, index: int, draw: torch.Generator) -> Item:
        del draw
        item = self.dataset[index]
        if isinstance(item, Mapping):
            item = item["image"]
        elif isinstance(item, tuple | list):
            item = item[0]
        array = np.asarray(item, dtype=np.float32) * 255.0
        return Item(array, self.spacing_mm or (1.0,) * (array.ndim - 1), False, self.keys[index])


class ListSource:
    """Prepared items in memory. `patients` names that of each; without, items of one key are a patient of their own.

    `largest` is the largest extent along each axis.
    """

    def __init__(self, items: list[Item], patients: list[str] | None = None) -> None:
        if not items:
            raise DataError("the list of scans is empty")
        self.items = items
        self.keys = [item.key for item in items]
        self.patients_known = patients is not None
        self.patients = self.keys if patients is None else patients
        self.groups = [str(number) for number in range(len(items))]  # several scans of one file share its key
        self.largest = tuple(max(sides) for sides in zip(*[item.array.shape[1:] for item in items], strict=True))

    def read(self, index: int, draw: torch.Generator) -> Item:
        del draw
        return self.items[index]


class Subset:
    """Some items of another source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)
        self.patients_known = source.patients_known
        self.patients = [source.patients[index] for index in self.indices]
        self.groups = [source.groups[index] for index in self.indices]
        self.keys = [source.keys[index] for index in self.indices]

    def read(self, index: int, draw: torch.Generator) -> Item:
        return self.source.read(self.indices[index], draw)


def number_patients(ids: Sequence[Any], items: int) -> list[str]:
    """`patient 0`, `patient 1`, ... as ids first appear: an id must not reach a file, nor its hash without a secret.

    Raises:
        DataError: there are not as many ids as items, or one is empty.
    """
    texts = ["" if value is None or value != value else str(value).strip() for value in ids]
    if len(texts) != items:
        raise DataError(f"patients: {len(texts)} ids for {items} items; give one per item, in their order")
    if "" in texts:
        raise DataError(f"patients: item {texts.index('')} has no id; give one per item")
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return [f"patient {numbers[text]}" for text in texts]


def split_monitored(source: Source, fraction: float, seed: int) -> tuple[Source, Source | None]:
    """What to train on, and the patients kept aside for the held-out loss (None: too few, not known, none asked for).

    Items of which it is not known whose they are would have their patient on both sides.
    """
    if not source.patients_known:
        return source, None
    monitored = is_monitored(source.patients, fraction, seed)
    if not monitored.any():
        return source, None
    return Subset(source, np.flatnonzero(~monitored).tolist()), Subset(source, np.flatnonzero(monitored).tolist())


@dataclass(frozen=True)
class Batch:
    """Base crops `images` `[sample, channel, *spatial]` as prepared; `patients` holds one number per patient."""

    images: Tensor
    spacing_mm: tuple[float, ...]
    is_ct: Bool[Tensor, " sample"]
    keys: list[str]
    patients: list[int]

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.spacing_mm, self.is_ct, self.keys, self.patients)


class StepDataset(torch.utils.data.Dataset[Batch]):
    """`dataset[step]` is the batch of that step: base crops of `size` voxels at random places, padded with air."""

    def __init__(self, source: Source, sampler: StepSampler, size: tuple[int, ...], seed: int) -> None:
        self.source, self.sampler, self.size, self.seed = source, sampler, size, seed
        self._codes = {patient: code for code, patient in enumerate(sorted(set(source.patients)))}

    def __getitem__(self, step: int) -> Batch:
        return self.gather(self.sampler.batch(step), step)

    def gather(self, chosen: Sequence[int], step: int, first_position: int = 0) -> Batch:
        """Base crops of the items `chosen`, at the places that `step` and their position in its batch decide."""
        items, arrays = [], []
        for position, index in enumerate(chosen, first_position):
            draw = generator("base crop", self.seed, step, position)
            item = self.source.read(index, draw)
            arrays.append(base_crop(item, self.size, draw))
            items.append(item)
        if len({array.dtype for array in arrays}) > 1:
            arrays = [array.astype(np.float32) for array in arrays]
        return Batch(
            images=torch.from_numpy(np.stack(arrays)),
            spacing_mm=items[0].spacing_mm,
            is_ct=torch.tensor([item.is_ct for item in items]),
            keys=[item.key for item in items],
            patients=[self._codes[self.source.patients[index]] for index in chosen],
        )


def base_crop(item: Item, size: tuple[int, ...], draw: torch.Generator) -> NDArray[np.generic]:
    """A box of `size` voxels at a random place; where the item is smaller, it is centred in air."""
    if item.array.ndim != len(size) + 1:
        raise DataError(
            f"series {item.key}: {item.array.ndim - 1}D, but the views are {len(size)}D; set views and model"
        )
    places = torch.rand(len(size), generator=draw).tolist()
    air = item.array.dtype.type(-1024 if item.is_ct else 0)
    out = np.full((item.array.shape[0], *size), air, dtype=item.array.dtype)
    source, target = [slice(None)], [slice(None)]
    for have, want, place in zip(item.array.shape[1:], size, places, strict=True):
        keep = min(have, want)
        low = int(place * (have - keep + 1))
        source.append(slice(low, low + keep))
        target.append(slice((want - keep) // 2, (want - keep) // 2 + keep))
    out[tuple(target)] = item.array[tuple(source)]
    return out
