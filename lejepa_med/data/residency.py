"""Where the prepared voxels of a run live while it trains: on disk, in memory, or on the device that trains.

The batches are the same to the bit; what differs is how soon they are there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from lejepa_med.config import PretrainConfig
from lejepa_med.data.sources import CacheSource, ListSource, Source, Voxels, Where
from lejepa_med.errors import DataError
from lejepa_med.machine import examine, total_memory

_HOST_SHARE, _DEVICE_SHARE = 0.5, 0.3
"""Of the free memory: the rest is left to batches and to other work, and on a device to the network."""


class Residency(NamedTuple):
    """The choice, and one sentence that says it and why; empty where there is nothing to choose."""

    where: Where
    sentence: str


def placed_source(
    config: PretrainConfig,
    source: Source,
    device: torch.device,
    progress: Callable[[str, int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Source:
    """The source with its voxels where `data.residency` wants them; `warn` is told where that is.

    Raises:
        DataError: they do not fit there, or one is damaged.
    """
    residency = choose_residency(config, source, device)
    if residency.sentence and warn is not None:
        warn(residency.sentence)
    return make_resident(source, residency.where, device, progress)


def choose_residency(config: PretrainConfig, source: Source, device: torch.device) -> Residency:
    """Raises DataError if the place asked for is too small."""
    asked = config.data.residency
    if not isinstance(source, CacheSource):
        return Residency("device" if asked == "device" and isinstance(source, ListSource) else source.where, "")
    size, host = source.nbytes, free_host_bytes()
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host
    free = {"host": host, "device": on_device}
    if asked in free and size > free[asked]:
        raise DataError(
            f"data.residency {asked}: the volumes of this run take {_gb(size)}, {_gb(free[asked])} are free there; "
            "set data.residency: auto or disk"
        )
    if asked != "auto":
        return Residency(asked, f"data: {_gb(size)} of volumes, {_PLACE[asked]}, as asked for")
    reads = config.train.steps * config.train.batch_size / config.data.crops_per_read
    if reads < len(source.keys):
        return Residency("disk", f"data: {_gb(size)} of volumes stay on disk (this run reads only some of them)")
    if device.type == "cuda" and size <= _DEVICE_SHARE * on_device:
        return Residency("device", f"data: {_gb(size)} of volumes are kept on the device ({_gb(on_device)} free)")
    if size <= _HOST_SHARE * host:
        return Residency("host", f"data: {_gb(size)} of volumes are kept in memory ({_gb(host)} free)")
    return Residency("disk", f"data: {_gb(size)} of volumes stay on disk ({_gb(host)} of memory free)")


_PLACE = {"disk": "read from disk", "host": "kept in memory", "device": "kept on the device"}


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def make_resident(
    source: Source, where: Where, device: torch.device, progress: Callable[[str, int, int], None] | None = None
) -> Source:
    """The source with its voxels where they are to be; each file is read and checked once.

    Raises:
        DataError: a volume is damaged; names its series.
    """
    if where == "device" and isinstance(source, ListSource):
        items = [replace(item, voxels=torch.from_numpy(np.array(item.array)).to(device)) for item in source.items]
        return ListSource(items, source.patients if source.patients_known else None, where)
    if where not in ("host", "device") or not isinstance(source, CacheSource):
        return source

    def hold(key: str) -> Voxels:
        array = source.cache.stored(key).whole()
        if where == "host":
            return array[None]
        array.flags.writeable = True  # it is ours: torch would warn
        return torch.from_numpy(array)[None].to(device)

    held: list[Voxels] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for voxels in pool.map(hold, source.keys):
            held.append(voxels)
            if progress is not None:
                progress("volumes", len(held), len(source.keys))
    return source.holding(held, where)


def free_host_bytes() -> int:
    """Memory that this process may still take: within the limits of its control groups, or half of all if not known.

    Ranks on one machine share it.
    """
    free = examine().memory_free
    known = free if free is not None else total_memory() // 2
    return known // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each rank of a machine holds a copy
