"""Windows of labelled volumes, kept in memory in half precision while several fine-tunings share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lejepa_med.data.cache import Cache, CachedVolume

Cutter = Callable[[CachedVolume], Float[Tensor, "window channel *size"]]
_LIMIT_BYTES = 8 * 2**30


class WindowStore:
    """Windows by series; read and cut on first use, forgotten beyond the limit and then cut again."""

    def __init__(self, cache: Cache, cut: Cutter, limit_bytes: int = _LIMIT_BYTES) -> None:
        self.cache, self.cut, self.free = cache, cut, limit_bytes
        self._kept: dict[str, Tensor] = {}

    def of(self, series_key: str) -> Float[Tensor, "window channel *size"]:
        """The windows of one volume, float16."""
        kept = self._kept.get(series_key)
        if kept is not None:
            return kept
        images = self.cut(self.cache.read(series_key)).to(torch.float16)
        size = images.numel() * images.element_size()
        if size <= self.free:
            self.free -= size
            self._kept[series_key] = images
        return images

    def batch(self, series: Sequence[str]) -> tuple[Float[Tensor, "window channel *size"], list[int]]:
        """The windows of several volumes in a row, float32, and how many belong to each."""
        parts = [self.of(key) for key in series]
        return torch.cat(parts).to(torch.float32), [len(part) for part in parts]
