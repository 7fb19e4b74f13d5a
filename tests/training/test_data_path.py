"""Stages are measured on real caches; each kind of slowness that is put in comes out as the bottleneck."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lejepa_med.cli.doctor_text import as_numbers
from lejepa_med.config import PretrainConfig
from lejepa_med.data.cache import Cache, entry_name, entry_path, publish_manifest, write_entry, write_settings
from lejepa_med.data.dataset import Item, ListSource, StepDataset
from lejepa_med.data.sampler import StepSampler
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec
from lejepa_med.training import data_path, data_path_stages
from lejepa_med.training.bottleneck import Setting, Stage, diagnose
from lejepa_med.training.data_path import default_config, measure
from lejepa_med.training.data_path_stages import (
    StoredFile,
    drop_pages,
    measure_loading,
    measure_storage,
    measure_training,
    share_in_memory,
)

SMALL: dict[str, Any] = {
    "model": {"name": "resnet10_3d", "width": 0.125, "stem_pool": False},
    "projector": {"hidden": 8, "dim": 4},
    "objective": {"num_slices": 8, "kernel": "eager"},
    "views": {
        "num_local": 1,
        "global_size": [16, 16, 16],
        "local_size": [8, 8, 8],
        "base_crop_mm": 40,
        "global_pitch_mm": None,
        "local_pitch_mm": None,
    },
    "train": {"batch_size": 4, "device": "cpu", "precision": "float32"},
}
FLAT = {
    "model": {"name": "timm/resnet10t", "width": 1.0, "stem_pool": True},
    "views": SMALL["views"] | {"global_size": [24, 24], "local_size": [16, 16]},
}
ROOMY = Setting(0, 4, 4, 10**6, False, 8, 10**12, 10**10, None)


def small(**sections: dict[str, Any]) -> PretrainConfig:
    return PretrainConfig.model_validate({name: {**SMALL.get(name, {}), **sections.get(name, {})} for name in
                                          {*SMALL, *sections}})  # fmt: skip


def make(folder: Path, shapes: list[tuple[int, ...]], modality: str = "mri") -> Path:
    """A cache of random volumes `s0`, `s1`, ... at 2 mm."""
    preprocess = PreprocessSpec(spacing_mm=(2.0, 2.0, 2.0))
    write_settings(folder, preprocess)
    rows = []
    for number, shape in enumerate(shapes):
        array = np.random.default_rng(number).integers(0, 200, shape).astype(np.int16 if modality == "ct" else np.uint8)
        entry = entry_name(f"s{number}", "x", preprocess)
        written = write_entry(folder, entry, array)
        row = {"series_key": f"s{number}", "patient_key": f"p{number}", "study_key": "", "modality": modality}
        row |= {"sequence": "", "shape": list(shape), "spacing_mm": [2.0] * 3 if len(shape) == 3 else None}
        rows.append(row | {"entry": entry, "group_key": f"s{number}", **written._asdict()})
    publish_manifest(folder, pd.DataFrame(rows))
    return folder


def file_of(folder: Path, number: int) -> Path:
    cache = Cache.open(folder)
    return entry_path(folder, cache.table["entry"].iloc[number])


def named(stages: list[Stage]) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages}


def test_a_cache_from_end_to_end(tmp_path: Path) -> None:
    folder = make(tmp_path / "cache", [(20, 24, 22)] * 3)
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    began = time.perf_counter()
    found = measure(folder, small(), seconds=2.0)
    assert time.perf_counter() - began < 60
    stages = named(found.stages)
    assert {"storage_warm", "checksum", "cutting", "collation", "views", "model"} <= set(stages)
    assert set(stages) - {"storage_cold", "disk"} == {
        "storage_warm",
        "checksum",
        "cutting",
        "collation",
        "views",
        "model",
    }
    for stage in found.stages:
        assert 0 <= stage.low <= stage.seconds <= stage.high
        assert stage.repeats >= 1
    assert stages["checksum"].bytes == stages["storage_warm"].bytes == file_of(folder, 0).stat().st_size
    assert stages["cutting"].bytes == 20**3, "40 mm at 2 mm, one byte per voxel"
    assert (found.volumes, found.checked, found.damaged, found.device) == (3, 3, [], "cpu")
    assert found.setting.cache_bytes == sum(file_of(folder, number).stat().st_size for number in range(3))
    assert (found.setting.batch_size, found.setting.batch_bytes) == (4, 4 * 20**3)
    assert found.verdict == diagnose(found.stages, found.setting)
    after = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    assert after == before, "nothing is written"


@pytest.mark.parametrize(
    ("shapes", "modality", "config"),
    [
        ([(20, 24, 22)], "mri", small()),
        ([(20, 24, 22), (8, 9, 10)], "ct", small()),
        ([(40, 44)] * 3, "mri", None),
        ([(40, 44), (50, 41), (20, 24, 22)], "mri", small(data={"kind": "images"}, **FLAT)),
        ([(40, 44, 22)] * 2, "mri", small(data={"kind": "slices", "plane": "axial"}, **FLAT)),
    ],
    ids=["one volume", "two of CT", "pictures with defaults", "pictures beside a volume", "slices"],
)
def test_every_kind_of_cache(
    tmp_path: Path, shapes: list[tuple[int, ...]], modality: str, config: PretrainConfig | None
) -> None:
    found = measure(make(tmp_path / "cache", shapes, modality), config, seconds=0.5)
    assert {"cutting", "views", "model"} <= set(named(found.stages))
    assert found.verdict.volumes_per_s > 0


def test_defaults_follow_the_cache(tmp_path: Path) -> None:
    def of(name: str, shapes: list[tuple[int, ...]], modality: str) -> PretrainConfig:
        return default_config(Cache.open(make(tmp_path / name, shapes, modality)))

    pictures = of("pictures", [(300, 260), (300, 200)], "mri")
    assert (pictures.data.kind, pictures.views.global_size, pictures.views.local_size) == (
        "images",
        (200,) * 2,
        (96,) * 2,
    )
    assert (pictures.model.name, pictures.views.base_crop_mm) == ("timm/resnet18", None)
    assert of("heads", [(9, 9, 9)], "mri") == PretrainConfig()
    assert of("chests", [(9, 9, 9)], "ct").views.base_crop_mm == 256.0


def test_damaged_entries_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = make(tmp_path / "cache", [(20, 24, 22)] * 5)
    content = file_of(folder, 1).read_bytes()
    file_of(folder, 1).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    file_of(folder, 3).unlink()
    found = measure(folder, small(), seconds=0.5)
    assert (found.damaged, found.checked, found.volumes) == (["s1", "s3"], 5, 5)
    assert "cutting" in named(found.stages)


def test_a_cache_of_which_nothing_is_whole(tmp_path: Path) -> None:
    folder = make(tmp_path / "cache", [(20, 24, 22)] * 2)
    for number in range(2):
        file_of(folder, number).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 2 volumes looked at, each is missing .* first is series s0"):
        measure(folder, small(), seconds=0.5)


def test_a_config_that_reads_something_else(tmp_path: Path) -> None:
    folder = make(tmp_path / "cache", [(40, 44)])
    with pytest.raises(DataError, match=r"no 3D entry, but data\.kind volumes reads 3D"):
        measure(folder, small(), seconds=0.5)


def test_a_busy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = dataclasses.replace(data_path.examine(), load=9.0, cores_present=2)
    monkeypatch.setattr(data_path, "examine", lambda: machine)
    folder = make(tmp_path / "cache", [(20, 24, 22)] * 2)
    found = measure(folder, small(data={"workers": 2}), seconds=0.5)
    assert found.busy == "9.0 processes on 2 cores"
    assert "Other work kept the cores busy (9.0 processes" in " ".join(as_numbers(found)["remarks"])


def test_a_system_that_keeps_files_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_path, "drop_pages", lambda _: False)
    monkeypatch.setattr(data_path_stages, "drop_pages", lambda _: False)
    found = measure(make(tmp_path / "cache", [(20, 24, 22)] * 2), small(), seconds=0.5)
    assert {"disk", "storage_cold"} & set(named(found.stages)) == set()


def test_pages_that_were_dropped_are_gone_and_the_bytes_stay(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 4_000_000)
    with file.open("rb") as stream:
        assert share_in_memory(stream.fileno()) == 1.0
        dropped = drop_pages([file])
        assert (share_in_memory(stream.fileno()) < 0.02) == dropped  # False on a file system that lives in memory
        assert data_path_stages.read_whole(file) == 4_000_000
        assert share_in_memory(stream.fileno()) == 1.0
    assert file.read_bytes() == b"x" * 4_000_000


def test_storage_stops_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = data_path_stages.read_whole

    def slow(path: Path) -> int:
        time.sleep(0.02)
        return real(path)

    monkeypatch.setattr(data_path_stages, "read_whole", slow)
    for number in range(30):
        (tmp_path / f"{number}").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    files = [StoredFile(f"s{number}", tmp_path / f"{number}", digest) for number in range(30)]
    found = measure_storage(files, seconds=0.1)
    assert 1 <= found.checked < 30
    assert found.damaged == []
    warm = named(found.stages)["storage_warm"]
    assert warm.seconds >= 0.02 and warm.bytes == 1 and warm.repeats == found.checked


class Slow(ListSource):
    """Items that take time to read, more of it the first time after `drop`."""

    def __init__(self, warm_s: float, cold_s: float) -> None:
        arrays = [np.random.default_rng(seed).integers(0, 200, (1, 20, 20, 20)).astype(np.uint8) for seed in range(4)]
        super().__init__([Item(array, (2.0, 2.0, 2.0), False, f"s{number}") for number, array in enumerate(arrays)])
        self.warm_s, self.cold_s, self.cold = warm_s, cold_s, set[int]()

    def drop(self) -> bool:
        self.cold = set(range(4))
        return True

    def read_several(self, index: int, draws: Sequence[torch.Generator]) -> list[Item]:
        time.sleep(self.warm_s + (self.cold_s if index in self.cold else 0.0))
        self.cold.discard(index)
        return super().read_several(index, draws)


def stages_of(source: Slow, config: PretrainConfig) -> list[Stage]:
    dataset = StepDataset(source, StepSampler(source.patients, 4, 0), (20, 20, 20), seed=0)
    loading = measure_loading(dataset, source.drop, 0.0)
    return loading + measure_training(dataset[0], config, 0.0, 0.0)[0]


@pytest.mark.parametrize(("warm_s", "cold_s", "expected"), [(0.2, 0.0, "cutting"), (0.0, 0.2, "disk")])
def test_delays_of_a_source_are_found(warm_s: float, cold_s: float, expected: str) -> None:
    found = stages_of(Slow(warm_s, cold_s), small())
    assert named(found)[expected].seconds == pytest.approx(0.2, rel=0.4)
    verdict = diagnose(found, ROOMY)
    assert verdict.bottleneck == expected
    assert {"disk": "reading from disk", "cutting": "cutting and stacking"}[expected] in verdict.sentence


def delayed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def slow(*given: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return function(*given, **named)

    return slow


@pytest.mark.parametrize("part", ["views", "model"])
def test_delays_of_views_and_model_are_found(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = {
        "views": (data_path_stages.BatchedMultiCrop, "__call__"),
        "model": (data_path_stages.Pretrainer, "forward"),
    }[part]
    monkeypatch.setattr(owner, name, delayed(getattr(owner, name), 1.2))
    found = stages_of(Slow(0.0, 0.0), small())
    assert named(found)[part].seconds >= (0.3 if part == "views" else 0.6), "1.2 s per batch of 4, or of 2"
    assert diagnose(found, ROOMY).bottleneck == part


def test_a_batch_too_large_for_the_device_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = data_path_stages._measure_views, []

    def limited(batch: Any, config: Any, device: Any, size: int, seconds: float) -> Any:
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("out of memory")
        return real(batch, config, device, size, seconds)

    monkeypatch.setattr(data_path_stages, "_measure_views", limited)
    source = Slow(0.0, 0.0)
    dataset = StepDataset(source, StepSampler(source.patients, 4, 0), (20, 20, 20), seed=0)
    most = 2
    assert measure_training(dataset[0], small(), 0.0, 0.0)[1] == 2
    assert tried == [4, 2]
    most = 1
    with pytest.raises(DataError, match="resnet10_3d do not fit on cpu with 2 volumes"):
        measure_training(dataset[0], small(), 0.0, 0.0)
