"""Memory, disk and hours of a run before it starts: arithmetic on what is known, and what is not known is None.

memory of a device = weights, gradients, AdamW | base crops, views of its share of the batch | activations of one
micro-batch | projector, loss and the working space of the backward pass, whose largest gradients exist twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lejepa_med.config.planning import PlanConfig
from lejepa_med.training.model_cost import ModelCost, voxels_of_views

USABLE = 0.9
"""Share of a device's free memory that a plan uses: the rest is for fragments, kernels' workspaces and the context."""

_LINE = {"metrics": 190, "timing": 120, "diagnostics": 1500, "tensorboard": 700}  # bytes of a line, a step's scalars
_ON_DEVICE = 2  # batches of base crops: the one at work, and the one that is copied meanwhile


@dataclass(frozen=True)
class Archive:
    """What a run trains on. Without a cache there are the numbers of the config, or none; `crop_bytes` is of one."""

    crop_voxels: int
    crop_bytes: int
    volumes: int | None
    patients: int | None
    cache_bytes: int | None
    is_there: bool


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

    def largest_micro_batch(self, available: float, share: int) -> int:
        """Samples of a pass that fit, at most the device's share of the batch; 0 if not even one does."""
        rest = available - (self.total - self.samples * self.per_sample)
        return max(0, min(share, math.floor(rest / self.per_sample)))


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


def memory_needed(config: PlanConfig, cost: ModelCost, archive: Archive, device: Device) -> Memory:
    """The peak on one device during a step."""
    share = share_of_batch(config)
    samples = min(config.train.micro_batch or share, share)
    num_views = config.views.num_global + config.views.num_local
    buckets = 4 * cost.parameters if config.plan.devices > 1 else 0
    per_sample = cost.backbone_bytes + 2 * cost.largest_bytes
    parts = {
        "weights": 4.0 * cost.parameters + cost.buffer_bytes,
        "gradients": 4.0 * cost.parameters + buckets,
        "optimizer": 8.0 * cost.parameters,
        "weights in bf16": cost.cast_bytes,
        "weight average": float(_average(config, cost)),
        "copy to be saved": 0.0 if device.on_gpu else float(_checkpoint(config, cost)),
        "base crops": float(_ON_DEVICE * share * archive.crop_bytes),
        "views": 4.0 * share * config.model.in_channels * voxels_of_views(config),
        "activations": samples * per_sample,
        "projector": share * cost.projector_bytes,
        # Projections on the slices and their gradient; with several ranks only sums travel.
        "loss": 2 * 4.0 * num_views * share * config.objective.num_slices,
    }
    return Memory({name: round(size) for name, size in parts.items()}, samples, round(per_sample))


def _average(config: PlanConfig, cost: ModelCost) -> int:
    return 0 if config.train.ema_decay is None else 4 * cost.backbone_parameters


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
        return (
            None
            if self.available is None
            else self.memory.largest_micro_batch(self.available, share_of_batch(self.config))
        )

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
