"""Multi-crop views of a batch or of one item: the same draw, the same code, so the two agree number for number."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

from lejepa_med.config import ViewsConfig
from lejepa_med.randomness import generator
from lejepa_med.resampling import axis_weights, resample
from lejepa_med.views.geometry import Boxes, body_cells, draw_boxes
from lejepa_med.views.intensity import Intensity, apply_intensity, draw_intensity

_AIR_HU = -900.0
_CHUNK_BYTES = 2**23  # on a CPU: temporaries stay in its caches and below malloc's page-faulting sizes


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
    [0, 1]. The views of the sample at global position p depend on `(*key, p)` alone.
    """

    def __init__(self, config: ViewsConfig) -> None:
        self.config = config

    def __call__(
        self,
        images: Tensor,
        spacing_mm: Sequence[float],
        is_ct: Bool[Tensor, " sample"],
        key: tuple[int | str, ...],
        first_position: int = 0,
    ) -> list[Float[Tensor, "view sample channel ..."]]:
        air = torch.where(is_ct, torch.tensor(_AIR_HU), torch.tensor(2.0)).to(images.device)
        sparse = images[:, 0][(slice(None), *[slice(None, None, 2)] * (images.ndim - 2))]  # coarse cells need no more
        is_body = sparse > air.view(-1, *(1,) * (images.ndim - 2))
        cells = body_cells(is_body).cpu()
        result = []
        for which in self._kinds():
            generators = [generator(*key, which, first_position + row) for row in range(len(images))]
            draw = self.draw(which, generators, tuple(images.shape[2:]), tuple(spacing_mm), is_ct.cpu(), cells)
            result.append(self.apply(images, draw, which, is_ct))
        return result

    def _kinds(self) -> list[Literal["global", "local"]]:
        return ["global", "local"] if self.config.num_local else ["global"]

    def draw(
        self,
        which: Literal["global", "local"],
        generators: list[torch.Generator],
        base_size: tuple[int, ...],
        spacing_mm: tuple[float, ...],
        is_ct: Bool[Tensor, " sample"],
        cells: Float[Tensor, " sample *cells"],
    ) -> Draw:
        """Boxes and intensities, from one generator per sample."""
        boxes = draw_boxes(self.config, which, generators, base_size, spacing_mm, cells)
        views = boxes.start.shape[1]
        return Draw(boxes, draw_intensity(self.config, views, len(base_size), is_ct, generators))

    def apply(
        self,
        images: Tensor,
        draw: Draw,
        which: Literal["global", "local"],
        is_ct: Bool[Tensor, " sample"],
    ) -> Float[Tensor, "view sample channel *size"]:
        """One resampling per view, then intensity."""
        size = self.config.global_size if which == "global" else self.config.local_size
        step = len(images) if images.is_cuda else max(1, _CHUNK_BYTES // (4 * images[0].numel()))
        views = images.new_empty((len(images), draw.boxes.start.shape[1], images.shape[1], *size), dtype=torch.float32)
        for low in range(0, len(images), step):
            rows = slice(low, low + step)
            views[rows] = self._apply(images[rows].to(torch.float32), draw.rows(rows), size, is_ct[rows])
        return views.transpose(0, 1)

    def _apply(
        self, images: Float[Tensor, "sample channel *spatial"], draw: Draw, size: tuple[int, ...], is_ct: Tensor
    ) -> Float[Tensor, "sample view channel *size"]:
        boxes, device = draw.boxes, images.device
        weights = [
            axis_weights(
                boxes.start[..., axis].to(device),
                boxes.length[..., axis].to(device),
                images.shape[2 + axis],
                side,
                boxes.blur[..., axis].to(device),
            )
            for axis, side in enumerate(size)
        ]
        return apply_intensity(resample(images, weights), draw.intensity, is_ct)


class MultiCropd(Randomizable, MapTransform):  # type: ignore[misc]  # monai's classes are Any to mypy
    """A MONAI dictionary transform: `item[key]` `[channel, *spatial]` gives `global_views` and `local_views`.

    Values are in [0, 1] for MRI and images, in HU for CT (`is_ct=True`). Composes with any MONAI pipeline; randomness
    comes from MONAI's `set_random_state`, or from the item: with `draw_key="key"`, `item["key"]` is a tuple such as
    ("views", seed, step, position), and the views equal those of `BatchedMultiCrop` at that position.
    """

    def __init__(
        self,
        keys: str,
        config: ViewsConfig,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        is_ct: bool = False,
        draw_key: str | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.crop, self.spacing_mm, self.is_ct, self.draw_key = BatchedMultiCrop(config), spacing_mm, is_ct, draw_key

    def randomize(self, data: Any = None) -> None:
        del data
        self.seed = int(self.R.randint(2**31))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.draw_key is None:
            self.randomize()
            draw: tuple[int | str, ...] = ("item", self.seed)
            position = 0
        else:
            *given, position = item[self.draw_key]
            draw = tuple(given)
        for key in self.key_iterator(item):
            image = torch.as_tensor(item[key], dtype=torch.float32)
            images = image[None] if self.is_ct else image[None] * 255.0
            axes = len(self.crop.config.global_size)
            views = self.crop(images, self.spacing_mm[:axes], torch.tensor([self.is_ct]), draw, position)
            item["global_views"] = views[0][:, 0]
            if len(views) > 1:
                item["local_views"] = views[1][:, 0]
        return item
