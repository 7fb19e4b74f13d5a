"""Multi-crop views of a batch on its device; one item is a batch of one, so the two agree number for number."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lejepa_med.config import ViewsConfig
from lejepa_med.errors import DataError
from lejepa_med.randomness import generator
from lejepa_med.views import kernel as cpp
from lejepa_med.views.geometry import Boxes, body_cells, draw_boxes
from lejepa_med.views.grids import Grids, lay_grids, resample_views
from lejepa_med.views.intensity import Intensity, apply_gibbs, apply_intensity, draw_intensity
from lejepa_med.views.tilting import turns

_AIR_HU, _OUTSIDE_HU = -900.0, -1000.0  # below the first nothing is body; emphysema reaches -950, healthy lungs -850
_CHUNK_BYTES = 2**23  # on a CPU: temporaries stay in its caches and below malloc's page-faulting sizes

_DTYPES = (
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)

Kind = Literal["global", "local"]


@dataclass(frozen=True)
class SampleFacts:
    """What is known about the samples of a batch: names for messages, MRI sequence, axis of acquisition (-1 = not)."""

    keys: list[str] | None = None
    sequences: list[str] | None = None
    slice_axis: Int[Tensor, " sample"] | None = None


@dataclass(frozen=True)
class Draw:
    """All that is random about the views of one size of a batch."""

    boxes: Boxes
    intensity: Intensity

    def rows(self, chosen: slice) -> Draw:
        """The same for some samples."""
        return Draw(self.boxes.rows(chosen), self.intensity.rows(chosen))


class BatchedMultiCrop:
    """Global and local views of a whole batch, on its device.

    `__call__(images, spacing_mm, is_ct, key)`: `images` `[sample, channel, *spatial]` are base crops as prepared (MRI
    and images 0..255, CT in HU). Returns `[global_views, local_views]`, each `[view, sample, channel, *size]` in
    [0, 1]. The views of the sample at global position p depend on `(*key, p)` alone. `channels`: how many are expected
    (None: any). `kernel`: C++ on a CPU with a compiler, else PyTorch; they agree to float rounding.
    """

    def __init__(
        self, config: ViewsConfig, channels: int | None = None, kernel: Literal["auto", "cpp", "torch"] = "auto"
    ) -> None:
        self.config, self.channels, self.kernel = config, channels, kernel

    def __call__(
        self,
        images: Tensor,
        spacing_mm: Sequence[float] | Float[Tensor, "sample axis"],
        is_ct: Bool[Tensor, " sample"],
        key: tuple[int | str, ...],
        first_position: int = 0,
        facts: SampleFacts | None = None,
    ) -> list[Float[Tensor, "view sample channel ..."]]:
        """Raises DataError, naming the sample: other dimensions or channels than expected, too few voxels, NaN.

        NaN is looked for only where `facts` are given; without, it reaches the views, and the training loop stops.
        """
        _check(images, self.config, self.channels, facts)
        images = images if images.dtype in _DTYPES else images.to(torch.float32)
        facts = facts or SampleFacts()
        air = torch.where(is_ct, torch.tensor(_AIR_HU, device=is_ct.device), torch.tensor(2.0, device=is_ct.device))
        sparse = images[:, 0][(slice(None), *[slice(None, None, 2)] * (images.ndim - 2))]  # coarse cells need no more
        is_body = sparse > air.to(images.device).view(-1, *(1,) * (images.ndim - 2))
        cells, is_ct = body_cells(is_body).cpu(), is_ct.cpu()
        spacing = spacing_mm.cpu() if isinstance(spacing_mm, Tensor) else tuple(spacing_mm)
        result = []
        for which in self._kinds():
            generators = [generator(*key, which, first_position + row) for row in range(len(images))]
            draw = self.draw(which, generators, tuple(images.shape[2:]), spacing, is_ct, cells, images.shape[1], facts)
            result.append(self.apply(images, draw, which, is_ct))
        return result

    def _kinds(self) -> list[Kind]:
        return ["global", "local"] if self.config.num_local else ["global"]

    def draw(
        self,
        which: Kind,
        generators: list[torch.Generator],
        base_size: tuple[int, ...],
        spacing_mm: tuple[float, ...] | Float[Tensor, "sample axis"],
        is_ct: Bool[Tensor, " sample"],
        cells: Float[Tensor, " sample *cells"],
        channels: int = 1,
        facts: SampleFacts | None = None,
    ) -> Draw:
        """Boxes and intensities, from one generator per sample."""
        facts = facts or SampleFacts()
        boxes = draw_boxes(self.config, which, generators, base_size, spacing_mm, cells, facts.slice_axis)
        views, axes = boxes.start.shape[1], len(base_size)
        return Draw(boxes, draw_intensity(self.config, views, axes, is_ct, generators, channels, facts.sequences))

    def apply(
        self,
        images: Tensor,
        draw: Draw,
        which: Kind,
        is_ct: Bool[Tensor, " sample"],
    ) -> Float[Tensor, "view sample channel *size"]:
        """One resampling per view, then intensity."""
        size = self.config.global_size if which == "global" else self.config.local_size
        grids = lay_grids(draw.boxes, tuple(images.shape[2:]), size)
        shape = (len(images), draw.boxes.start.shape[1], images.shape[1], *size)
        views = torch.empty(shape, dtype=torch.float32, device=images.device)
        if self._in_cpp(images.device):
            self._apply_cpp(images, draw, grids, is_ct.cpu(), views)
            return views.transpose(0, 1)
        step = len(images) if images.is_cuda else max(1, _CHUNK_BYTES // (4 * images[0].numel()))
        air = torch.where(is_ct.cpu(), _OUTSIDE_HU, 0.0)
        for low in range(0, len(images), step):
            rows = slice(low, low + step)
            made = resample_views(images[rows].to(torch.float32), grids.rows(rows), size, air[rows])
            part = draw.rows(rows)
            for sample in range(len(made)):
                _turn(made[sample], part.boxes, sample)
            views[rows] = apply_intensity(made, part.intensity, is_ct[rows])
        return views.transpose(0, 1)

    def _in_cpp(self, device: torch.device) -> bool:
        return device.type == "cpu" and (self.kernel == "cpp" or (self.kernel == "auto" and cpp.available()))

    def _apply_cpp(self, images: Tensor, draw: Draw, grids: Grids, is_ct: Tensor, views: Tensor) -> None:
        """Sample by sample, on as many threads as PyTorch has."""
        stored = images if images.dtype in cpp.STORED else images.to(torch.float32)

        def make(sample: int) -> None:
            ct = bool(is_ct[sample])
            air = _OUTSIDE_HU if ct else 0.0
            cpp.resample_sample(stored[sample].contiguous(), views[sample], grids, sample, air)
            _turn(views[sample], draw.boxes, sample)
            apply_gibbs(views[sample], draw.intensity, sample)
            cpp.look_sample(views[sample], draw.intensity, sample, ct)

        threads = min(torch.get_num_threads(), len(images))
        if threads == 1:
            for sample in range(len(images)):
                make(sample)
            return
        with ThreadPoolExecutor(threads) as pool:  # ends with the call: nothing that a forked loader could inherit
            list(pool.map(make, range(len(images))))


def _turn(views: Float[Tensor, "view channel *size"], boxes: Boxes, sample: int) -> None:
    """Turns the views of one sample by right angles, in place."""
    if boxes.tilts is None:
        return
    for view, number in enumerate(boxes.tilts.turn[sample].tolist()):
        if number:
            views[view] = turns(views.ndim - 2)[number].apply(views[view]).clone()


def _check(images: Tensor, config: ViewsConfig, channels: int | None, facts: SampleFacts | None) -> None:
    """Raises DataError for base crops that no view can be cut from."""
    keys = None if facts is None else facts.keys

    def name(sample: int) -> str:
        if keys is None:
            return f"sample {sample} of the batch" if len(images) > 1 else "the sample"
        return f"series {keys[sample]}"

    axes, spatial = len(config.global_size), tuple(images.shape[2:])
    if images.ndim != axes + 2:
        raise DataError(
            f"{name(0)}: {max(0, images.ndim - 2)}D, but the views are {axes}D; set views and model, or "
            "add the axis of channels"
        )
    if images.is_complex():
        raise DataError(f"{name(0)}: complex values; take their magnitude")
    if channels is not None and images.shape[1] != channels:
        raise DataError(
            f"{name(0)}: {images.shape[1]} channels, but {channels} expected; set model.in_channels or choose one"
        )
    sizes = [config.global_size, config.local_size] if config.num_local else [config.global_size]
    for size in sizes:
        if any(have * config.max_magnification < want for have, want in zip(spatial, size, strict=True)):
            raise DataError(
                f"{name(0)}: a base crop of {_times(spatial)} voxels is smaller than a view of {_times(size)} at "
                f"max_magnification {config.max_magnification:g}; make views.base_crop_mm larger or the views smaller, "
                "or, where the scans themselves are that small, prepare them at a finer spacing"
            )
    if facts is not None and images.is_floating_point():
        finite = torch.isfinite(images.flatten(1).sum(1, dtype=torch.float32))
        if not bool(finite.all()):
            raise DataError(
                f"{name(int(finite.int().argmin()))}: NaN or infinite values; exclude it or prepare it again"
            )


def _times(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)
