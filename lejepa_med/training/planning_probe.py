"""What a plan takes from this machine: its memory, an archive's size, and the time of a few real steps.

A step that would take too long here is measured with one view of one size, and scaled by its FLOPs; where that is too
long as well, or the device is not here, a share of the peak of a matrix product has to do. The plan says which.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from lejepa_med.config import validate
from lejepa_med.config.planning import PlanConfig
from lejepa_med.data.dataset import Batch, StepDataset, split_monitored
from lejepa_med.data.residency import choose_residency
from lejepa_med.data.sampler import StepSampler
from lejepa_med.data.sources import CacheSource
from lejepa_med.data.training_source import base_size, cache_source
from lejepa_med.machine import examine
from lejepa_med.training.data_path_stages import measure_loading, measure_training
from lejepa_med.training.devices import choose_device, uses_bf16
from lejepa_med.training.model_cost import ModelCost, model_cost, voxels_of_views
from lejepa_med.training.planning import (
    USABLE,
    Archive,
    Device,
    Plan,
    Speed,
    disk_needed,
    is_recomputed,
    memory_needed,
    share_of_batch,
)
from lejepa_med.training.trackers import writes_tensorboard

_ASSUMED = 0.2  # share of the peak below which a step hardly falls: whether one is worth starting
_PROBED = 2  # volumes of a step that is measured on a CPU
_STORED = 2  # bytes of a voxel


def make_plan(config: PlanConfig) -> Plan:
    """The plan of a run. Raises UserError as the run would for a cache that is damaged or holds nobody to train on."""
    device = planned_device(config)
    archive, dataset = planned_archive(config)
    cost = model_cost(config, device.bf16, device.on_gpu)
    memory = memory_needed(config, cost, archive, device)
    return Plan(
        config=config,
        cost=cost,
        archive=archive,
        device=device,
        memory=memory,
        disk=disk_needed(config, cost, writes_tensorboard(config.logging)),
        disk_free=shutil.disk_usage(Path.cwd()).free,
        speed=_speed(config, cost, device, archive, dataset),
        busy=examine().is_busy,
    )


def planned_device(config: PlanConfig) -> Device:
    """The device of `train.device`, or the one that the section `plan` describes."""
    plan = config.plan
    if is_elsewhere(config):
        memory = None if plan.device_memory_gb is None else round(plan.device_memory_gb * 1e9)
        return Device("the GPU of the section `plan`", memory, config.train.precision != "float32", True, False)
    here = choose_device(config.train.device)
    on_gpu = here.type == "cuda"
    memory = torch.cuda.mem_get_info(here)[0] if on_gpu else examine().memory_free
    name = torch.cuda.get_device_name(here) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    return Device(name, memory, uses_bf16(config, here), on_gpu, True)


def is_elsewhere(config: PlanConfig) -> bool:
    """Whether the section `plan` describes a GPU."""
    return config.plan.device_memory_gb is not None or config.plan.device_tflops is not None


def planned_archive(config: PlanConfig) -> tuple[Archive, StepDataset | None]:
    """What there is to train on, and batches of it; none where the cache is still to be made."""
    cache, channels = config.data.cache, config.model.in_channels
    if cache is None or not cache.exists():
        size = _assumed_size(config)
        stored, number = _STORED * channels * math.prod(size), config.plan.volumes
        return Archive(
            math.prod(size), stored, number, number, None if number is None else number * stored, False
        ), None
    source = cache_source(config)
    seen, _ = split_monitored(source, config.data.monitor_fraction, config.data.holdout.seed)
    size = base_size(config, source)
    sampler = StepSampler(seen.patients, min(8, config.train.batch_size), config.seed, seen.groups)
    dataset = StepDataset(seen, sampler, size, config.seed)
    stored = dataset[0].images[0].nbytes
    table = source.cache.table
    stored_bytes = int(table["bytes"].clip(lower=0).sum())
    resident = _resident_bytes(config, source)
    numbers = len(seen.keys), len(set(seen.patients)), stored_bytes
    return Archive(math.prod(size), stored, *numbers, is_there=True, resident_bytes=resident), dataset


def _resident_bytes(config: PlanConfig, source: CacheSource) -> int:
    """Volumes that stay where the model is: in the memory of a CPU, or on a GPU (of another machine: if asked for)."""
    if is_elsewhere(config):
        return source.nbytes if config.data.residency == "device" else 0
    device = choose_device(config.train.device)
    where = choose_residency(config, source, device).where
    return source.nbytes if where == "device" or (where == "host" and device.type != "cuda") else 0


def _assumed_size(config: PlanConfig) -> tuple[int, ...]:
    side, axes = config.views.base_crop_mm, config.spatial_dims
    if side is None or config.data.kind == "images":
        return config.views.global_size
    return (max(1, round(side / config.plan.spacing_mm)),) * axes


def _speed(config: PlanConfig, cost: ModelCost, device: Device, archive: Archive, dataset: StepDataset | None) -> Speed:
    loading = None
    if dataset is not None and config.plan.probe_seconds:
        stages = measure_loading(dataset, lambda: False, config.plan.probe_seconds / 4)
        loading = sum(stage.seconds for stage in stages)
    if not device.is_here:
        given = config.plan.device_tflops
        peak = None if given is None else given * 1e12
        return _by_arithmetic(config, cost, peak, loading)
    here = choose_device(config.train.device)
    peak = matmul_flops(here, torch.bfloat16 if device.bf16 else torch.float32)
    batch = dataset[0] if dataset is not None else _noise(config)
    for probed in (config, _with_one_view(config)):
        tried = cost if probed is config else model_cost(probed, device.bf16, device.on_gpu, with_parts=False)
        if not _is_worth_starting(probed, tried, archive, device, peak):
            continue
        seconds, pass_again = config.plan.probe_seconds, device.on_gpu and is_recomputed(config)
        stages, trained = measure_training(batch, _of_one_device(probed, pass_again), seconds / 8, seconds / 2)
        ratio = cost.step_flops(is_recomputed(config)) / tried.step_flops(pass_again)
        took = sum(stage.seconds * (ratio if stage.name == "model" else 1.0) for stage in stages)
        if probed is config:
            return Speed(took, f"measured, {trained} volumes to a step", loading, peak)
        views = sum(stage.seconds for stage in stages if stage.name == "views")
        took += views * (voxels_of_views(config) / voxels_of_views(probed) - 1)
        return Speed(took, "measured with one view, scaled to all of them", loading, peak)
    return _by_arithmetic(config, cost, peak, loading)


def _of_one_device(config: PlanConfig, in_micro_batches: bool) -> PlanConfig:
    """Its share of the batch; a CPU's step is measured on two volumes, which are no micro-batches."""
    changed: dict[str, Any] = {"batch_size": max(2, share_of_batch(config))}
    if not in_micro_batches:
        changed["micro_batch"] = None
    return config.model_copy(update={"train": config.train.model_copy(update=changed)})


def _by_arithmetic(config: PlanConfig, cost: ModelCost, peak: float | None, loading: float | None) -> Speed:
    if peak is None:
        return Speed(None, "not known: give plan.device_tflops", loading, None)
    share = config.plan.utilisation
    seconds = cost.step_flops(is_recomputed(config)) / (share * peak)
    return Speed(seconds, f"not measured: {share:.0%} of the peak assumed", loading, peak)


def _is_worth_starting(config: PlanConfig, cost: ModelCost, archive: Archive, device: Device, peak: float) -> bool:
    """Whether a step of two volumes fits, and three of them take no longer than the time that is given."""
    few = config.train.model_copy(update={"batch_size": _PROBED, "micro_batch": None})
    memory = memory_needed(config.model_copy(update={"train": few}), cost, archive, device).total
    fits = device.memory is not None and memory <= USABLE * device.memory
    return fits and 3 * _PROBED * cost.step_flops() / (_ASSUMED * peak) <= config.plan.probe_seconds


def _with_one_view(config: PlanConfig) -> PlanConfig:
    """One view of the smaller size."""
    small = min(config.views.global_size, config.views.local_size, key=math.prod)
    changed: dict[str, Any] = {"num_global": 1, "num_local": 0, "global_size": small}
    return validate(PlanConfig, config.model_dump() | {"views": config.views.model_dump() | changed}, "plan")


def _noise(config: PlanConfig) -> Batch:
    """Base crops of the size that is assumed."""
    size, spatial = _assumed_size(config), config.spatial_dims
    shape = (_PROBED, config.model.in_channels, *size)
    draw = torch.Generator().manual_seed(0)
    spacing = config.plan.spacing_mm if config.views.base_crop_mm is not None else 1.0
    return Batch(
        images=torch.randint(1, 255, shape, dtype=torch.uint8, generator=draw),
        spacing_mm=torch.full((_PROBED, spatial), float(spacing)),
        is_ct=torch.zeros(_PROBED, dtype=torch.bool),
        keys=[f"noise {number}" for number in range(_PROBED)],
        patients=list(range(_PROBED)),
        sequences=[""] * _PROBED,
        slice_axis=torch.full((_PROBED,), -1),
    )


def matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of a large matrix product: the peak that utilisation is a share of. The fastest of several counts."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, end = math.inf, time.perf_counter() + seconds
    while math.isinf(best) or time.perf_counter() < end:
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
