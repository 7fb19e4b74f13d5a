"""From seconds per volume of each stage to what holds training back, by how much, and what to do: no clock in here.

disk + cutting + collation      in threads ahead of the loop (data.workers, at least one)   load
copy + views + model            in the loop, one after another                              step
seconds = max(load / threads, step)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Part = Literal["disk", "cutting", "copy", "views", "model"]

FITS = 0.8
"""Share of the free memory that a cache may take to stay there once it was read."""
_NOTICED = 0.05  # waiting less than this share of the time needs no advice


@dataclass(frozen=True)
class Stage:
    """Seconds per volume in one process: median, lower and upper quartile of the repeats; bytes per volume if known."""

    name: str
    seconds: float
    low: float
    high: float
    repeats: int
    bytes: int | None = None


@dataclass(frozen=True)
class Setting:
    """What the verdict depends on besides the seconds. None: not known, or there is none (a GPU, a limit).

    `batches` are in memory at once: those that wait, the one that is made and the one that is trained on.
    """

    workers: int
    batches: int
    batch_size: int
    batch_bytes: int
    on_gpu: bool
    cores: int
    cache_bytes: int
    memory_free: int | None
    device_memory_free: int | None

    @property
    def threads(self) -> int:
        """That read ahead of the loop."""
        return max(1, self.workers)

    @property
    def spare_cores(self) -> int:
        """Those that reading may take."""
        return max(1, self.cores - 1)

    @property
    def fits_in_memory(self) -> bool:
        """Whether the system keeps the whole cache in memory after the first pass."""
        return self.memory_free is not None and self.cache_bytes <= FITS * self.memory_free

    @property
    def fits_on_device(self) -> bool:
        return self.device_memory_free is not None and self.cache_bytes <= FITS * self.device_memory_free


@dataclass(frozen=True)
class Verdict:
    """The part without which training would be fastest: `factor` times as fast as its `volumes_per_s`.

    `waiting` is the share of the time that training waits for batches; `workers_to_hide` as many threads bring it to
    zero. `advice` holds one sentence per thing to do, by its code.
    """

    bottleneck: Part
    factor: float
    volumes_per_s: float
    waiting: float
    workers_to_hide: int
    sentence: str
    advice: dict[str, str]


def diagnose(stages: Sequence[Stage], setting: Setting) -> Verdict:
    """The verdict on measured stages: `cutting`, `views` and `model`, and `disk`, `collation`, `copy` where there are.

    `disk` counts only if the cache does not fit in memory: else it is paid in the first pass alone.
    """
    seconds = {stage.name: stage.seconds for stage in stages}
    parts = _parts(seconds, setting)
    total = _seconds_per_volume(parts, setting.threads)
    gains = {part: total / max(_seconds_per_volume(parts | {part: 0.0}, setting.threads), 1e-12) for part in parts}
    first = max(parts, key=lambda part: (gains[part], parts[part]))
    step = parts["copy"] + parts["views"] + parts["model"]
    waiting = 1 - step / total
    needed = max(1, math.ceil((parts["disk"] + parts["cutting"]) / step - 1e-9))
    advised = waiting > _NOTICED and needed > setting.threads
    return Verdict(
        bottleneck=first,
        factor=gains[first],
        volumes_per_s=1 / total,
        waiting=waiting,
        workers_to_hide=needed,
        sentence=_sentence(first, parts, gains[first], waiting),
        advice=_advice(first, waiting, needed if advised else 0, setting)
        | _first_pass(stages, setting)
        | _memory_advice(setting),
    )


def _parts(seconds: Mapping[str, float], setting: Setting) -> dict[Part, float]:
    return {
        "disk": 0.0 if setting.fits_in_memory else seconds.get("disk", 0.0),
        "cutting": seconds["cutting"] + seconds.get("collation", 0.0),
        "copy": seconds.get("copy", 0.0),
        "views": seconds["views"],
        "model": seconds["model"],
    }


def _seconds_per_volume(parts: Mapping[Part, float], threads: int) -> float:
    load, step = parts["disk"] + parts["cutting"], parts["copy"] + parts["views"] + parts["model"]
    return max(load / threads, step)


_DOES: dict[Part, str] = {
    "disk": "reading from disk",
    "cutting": "cutting and stacking base crops",
    "copy": "copying batches to the device",
    "views": "making the views",
    "model": "the model (forward, backward, optimizer)",
}


def _sentence(part: Part, parts: Mapping[Part, float], gain: float, waiting: float) -> str:
    times = f"{gain:.1f} times" if gain < 100 else "over 100 times"
    start = f"The bottleneck is {_DOES[part]}: {milliseconds(parts[part])} ms per volume"
    waits = (
        f"{waiting:.0%} of the time training waits for batches" if waiting >= 0.005 else "training hardly ever waits"
    )
    if part == "model":
        return f"{start}, as it should be; the data path alone could feed {times} as many volumes, and {waits}."
    return f"{start}; without it training would be {times} as fast, and {waits}."


def milliseconds(seconds: float) -> str:
    """Three digits, without an exponent."""
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def _advice(part: Part, waiting: float, workers: int, setting: Setting) -> dict[str, str]:
    """`workers`: as many are needed to hide the reading, 0 if no more than there are."""
    advice: dict[str, str] = {}
    match part:
        case "disk":
            advice["disk"] = _faster_disk(setting)
        case "copy":
            advice["copy"] = (
                "Copying to the device dominates: keep the volumes there (data.residency=device), or take a smaller "
                "views.base_crop_mm or fewer voxels."
            )
        case "views":
            advice["views"] = _faster_views(setting)
        case "model" if waiting <= _NOTICED:
            advice["model"] = "Nothing to do: the model takes longest, the data path is fast enough."
        case "cutting":
            advice["cutting"] = "Cutting dominates: a smaller views.base_crop_mm, or fewer voxels in the cache."
    if workers:
        advice["workers"] = _workers(workers, setting)
    return advice


def _first_pass(stages: Sequence[Stage], setting: Setting) -> dict[str, str]:
    """Where the disk is left out of the verdict: what it costs once."""
    if not setting.fits_in_memory:
        return {}
    start = (
        f"The cache ({in_words(setting.cache_bytes)}) fits in the free memory: the disk counts in the first pass only"
    )
    for stage in stages:
        if stage.name == "storage_cold" and stage.bytes:
            took = setting.cache_bytes / stage.bytes * stage.seconds
            return {
                "first_pass": f"{start} (about {f'{took / 60:.0f} min' if took > 90 else f'{took:.2g} s'} of reading)."
            }
    return {"first_pass": f"{start}."}


def _faster_disk(setting: Setting) -> str:
    size = in_words(setting.cache_bytes)
    if setting.fits_on_device:
        return f"The disk is too slow: the cache ({size}) fits in device memory, set data.residency=device."
    free = "" if setting.memory_free is None else f", {in_words(setting.memory_free)} are free"
    return (
        f"The disk is too slow: copy the cache ({size}) to a local SSD, or give the job memory for all of it{free} "
        "(data.residency=host)."
    )


def _faster_views(setting: Setting) -> str:
    if setting.on_gpu:
        return (
            "The views dominate on the GPU: take fewer or smaller views, or lower blur, tilt and Gibbs probabilities."
        )
    return (
        f"Views are made on the CPU ({setting.cores} cores): on a GPU they are made there; else use more cores, or "
        "fewer and smaller views."
    )


def _workers(needed: int, setting: Setting) -> str:
    spare = setting.spare_cores
    if needed <= spare:
        return f"Set data.workers={needed}: {_named(needed)} can hide the reading behind the training step."
    return (
        f"{_named(needed)} would hide the reading, but {setting.cores} cores leave room for {spare}: set "
        f"data.workers={spare}, and use more cores or data.residency={'device' if setting.fits_on_device else 'host'}."
    )


def _memory_advice(setting: Setting) -> dict[str, str]:
    """Where batches alone take more than half of the free memory."""
    flying = setting.batches * setting.batch_bytes
    if setting.memory_free is None or flying <= setting.memory_free / 2:
        return {}
    return {
        "memory": f"Batches under way would take {in_words(flying)} of {in_words(setting.memory_free)} of free memory: "
        "lower train.batch_size or data.prefetch, or give the job more memory."
    }


def _named(workers: int) -> str:
    return "1 reading thread" if workers == 1 else f"{workers} reading threads"


def in_words(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
