"""Memory, disk and hours of a run before it starts: arithmetic on what is known, and what is not known is None.

memory of a device = weights, AdamW | base crops, views of its share of the batch | loss | volumes that are kept there |
the peak of a step of tensors without content: gradients, bf16 weights, activations of what is not run again.
"""

from __future__ import annotations

from dataclasses import dataclass

from lejepa_med.config.planning import PlanConfig
from lejepa_med.training.averaging import average_of
from lejepa_med.training.model_cost import ModelCost, voxels_of_views

USABLE = 0.9
"""Share of a device's free memory that a plan uses: the rest is for fragments, kernels' workspaces and the context."""

_LINE = {"metrics": 190, "timing": 120, "diagnostics": 1500, "tensorboard": 700}  # bytes of a line, a step's scalars
_ON_GPU = 2  # batches of base crops: the one at work, and the one that is copied meanwhile
_GATHERED = 2  # blocks whose shards are together: the one at work and the next
_OF_PROCESS = 120_000_000
"""Bytes on a CPU: what malloc keeps and what oneDNN takes for its kernels. Measured (docs/benchmarks.md): the same for
batches of 2 to 16 volumes, within 60 MB."""


@dataclass(frozen=True)
class Archive:
    """What a run trains on. Without a cache there are the numbers of the config, or none; `crop_bytes` is of one.

    `resident_bytes` are volumes that stay in the memory that is planned (`data.residency`)."""

    crop_voxels: int
    crop_bytes: int
    volumes: int | None
    patients: int | None
    cache_bytes: int | None
    is_there: bool
    resident_bytes: int = 0


@dataclass(frozen=True)
class Device:
    """What is planned for. `memory` in bytes, None if not known; `is_here`: steps can be measured."""

    name: str
    memory: int | None
    bf16: bool
    on_gpu: bool
    is_here: bool


def share_of_batch(config: PlanConfig) -> int:
    """Volumes of a step on one device."""
    return -(-config.train.batch_size // config.plan.devices)


def is_recomputed(config: PlanConfig) -> bool:
    """Whether micro-batches run every forward pass twice."""
    micro = config.train.micro_batch
    return micro is not None and micro < share_of_batch(config)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: `parts` add up to `total`. `activations` are of `samples` volumes, and grow with them."""

    parts: dict[str, int]
    samples: int
    per_sample: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Disk:
    """Bytes that a run leaves; a checkpoint more is there while one is saved."""

    checkpoint: int
    checkpoints: int
    weights: int
    logs: int

    @property
    def total(self) -> int:
        return self.checkpoints + self.weights + self.logs


def largest_micro_batch(config: PlanConfig, cost: ModelCost, archive: Archive, device: Device, available: float) -> int:
    """Samples of a pass that fit: all that are on a device, fewer in micro-batches, or 0 if not even one does."""
    share = share_of_batch(config)

    def with_passes_of(samples: int | None) -> Memory:
        train = config.train.model_copy(update={"micro_batch": samples})
        return memory_needed(config.model_copy(update={"train": train}), cost, archive, device)

    if with_passes_of(None).total <= available:
        return share
    low, high = 0, share - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if with_passes_of(middle).total <= available else (low, middle - 1)
    return low


def memory_needed(config: PlanConfig, cost: ModelCost, archive: Archive, device: Device) -> Memory:
    """The peak on one device during a step."""
    share, parted = share_of_batch(config), is_recomputed(config)
    samples = min(config.train.micro_batch or share, share)
    num_views = config.views.num_global + config.views.num_local
    step = cost.parted if parted else cost.whole
    assert step is not None
    held, together = _ranks(config, cost)
    batches = _ON_GPU if device.on_gpu else config.data.prefetch + 1  # the one at work
    parts = {
        "weights": held * 4.0 * cost.parameters + cost.buffer_bytes,
        "optimizer": held * 8.0 * cost.parameters,
        "gradients, bf16 weights": step.fixed - (1 - held) * 4.0 * cost.parameters,
        _TOGETHER[config.train.parallel]: together,
        "weight average": float(_average(config, cost)),
        "online probe": 4.0 * cost.backbone_parameters if config.online_probe.tasks else 0.0,  # its windows: no grad
        "copy to be saved": 0.0 if device.on_gpu else float(_checkpoint(config, cost)),
        "volumes": float(archive.resident_bytes),
        "base crops": float(batches * share * archive.crop_bytes),
        "views": 4.0 * share * config.model.in_channels * voxels_of_views(config),
        "activations": samples * step.per_volume,
        # Projections on the slices and their gradient; with several ranks only sums travel.
        "loss": 2 * 4.0 * num_views * share * config.objective.num_slices,
        "process": 0.0 if device.on_gpu else float(_OF_PROCESS),
    }
    rounded = {name: round(size) for name, size in parts.items()}
    return Memory(rounded, samples, round(step.per_volume))


_TOGETHER = {"ddp": "gradient buckets", "fsdp": "gathered shards"}


def _ranks(config: PlanConfig, cost: ModelCost) -> tuple[float, float]:
    """The share of the weights that a rank holds, and the bytes of what several ranks need beside.

    Replicas send gradients from buckets. Of shards what is in no block stays gathered during the step, with its
    gradient; of the blocks there are a few at a time, and one's gradient before and while it is sent. That is more than
    saving takes, which gathers one tensor at a time.
    """
    if config.plan.devices == 1:
        return 1.0, 0.0
    if config.train.parallel == "ddp":
        return 1.0, 4.0 * cost.parameters
    return 1 / config.plan.devices, 4.0 * (2 * cost.other_parameters + (_GATHERED + 2) * cost.block_parameters)


def _average(config: PlanConfig, cost: ModelCost) -> int:
    return 0 if average_of(config.train) is None else 4 * cost.backbone_parameters


def _checkpoint(config: PlanConfig, cost: ModelCost) -> int:
    """Weights and two moments, running statistics, and the average of the weights if there is one."""
    return 12 * cost.parameters + cost.buffer_bytes + _average(config, cost)


def disk_needed(config: PlanConfig, cost: ModelCost, tensorboard: bool) -> Disk:
    """Of checkpoints (the last ones, the best where there is a held-out loss), final weights and logs."""
    steps, checkpoint = config.train.steps, _checkpoint(config, cost)
    saved = -(-steps // config.train.checkpoint_every)
    kept = min(config.train.keep_checkpoints + (config.data.monitor_fraction > 0), saved) + 1
    per_step = _LINE["metrics"] + _LINE["timing"] + (_LINE["tensorboard"] if tensorboard else 0)
    logs = steps * per_step + -(-steps // config.train.diagnostics_every) * _LINE["diagnostics"]
    return Disk(checkpoint, kept * checkpoint, 4 * cost.backbone_parameters, logs)


@dataclass(frozen=True)
class Speed:
    """Seconds per volume on one device, and how they are known; `loading_s` of one reading thread. None: not known."""

    step_s: float | None
    how: str
    loading_s: float | None
    peak_flops: float | None

    def seconds_per_volume(self, workers: int, shared_cores: bool, devices: int) -> float | None:
        """Reading goes on behind the step on a GPU; on a CPU the two share its cores."""
        if self.step_s is None:
            return None
        loading = (self.loading_s or 0.0) / max(1, workers)
        return loading + self.step_s if shared_cores else max(loading, self.step_s / devices)


@dataclass(frozen=True)
class Plan:
    """Everything that `plan` knows. `hours` and `epochs` are None where something that they need is not known."""

    config: PlanConfig
    cost: ModelCost
    archive: Archive
    device: Device
    memory: Memory
    disk: Disk
    disk_free: int | None
    speed: Speed
    busy: bool

    @property
    def flops_per_volume(self) -> float:
        return self.cost.step_flops(is_recomputed(self.config))

    @property
    def available(self) -> float | None:
        return None if self.device.memory is None else USABLE * self.device.memory

    @property
    def fits(self) -> bool | None:
        return None if self.available is None else self.memory.total <= self.available

    @property
    def largest_micro_batch(self) -> int | None:
        """Of one device; a smaller one than its share of the batch costs a second forward pass."""
        if self.available is None:
            return None
        return largest_micro_batch(self.config, self.cost, self.archive, self.device, self.available)

    @property
    def seconds_per_volume(self) -> float | None:
        config = self.config
        return self.speed.seconds_per_volume(config.data.workers, not self.device.on_gpu, config.plan.devices)

    @property
    def hours(self) -> float | None:
        seconds = self.seconds_per_volume
        return None if seconds is None else self.config.train.steps * self.config.train.batch_size * seconds / 3600

    @property
    def epochs(self) -> float | None:
        """How often a patient is seen, on average."""
        drawn = self.config.train.steps * self.config.train.batch_size
        return drawn / self.archive.patients if self.archive.patients else None
