"""Features by volume on disk, shared by benchmarks; a pass that was killed goes on where it was.

    STORE/<network>/<2 hex>/<volume>.<part>.npz    arrays of one volume: `pooled`, or `tokens`

`network` is a hash of weights and settings, `volume` one of the prepared volume: its source, preprocessing, modality
and spacing. Nothing in a name or a file says whose volume it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.data.cache import Cache, CachedVolume
from lejepa_med.whole_files import write_atomically

Arrays = dict[str, NDArray[np.generic]]
Parts = dict[str, Arrays]
Compute = Callable[[Iterable[CachedVolume]], Iterator[Parts]]
"""From volumes to the parts of each, in their order."""
_READ_AHEAD = 4


class VolumeStore:
    """The features that one network gives, by volume."""

    def __init__(self, folder: Path, network: str) -> None:
        self.folder = folder / network[:32]

    def read(self, volume: str, part: str) -> Arrays | None:
        """The arrays of one volume; None where there are none, or the file is damaged."""
        try:
            with self._file(volume, part).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, volume: str, part: str, arrays: Arrays) -> None:
        """Puts the arrays there whole or not at all."""
        file, buffer = self._file(volume, part), io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, buffer.getvalue())

    def has(self, volume: str, part: str) -> bool:
        """Whether the arrays are there."""
        return self._file(volume, part).exists()

    def remove(self, volume: str, part: str) -> None:
        """Forgets the arrays of one volume."""
        self._file(volume, part).unlink(missing_ok=True)

    def _file(self, volume: str, part: str) -> Path:
        return self.folder / volume[:2] / f"{volume}.{part}.npz"


def volume_keys(table: pd.DataFrame) -> list[str]:
    """Of every row, what its prepared volume is filed under."""
    columns = (table["entry"], table["modality"], table["spacing_mm"])
    keys = []
    for entry, modality, spacing in zip(*columns, strict=True):
        sides = None if spacing is None else [float(side) for side in spacing]
        keys.append(hashlib.sha256(json.dumps([str(entry), str(modality), sides]).encode()).hexdigest()[:32])
    return keys


def complete(
    store: VolumeStore,
    cache: Cache,
    table: pd.DataFrame,
    parts: Sequence[str],
    compute: Compute,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Computes what is missing of `parts` for the rows of `table`; returns for how many volumes that was."""
    keys, series = volume_keys(table), table["series_key"].tolist()
    missing = [row for row, key in enumerate(keys) if not all(store.has(key, part) for part in parts)]
    done = len(keys) - len(missing)
    found = compute(read_ahead(cache, [series[row] for row in missing])) if missing else iter(())
    for row, computed in zip(missing, found, strict=True):
        for part, arrays in computed.items():
            store.write(keys[row], part, arrays)
        done += 1
        if progress is not None:
            progress(done)
    return len(missing)


def read_ahead(cache: Cache, series: Sequence[str]) -> Iterator[CachedVolume]:
    """The volumes in their order, the next few read while one is used."""

    def read(key: str) -> CachedVolume:
        volume = cache.read(key)
        _ = volume.array  # from disk, here
        return volume

    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future[CachedVolume]] = []
        for key in series:
            waiting.append(pool.submit(read, key))
            if len(waiting) > _READ_AHEAD:
                yield waiting.pop(0).result()
        yield from (future.result() for future in waiting)
