"""Base crops for training: one read per sample, all views of a step (or of several) come from it.

`StepDataset` turns a step number into a batch. Drawing the places comes first; what is read, and from where, second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lejepa_med.data.sources import CacheSource as CacheSource
from lejepa_med.data.sources import DatasetSource as DatasetSource
from lejepa_med.data.sources import Item as Item
from lejepa_med.data.sources import ListSource as ListSource
from lejepa_med.data.sources import Source as Source
from lejepa_med.data.sources import Subset as Subset
from lejepa_med.data.sources import number_patients as number_patients
from lejepa_med.data.sources import split_monitored as split_monitored
from lejepa_med.data.stored_array import Box
from lejepa_med.errors import DataError
from lejepa_med.randomness import generator

_AIR_HU = -1024


@runtime_checkable
class Sampler(Protocol):
    """Which items make up a batch."""

    def batch(self, step: int) -> list[int]: ...


@dataclass(frozen=True)
class Batch:
    """Base crops `images` `[sample, channel, *spatial]` as prepared; `patients` holds one number per patient.

    `slice_axis` is -1 where the axis of acquisition is not known; `first_position` is the place of the first sample in
    the global batch, of which a rank holds a part.
    """

    images: Tensor
    spacing_mm: Float[Tensor, "sample axis"]
    is_ct: Bool[Tensor, " sample"]
    keys: list[str]
    patients: list[int]
    sequences: list[str]
    slice_axis: Int[Tensor, " sample"]
    first_position: int = 0

    def pin_memory(self) -> Batch:
        return replace(self, images=self.images.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """Images on the device, without waiting for them; what views are drawn from stays where they are drawn."""
        return replace(self, images=self.images.to(device, non_blocking=True))


@dataclass(frozen=True)
class Crop:
    """A box of an item, and where it lies in the base crop, which is otherwise air."""

    item: Item
    box: Box
    target: Box


Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""As `map`: also that of a pool of threads."""


class StepDataset(torch.utils.data.Dataset[Batch]):
    """`dataset[step]` is the batch of that step: base crops of `size` voxels at random places, padded with air.

    `crops_per_read` consecutive steps see the same scans at other places. `share` is (rank, number of ranks): each rank
    gets its samples of the same global batch and opens no others.
    """

    def __init__(
        self,
        source: Source,
        sampler: Sampler,
        size: tuple[int, ...],
        seed: int,
        crops_per_read: int = 1,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.source, self.sampler, self.size, self.seed = source, sampler, size, seed
        self.crops_per_read, self.share = crops_per_read, share
        self._codes = {patient: code for code, patient in enumerate(sorted(set(source.patients)))}

    def __getitem__(self, step: int) -> Batch:
        return self.batches([step])[0]

    def reads(self, steps: range) -> list[range]:
        """The steps in groups that share their scans."""
        firsts = range(steps.start - steps.start % self.crops_per_read, steps.stop, self.crops_per_read)
        return [range(max(first, steps.start), min(first + self.crops_per_read, steps.stop)) for first in firsts]

    def batches(self, steps: Sequence[int], spread: Mapper = map, pin: bool = False) -> list[Batch]:
        """Batches of steps that share their scans, each scan read once; `spread` may do several at a time."""
        chosen = self.sampler.batch(steps[0] // self.crops_per_read)
        mine = self.share_of(len(chosen))
        return self._cut(chosen[mine], steps, mine.start, spread, pin)

    def share_of(self, samples: int) -> slice:
        """The places of a global batch that belong to this rank; shares differ by one sample at most."""
        rank, ranks = self.share
        return slice(samples * rank // ranks, samples * (rank + 1) // ranks)

    def keys_of(self, step: int) -> list[str]:
        """The series of the global batch of a step."""
        return [self.source.keys[item] for item in self.sampler.batch(step // self.crops_per_read)]

    def gather(self, chosen: Sequence[int], step: int, first_position: int = 0) -> Batch:
        """Base crops of the items `chosen`, at the places that `step` and their position in its batch decide."""
        return self._cut(chosen, [step], first_position, map, False)[0]

    def _cut(self, chosen: Sequence[int], steps: Sequence[int], first: int, spread: Mapper, pin: bool) -> list[Batch]:
        """Raises DataError, naming the series: damaged, of other dimensions or channels than the rest of the batch."""

        def place(position: int) -> list[Crop]:
            draws = [generator("base crop", self.seed, step, position) for step in steps]
            items = self.source.read_several(chosen[position - first], draws)
            return [place_crop(item, self.size, draw) for item, draw in zip(items, draws, strict=True)]

        placed = list(spread(place, range(first, first + len(chosen))))
        if isinstance(placed[0][0].item.voxels, Tensor):
            spread = map  # a device does the work, and its stream is that of this thread
        batches = [self._empty([crops[number] for crops in placed], chosen, first, pin) for number in range(len(steps))]

        def fill(sample: int) -> None:
            fill_crops(placed[sample], [batch.images[sample] for batch in batches])

        list(spread(fill, range(len(chosen))))
        return batches

    def _empty(self, crops: list[Crop], chosen: Sequence[int], first: int, pin: bool) -> Batch:
        """A batch whose images are to be filled in."""
        items = [crop.item for crop in crops]
        for item in items:
            if item.channels != items[0].channels:
                raise DataError(
                    f"series {item.key}: {item.channels} channels, but series {items[0].key} has {items[0].channels}; "
                    "all scans of a run need the same number"
                )
        types = {_torch_type(item) for item in items}
        voxels = items[0].voxels
        device = voxels.device if isinstance(voxels, Tensor) else torch.device("cpu")
        shape, kind = (len(items), items[0].channels, *self.size), types.pop() if len(types) == 1 else torch.float32
        return Batch(
            images=torch.empty(shape, dtype=kind, device=device, pin_memory=pin and device.type == "cpu"),
            spacing_mm=torch.tensor([item.spacing_mm for item in items], dtype=torch.float32),
            is_ct=torch.tensor([item.is_ct for item in items]),
            keys=[item.key for item in items],
            patients=[self._codes[self.source.patients[index]] for index in chosen],
            sequences=[item.sequence for item in items],
            slice_axis=torch.tensor([item.slice_axis for item in items]),
            first_position=first,
        )


def _torch_type(item: Item) -> torch.dtype:
    voxels = item.voxels
    return voxels.dtype if isinstance(voxels, Tensor) else torch.from_numpy(np.empty(0, voxels.dtype)).dtype


def other_dimensions(item: Item, axes: int) -> DataError:
    return DataError(f"series {item.key}: {len(item.shape)}D, but the views are {axes}D; set views and model")


def place_crop(item: Item, size: tuple[int, ...], draw: torch.Generator) -> Crop:
    """A box of `size` voxels at a random place; where the item is smaller, it is centred in air."""
    if len(item.shape) != len(size):
        raise other_dimensions(item, len(size))
    places = torch.rand(len(size), generator=draw).tolist()
    source, target = [], []
    for have, want, place in zip(item.shape, size, places, strict=True):
        keep = min(have, want)
        low = int(place * (have - keep + 1))
        source.append(slice(low, low + keep))
        target.append(slice((want - keep) // 2, (want - keep) // 2 + keep))
    return Crop(item, tuple(source), tuple(target))


def fill_crops(crops: Sequence[Crop], images: Sequence[Tensor]) -> None:
    """Fills `images` `[channel, *spatial]`, one for each crop; all are of one scan, which is read once."""
    boxes = [crop.item.in_scan(crop.box) for crop in crops]
    axes = range(len(boxes[0]))
    around = tuple(slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in axes)
    block = crops[0].item.block(around, passing=True)
    for crop, box, image in zip(crops, boxes, images, strict=True):
        for axis, side in enumerate(crop.target):
            for outside in (slice(0, side.start), slice(side.stop, None)):
                image[(slice(None),) * (1 + axis) + (outside,)] = _AIR_HU if crop.item.is_ct else 0
        inside = tuple(
            slice(side.start - out.start, side.stop - out.start) for side, out in zip(box, around, strict=True)
        )
        part: Any = block[(slice(None), *inside)]
        if crop.item.plane is not None:
            part = part.squeeze(1 + crop.item.plane[0])
        whole: Any = image if isinstance(part, Tensor) else image.numpy()
        whole[(slice(None), *crop.target)] = part


def base_crop(item: Item, size: tuple[int, ...], draw: torch.Generator) -> NDArray[np.generic]:
    """One base crop `[channel, *size]` in memory."""
    image = torch.empty((item.channels, *size), dtype=_torch_type(item))
    fill_crops([place_crop(item, size, draw)], [image])
    array: NDArray[np.generic] = image.numpy()
    return array
