"""Views as a MONAI dictionary transform, for pipelines that make them item by item."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

from lejepa_med.config import ViewsConfig
from lejepa_med.errors import DataError
from lejepa_med.views import kernel as cpp
from lejepa_med.views.multicrop import BatchedMultiCrop, SampleFacts


class MultiCropd(Randomizable, MapTransform):  # type: ignore[misc]  # monai's classes are Any to mypy
    """A MONAI dictionary transform: `item[key]` `[channel, *spatial]` gives `global_views` and `local_views`.

    Values are in [0, 1] for MRI and images (what lies outside is clipped), in HU for CT (`is_ct=True`). Composes with
    any MONAI pipeline; randomness comes from MONAI's `set_random_state`, or from the item: with `draw_key="key"`,
    `item["key"]` is a tuple such as ("views", seed, step, position), and the views equal those of `BatchedMultiCrop` at
    that position. `spacing_mm` is that of the array (a MetaTensor's own is not used); `sequence` chooses among
    `mri_by_sequence`. Raises DataError as `BatchedMultiCrop`, for NaN too, and for MRI that nobody scaled to [0, 1];
    the message names the item by its `series_key`, if it has one.
    """

    def __init__(
        self,
        keys: str,
        config: ViewsConfig,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        is_ct: bool = False,
        draw_key: str | None = None,
        sequence: str = "",
    ) -> None:
        MapTransform.__init__(self, keys)
        self.crop, self.spacing_mm, self.is_ct, self.draw_key = BatchedMultiCrop(config), spacing_mm, is_ct, draw_key
        self.sequence = sequence
        cpp.available()  # built here once, so that forked loader workers need not

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
        keys = [str(item["series_key"])] if "series_key" in item else None
        facts = SampleFacts(keys, [self.sequence])
        for key in self.key_iterator(item):
            images = _images(item[key], self.is_ct, "the sample" if keys is None else f"series {keys[0]}")
            spacing = tuple(self.spacing_mm)[: len(self.crop.config.global_size)]
            views = self.crop(images, spacing, torch.tensor([self.is_ct]), draw, position, facts)
            item["global_views"] = views[0][:, 0]
            if len(views) > 1:
                item["local_views"] = views[1][:, 0]
        return item


def _images(value: Any, is_ct: bool, name: str) -> Tensor:
    """One item as a batch of base crops as prepared: MRI 0..255, CT in HU. Raises DataError if it cannot be that."""
    if isinstance(value, np.ndarray):  # PyTorch refuses reversed axes and foreign byte orders
        value = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
    try:
        image = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"{name}: expected an array of numbers, got a {type(value).__name__} of something else"
        ) from None
    image = image.as_tensor() if hasattr(image, "as_tensor") else image  # a MetaTensor's plain tensor
    if is_ct or image.is_complex():
        return image[None]
    if not image.is_floating_point() or bool(image.to(torch.float32).mean() > 1):
        raise DataError(f"{name}: MRI and images are expected in [0, 1]; scale them first, e.g. by ScaleIntensityd")
    return image[None].to(torch.float32) * 255.0
