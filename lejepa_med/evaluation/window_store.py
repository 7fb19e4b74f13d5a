"""Windows of labelled volumes, kept in memory in half precision while several fine-tunings share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lejepa_med.data.cache import Cache, CachedVolume

Cutter = Callable[[CachedVolume], Float[Tensor, "window channel *size"]]
_LIMIT_BYTES = 8 * 2**30


class WindowStore:
    """Windows by series; read and cut on first use, forgotten beyond the limit and then cut again.

    `are_slices`: windows are slices of a volume, of which training may draw some. A sample may have several series.
    """

    def __init__(self, cache: Cache, cut: Cutter, limit_bytes: int = _LIMIT_BYTES, *, are_slices: bool = False) -> None:
        self.cache, self.cut, self.free, self.are_slices = cache, cut, limit_bytes, are_slices
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

    def batch(self, samples: Sequence[Sequence[str]]) -> tuple[Float[Tensor, "window channel *size"], list[int]]:
        """The windows of several samples in a row, float32, and how many belong to each."""
        parts = [torch.cat([self.of(key) for key in members]) for members in samples]
        return torch.cat(parts).to(torch.float32), [len(part) for part in parts]

    def drawn(
        self, samples: Sequence[Sequence[str]], most: int, generator: np.random.Generator
    ) -> tuple[Float[Tensor, "window channel *size"], list[int]]:
        """As `batch`, with at most so many slices of each sample, drawn anew; other windows are all used."""
        images, counts = self.batch(samples)
        if not self.are_slices or max(counts) <= most:
            return images, counts
        chosen, start = [], 0
        for count in counts:
            chosen.append(start + np.sort(generator.permutation(count)[:most]))
            start += count
        return images[torch.from_numpy(np.concatenate(chosen))], [len(rows) for rows in chosen]
