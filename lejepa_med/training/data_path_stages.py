"""Clocks for the stages from disk to optimizer step: seconds per volume, repeated within a time. Nothing is written."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lejepa_med.backbones import build
from lejepa_med.config import PretrainConfig
from lejepa_med.data.cache import file_digest
from lejepa_med.data.dataset import Batch, StepDataset
from lejepa_med.errors import DataError
from lejepa_med.objective import build_objective
from lejepa_med.training.bottleneck import Stage
from lejepa_med.training.devices import choose_device, uses_bf16
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.optimizer import build_optimizer
from lejepa_med.views import BatchedMultiCrop

Given = TypeVar("Given")
Result = TypeVar("Result")
_REPEATS = 15
_BLOCK = 1 << 20
_DROPPED = 0.02  # a file of which less is in memory is read from disk
_CPU_STEP = 2  # volumes: a step on a CPU may take a minute, and costs the same per volume


@dataclass(frozen=True)
class StoredFile:
    """An entry of the cache: its series, file and what the manifest says of its bytes."""

    key: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class StorageResult:
    """Stages of reading whole files; `storage_cold` is missing where the page cache could not be emptied."""

    stages: list[Stage]
    damaged: list[str]
    checked: int


def measure_storage(files: Sequence[StoredFile], seconds: float) -> StorageResult:
    """Reads files from cold and warm pages and checks them, one after another until the time is over."""
    took: list[tuple[float, float, float, int]] = []
    damaged: list[str] = []
    cold_known, checked, end = True, 0, time.perf_counter() + seconds
    for file in files:
        if checked and time.perf_counter() > end:
            break
        checked += 1
        try:
            cold_known &= drop_pages([file.path])
            cold, size = _clocked(read_whole, file.path)
            warm, _ = _clocked(read_whole, file.path)
            checking, digest = _clocked(file_digest, file.path)
        except OSError:
            damaged.append(file.key)
            continue
        took.append((cold, warm, checking, size))
        if digest != file.sha256:
            damaged.append(file.key)
    if not took:
        return StorageResult([], damaged, checked)
    colds, warms, checks, sizes = zip(*took, strict=True)
    size = int(np.median(sizes))
    stages = [_stage("storage_warm", warms, size), _stage("checksum", checks, size)]
    return StorageResult([_stage("storage_cold", colds, size), *stages] if cold_known else stages, damaged, checked)


def measure_loading(dataset: StepDataset, drop: Callable[[], bool], seconds: float) -> list[Stage]:
    """Base crops: what cold pages add (`disk`, where `drop` can empty them), cutting from warm ones, and stacking."""
    disk, cutting, stacking = [], [], []
    step, cold_known, end = 0, True, time.perf_counter() + seconds
    dataset[0]  # what happens once: code that is loaded, folders that are looked up
    while step < 2 or (step < _REPEATS and time.perf_counter() < end):
        cold_known &= drop()
        cold, _ = _clocked(dataset.__getitem__, step)
        warm, batch = _clocked(dataset.__getitem__, step)
        crops = list(batch.images.numpy())
        stack, _ = _clocked(np.stack, crops)
        disk.append(max(0.0, cold - warm) / len(set(batch.keys)))
        cutting.append(max(0.0, warm - stack) / len(crops))
        stacking.append(stack / len(crops))
        step += 1
    size = batch.images[0].nbytes
    stages = [_stage("cutting", cutting, size), _stage("collation", stacking, size)]
    return [_stage("disk", disk), *stages] if cold_known else stages


def measure_training(batch: Batch, config: PretrainConfig, views_s: float, model_s: float) -> tuple[list[Stage], int]:
    """Copy to the device, views and a training step, and the volumes per batch; what is too large for it is halved.

    Raises:
        DataError: views and model do not fit on the device with two volumes.
    """
    device = choose_device(config.train.device)
    size = config.train.batch_size if device.type == "cuda" else min(len(batch.images), config.train.batch_size)
    while True:
        try:
            stages, images = _measure_views(batch, config, device, size, views_s)
            return [*stages, _measure_model(images, config, device, model_s)], size
        except torch.OutOfMemoryError:
            if size <= 2:
                raise DataError(
                    f"views and model {config.model.name} do not fit on {device} with 2 volumes; make one smaller"
                ) from None
            size = max(2, size // 2)
            torch.cuda.empty_cache()


def _measure_views(
    batch: Batch, config: PretrainConfig, device: torch.device, size: int, seconds: float
) -> tuple[list[Stage], list[Tensor]]:
    """Stages, and views to train on."""
    chosen = torch.arange(size) % len(batch.images)
    images, is_ct = batch.images[chosen], batch.is_ct[chosen]
    stages = []
    if device.type == "cuda":
        pinned = images.pin_memory()
        copies = _repeated(lambda step: pinned.to(device, non_blocking=True), 1.0, device)
        stages.append(_stage("copy", [one / size for one in copies], images[0].nbytes))
    images, is_ct = images.to(device), is_ct.to(device)
    crop = BatchedMultiCrop(config.views)
    spacing = batch.spacing_mm if isinstance(batch.spacing_mm, tuple) else batch.spacing_mm[chosen]
    made = _repeated(lambda step: crop(images, spacing, is_ct, ("doctor", step)), seconds, device)
    stages.append(_stage("views", [one / size for one in made]))
    return stages, crop(images, spacing, is_ct, ("doctor", 0))


def _measure_model(views: list[Tensor], config: PretrainConfig, device: torch.device, seconds: float) -> Stage:
    if device.type != "cuda":
        views = [of_size[:, :_CPU_STEP] for of_size in views]
    model = Pretrainer(build(config.model), config.projector, config.train.micro_batch).to(device).train()
    loss_function = build_objective(config.objective, config.seed)
    optimizer = build_optimizer(model, config.optim)
    shape = (sum(len(of_size) for of_size in views), views[0].shape[1], config.projector.dim)
    loss_function(torch.randn(shape, device=device), config.views.num_global, 0)  # builds its kernel, once

    def train(step: int) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(config, device)):
            _, projections = model(views)
        loss = loss_function(projections, config.views.num_global, step)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or float("inf"))
        optimizer.step()

    return _stage("model", [one / views[0].shape[1] for one in _repeated(train, seconds, device)])


def drop_pages(paths: Sequence[Path]) -> bool:
    """Asks the system to forget what it read of these files; False where it does not, so that no cold read follows."""
    if not hasattr(os, "posix_fadvise"):
        return False
    dropped = [_drop(path) for path in paths]
    return all(dropped)


def _drop(path: Path) -> bool:
    with path.open("rb") as file:
        with contextlib.suppress(OSError):  # a file system that is mounted read-only may refuse
            os.fsync(file.fileno())  # else pages that are not written yet stay
        for _ in range(5):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if share_in_memory(file.fileno()) < _DROPPED:
                return True
            time.sleep(0.01)  # pages that are still being read ahead stay
    return False


def share_in_memory(descriptor: int) -> float:
    """The share of a file's pages that need no disk; 0 where the system cannot tell.

    Linux tells only those who may write the file, and calls all pages of other files present.
    """
    size = os.fstat(descriptor).st_size
    if size == 0 or not os.access(f"/proc/self/fd/{descriptor}", os.W_OK):
        return 0.0
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        start, found = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(pages.ctypes.data)
        failed = ctypes.CDLL(None).mincore(start, ctypes.c_size_t(size), found)
        del view  # it holds the map open
    return 0.0 if failed else float(np.mean(pages & 1))


def read_whole(path: Path) -> int:
    """Reads a file once, in blocks; its bytes."""
    block, total = bytearray(_BLOCK), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            total += count
    return total


def _clocked(work: Callable[[Given], Result], given: Given) -> tuple[float, Result]:
    began = time.perf_counter()
    result = work(given)
    return time.perf_counter() - began, result


def _repeated(work: Callable[[int], object], seconds: float, device: torch.device) -> list[float]:
    """Seconds of each repeat but the first, which fills memory pools; of the first alone if that took all the time."""

    def finished(step: int) -> None:
        work(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    end = time.perf_counter() + seconds
    first, _ = _clocked(finished, 0)
    if first > seconds:
        return [first]
    took = [_clocked(finished, 1)[0]]
    while len(took) < _REPEATS and time.perf_counter() + took[-1] < end:
        took.append(_clocked(finished, len(took) + 1)[0])
    return took


def _stage(name: str, seconds: Sequence[float], size: int | None = None) -> Stage:
    low, median, high = (float(value) for value in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return Stage(name, median, low, high, len(seconds), size)
