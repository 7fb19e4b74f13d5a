"""The way of a cache's volumes into a model, measured without a training run: the verdict on a cache.

Some volumes, spread over the cache, are read whole from cold and warm pages and checked; batches of them are cut, made
into views and trained on by a network that is thrown away. It takes about a given time, and nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lejepa_med.config import ModelConfig, PretrainConfig, ViewsConfig
from lejepa_med.data.cache import Cache, entry_path
from lejepa_med.data.dataset import Batch, CacheSource, StepDataset
from lejepa_med.data.sampler import StepSampler
from lejepa_med.data.training_source import base_size
from lejepa_med.errors import DataError
from lejepa_med.machine import Machine, examine
from lejepa_med.training.bottleneck import Setting, Stage, Verdict, diagnose
from lejepa_med.training.data_path_stages import (
    StoredFile,
    drop_pages,
    measure_loading,
    measure_storage,
    measure_training,
)
from lejepa_med.training.devices import choose_device

_VOLUMES = 32  # that are looked at
_LOADED = 8  # volumes of a batch that is read for measuring
_STORAGE, _LOADING, _VIEWS, _MODEL = 0.25, 0.2, 0.2, 0.35  # of the time


@dataclass(frozen=True)
class DataPath:
    """What was measured. `damaged` are series keys among the `checked` of all `volumes`.

    `trained` volumes made a batch on the device, fewer than `setting.batch_size` where they did not fit.
    `busy` says how many processes shared the cores, empty if there were enough of these.
    """

    stages: list[Stage]
    setting: Setting
    verdict: Verdict
    volumes: int
    checked: int
    damaged: list[str]
    device: str
    threads: int
    model: str
    trained: int
    busy: str


def measure(folder: Path, config: PretrainConfig | None = None, seconds: float = 40.0) -> DataPath:
    """The path of a cache, with views, model and batch of `config`, or of what one would start with on this cache.

    Raises:
        DataError: no such cache, no volume of the kind that the config reads, or none that is whole.
    """
    machine = examine()
    cache = Cache.open(folder, verify=False)  # checking is a stage of its own here
    config = config or default_config(cache)
    table = _readable(cache, config)
    chosen = table.iloc[np.unique(np.linspace(0, len(table) - 1, _VOLUMES).round().astype(int))]
    entries = zip(chosen["series_key"], chosen["entry"], chosen["sha256"], strict=True)
    files = [StoredFile(str(key), entry_path(folder, entry), str(digest)) for key, entry, digest in entries]
    storage = measure_storage(files, _STORAGE * seconds)
    whole = [file for file in files[: storage.checked] if file.key not in storage.damaged]
    if not whole:
        raise DataError(
            f"cache {folder}: {storage.checked} of {len(table)} volumes looked at, each is missing or damaged; "
            f"the first is series {storage.damaged[0]}; run `prepare` again to rebuild them"
        )
    dataset = _dataset(cache, chosen[chosen["series_key"].isin([file.key for file in whole])], config)
    loading = measure_loading(dataset, lambda: drop_pages([file.path for file in whole]), _LOADING * seconds)
    batch = dataset[0]
    training, trained = measure_training(batch, config, _VIEWS * seconds, _MODEL * seconds)
    stages = [*storage.stages, *loading, *training]
    setting = _setting(config, batch, _bytes_of(table, folder), machine)
    return DataPath(
        stages=stages,
        setting=setting,
        verdict=diagnose(stages, setting),
        volumes=len(table),
        checked=storage.checked,
        damaged=storage.damaged,
        device=str(choose_device(config.train.device)),
        threads=torch.get_num_threads(),
        model=config.model.name,
        trained=trained,
        busy=f"{machine.load:.1f} processes on {machine.cores_present} cores" if machine.is_busy else "",
    )


def default_config(cache: Cache) -> PretrainConfig:
    """What one would start with: 2D for pictures, 3D otherwise; a larger region for CT."""
    first = cache.table.iloc[0]
    if len(first["shape"]) != 2:
        return PretrainConfig(
            views=_views_of(256.0 if first["modality"] == "ct" else 192.0, max(map(float, first["spacing_mm"])))
        )
    side = min(min(shape) for shape in cache.table["shape"] if len(shape) == 2)
    views = ViewsConfig(
        base_crop_mm=None,
        global_size=(min(224, side),) * 2,
        local_size=(min(96, side),) * 2,
        global_pitch_mm=None,
        local_pitch_mm=None,
    )
    sections = {"data": {"kind": "images"}, "model": ModelConfig(name="timm/resnet18"), "views": views}
    return PretrainConfig.model_validate(sections)


def _views_of(region_mm: float, spacing_mm: float) -> ViewsConfig:
    """The usual views; of coarse voxels, of which a region holds too few for them, smaller ones."""
    usual, voxels = ViewsConfig(base_crop_mm=region_mm), int(region_mm / spacing_mm)
    if voxels * usual.max_magnification >= max(usual.global_size):
        return usual
    side = max(8, voxels // 8 * 8)
    return usual.model_copy(
        update={
            "global_size": (side,) * 3,
            "local_size": (max(8, side // 2),) * 3,
            "global_pitch_mm": (spacing_mm, 3 * spacing_mm),
            "local_pitch_mm": (0.7 * spacing_mm, 1.5 * spacing_mm),
        }
    )


def _readable(cache: Cache, config: PretrainConfig) -> pd.DataFrame:
    """Rows of the kind that the config reads."""
    table = cache.select(config.data.modalities, config.data.sequences)
    axes = 2 if config.data.kind == "images" else 3
    fitting = table[[len(shape) == axes for shape in table["shape"]]]
    if fitting.empty:
        raise DataError(
            f"cache {cache.folder}: it holds no {axes}D entry, but data.kind {config.data.kind} reads {axes}D ones; "
            "set data.kind, views and model"
        )
    return fitting


def _dataset(cache: Cache, rows: pd.DataFrame, config: PretrainConfig) -> StepDataset:
    plane = config.data.plane if config.data.kind == "slices" else None
    source = CacheSource(cache, rows.reset_index(drop=True), plane)
    sampler = StepSampler(source.patients, min(_LOADED, config.train.batch_size), 0, source.groups)
    return StepDataset(source, sampler, base_size(config, source), seed=0)


def _bytes_of(table: pd.DataFrame, folder: Path) -> int:
    if (table["bytes"] >= 0).all():
        return int(table["bytes"].sum())
    files = (entry_path(folder, entry) for entry in table["entry"])
    return sum(file.stat().st_size for file in files if file.exists())


def _setting(config: PretrainConfig, batch: Batch, cache_bytes: int, machine: Machine) -> Setting:
    device = choose_device(config.train.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
    return Setting(
        workers=config.data.workers,
        batches=config.data.prefetch + config.data.crops_per_read + 1,
        batch_size=config.train.batch_size,
        batch_bytes=config.train.batch_size * batch.images[0].nbytes,
        on_gpu=on_gpu,
        cores=machine.cores,
        cache_bytes=cache_bytes,
        memory_free=machine.memory_free,
        device_memory_free=torch.cuda.mem_get_info(device)[0] if on_gpu else None,
    )
