"""Where training items come from: a cache, a list of scans, a torch dataset. A source says what there is and opens it.

Opening costs nothing but a header where voxels are stored: whoever cuts a crop reads that crop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from lejepa_med.data.cache import Cache
from lejepa_med.data.splits import is_monitored
from lejepa_med.data.stored_array import Box, StoredArray
from lejepa_med.errors import DataError

Where = Literal["disk", "host", "device", "dataset"]
Voxels = StoredArray | NDArray[np.generic] | Tensor
PLANE_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Item:
    """A prepared scan, not yet cropped, or one slice of it.

    `voxels` are `[channel, *spatial]`, or a stored array `[*spatial]`. A slice is (axis, position) in `plane`;
    `spacing_mm` is that of the axes which are left. `slice_axis` is the one along which the scan was acquired (-1: not
    known).
    """

    voxels: Voxels
    spacing_mm: tuple[float, ...]
    is_ct: bool
    key: str
    sequence: str = ""
    plane: tuple[int, int] | None = None
    slice_axis: int = -1

    @property
    def channels(self) -> int:
        return 1 if isinstance(self.voxels, StoredArray) else self.voxels.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial."""
        sides = tuple(self.voxels.shape) if isinstance(self.voxels, StoredArray) else tuple(self.voxels.shape[1:])
        return sides if self.plane is None else sides[: self.plane[0]] + sides[self.plane[0] + 1 :]

    @property
    def array(self) -> NDArray[np.generic]:
        """`[channel, *spatial]`, whole."""
        block = self.block(self.in_scan(tuple(slice(0, side) for side in self.shape)))
        array = block.cpu().numpy() if isinstance(block, Tensor) else block
        return array if self.plane is None else array.squeeze(1 + self.plane[0])

    def in_scan(self, box: Box) -> Box:
        """A box of the item as one of the scan that it is a slice of."""
        if self.plane is None:
            return box
        axis, position = self.plane
        return (*box[:axis], slice(position, position + 1), *box[axis:])

    def block(self, box: Box, passing: bool = False) -> NDArray[np.generic] | Tensor:
        """`[channel, *box]` of the scan, not a copy; `passing`: to be used before this thread reads again.

        Raises DataError if its file is damaged.
        """
        if isinstance(self.voxels, StoredArray):
            return self.voxels.read(box, passing)[None]
        return self.voxels[(slice(None), *box)]


@runtime_checkable
class Source(Protocol):
    """Where items come from. `patients[i]` groups items that must not meet in a batch, `groups[i]` near duplicates.

    `kinds` are (modality, sequence). `patients_known` is False if each item stands for a patient only because nobody
    said whose it is. `where` its voxels are; `dataset`: known to code that is not ours, and that threads might disturb.
    """

    patients: list[str]
    groups: list[str]
    studies: list[str]
    kinds: list[tuple[str, str]]
    keys: list[str]
    patients_known: bool
    where: Where

    def read(self, index: int, draw: torch.Generator) -> Item:
        """Item `index`; `draw` decides what is random about it (which slice)."""

    def read_several(self, index: int, draws: Sequence[torch.Generator]) -> list[Item]:
        """The same, opened once and drawn several times."""


class CacheSource:
    """Volumes, slices or images of a cache. `plane` is given for slices."""

    patients_known = True
    where: Where = "disk"

    def __init__(self, cache: Cache, table: pd.DataFrame, plane: str | None = None) -> None:
        self.cache, self.table, self.plane = cache, table, plane
        self.keys = [str(key) for key in table["series_key"]]
        self.patients = [str(key) for key in table["patient_key"]]
        self.groups = [str(key) for key in table["group_key"]] if "group_key" in table else self.keys
        self.studies = [str(key) for key in table["study_key"]]
        self.kinds = [(str(kind), str(name)) for kind, name in zip(table["modality"], table["sequence"], strict=True)]
        self._slice_axes = [int(axis) for axis in table["slice_axis"]] if "slice_axis" in table else [-1] * len(table)
        spacings = table["spacing_mm"].tolist()
        self._spacings = [None if mm is None else tuple(float(side) for side in mm) for mm in spacings]
        self._held: Sequence[Voxels] | None = None

    @property
    def nbytes(self) -> int:
        """Of all voxels; of caches that do not know it, by their shapes."""
        stored = self.table["bytes"] if "bytes" in self.table else [-1] * len(self.table)
        sides = zip(stored, self.table["shape"], self.kinds, strict=True)
        return sum(
            int(size) if size >= 0 else int(math.prod(shape)) * (2 if kind == "ct" else 1)
            for size, shape, (kind, _) in sides
        )

    def holding(self, voxels: Sequence[Voxels], where: Where) -> CacheSource:
        """The same source with its voxels `[channel, *spatial]` in memory."""
        other = copy.copy(self)
        other._held, other.where = voxels, where
        return other

    def read(self, index: int, draw: torch.Generator) -> Item:
        return self.read_several(index, [draw])[0]

    def read_several(self, index: int, draws: Sequence[torch.Generator]) -> list[Item]:
        voxels = self.cache.stored(self.keys[index]) if self._held is None else self._held[index]
        modality, sequence = self.kinds[index]
        item = Item(voxels, (), modality == "ct", self.keys[index], sequence, slice_axis=self._slice_axes[index])
        item = replace(item, spacing_mm=self._spacings[index] or (1.0,) * len(item.shape))
        if self.plane is None or len(item.shape) != 3:
            return [item] * len(draws)
        axis = PLANE_AXIS[self.plane]
        spacing = item.spacing_mm[:axis] + item.spacing_mm[axis + 1 :]
        # The ends of a scan are mostly air.
        places = [int((0.15 + 0.7 * float(torch.rand(1, generator=draw))) * item.shape[axis]) for draw in draws]
        return [replace(item, spacing_mm=spacing, plane=(axis, place)) for place in places]


class DatasetSource:
    """Any map-style torch dataset: tensors `[channel, *spatial]` in [0, 1], or dictionaries or tuples holding one.

    Each item counts as a patient of its own unless `patients` (one id per item) says otherwise.
    """

    where: Where = "dataset"

    def __init__(self, dataset: Any, patients: Sequence[Any] | None = None, spacing_mm: tuple[float, ...] = ()) -> None:
        if len(dataset) == 0:
            raise DataError("the dataset is empty")
        self.dataset, self.spacing_mm = dataset, spacing_mm
        self.keys = [f"item {number}" for number in range(len(dataset))]
        self.patients_known = patients is not None
        self.patients = self.keys if patients is None else number_patients(patients, len(dataset))
        self.groups = self.studies = self.keys
        self.kinds = [("", "")] * len(self.keys)

    def read(self, index: int, draw: torch.Generator) -> Item:
        del draw
        item = self.dataset[index]
        if isinstance(item, Mapping):
            item = item["image"]
        elif isinstance(item, tuple | list):
            item = item[0]
        array = np.asarray(item, dtype=np.float32) * 255.0
        return Item(array, self.spacing_mm or (1.0,) * (array.ndim - 1), False, self.keys[index])

    def read_several(self, index: int, draws: Sequence[torch.Generator]) -> list[Item]:
        return [self.read(index, draws[0])] * len(draws)


class ListSource:
    """Prepared items in memory. `patients` names that of each; without, items of one key are a patient of their own.

    `largest` is the largest extent along each axis.
    """

    def __init__(self, items: list[Item], patients: list[str] | None = None, where: Where = "host") -> None:
        if not items:
            raise DataError("the list of scans is empty")
        self.items, self.where = items, where
        self.keys = [item.key for item in items]
        self.patients_known = patients is not None
        self.patients = self.keys if patients is None else patients
        self.groups = [str(number) for number in range(len(items))]  # several scans of one file share its key
        self.studies = self.keys
        self.kinds = [("ct" if item.is_ct else "mri", item.sequence) for item in items]
        self.largest = tuple(max(sides) for sides in zip(*[item.shape for item in items], strict=True))

    def read(self, index: int, draw: torch.Generator) -> Item:
        del draw
        return self.items[index]

    def read_several(self, index: int, draws: Sequence[torch.Generator]) -> list[Item]:
        return [self.items[index]] * len(draws)


class Subset:
    """Some items of another source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)
        self.patients_known, self.where = source.patients_known, source.where
        self.patients = [source.patients[index] for index in self.indices]
        self.groups = [source.groups[index] for index in self.indices]
        self.studies = [source.studies[index] for index in self.indices]
        self.kinds = [source.kinds[index] for index in self.indices]
        self.keys = [source.keys[index] for index in self.indices]

    def read(self, index: int, draw: torch.Generator) -> Item:
        return self.source.read(self.indices[index], draw)

    def read_several(self, index: int, draws: Sequence[torch.Generator]) -> list[Item]:
        return self.source.read_several(self.indices[index], draws)


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
