"""Where voxels live changes no bit of a batch; `auto` takes what fits; what does not fit or is damaged is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_caches import numbered, write_cache

from lejepa_med.config import PretrainConfig
from lejepa_med.data import residency
from lejepa_med.data.cache import Cache, entry_path
from lejepa_med.data.dataset import Batch, CacheSource, Item, ListSource, StepDataset, Subset
from lejepa_med.data.residency import choose_residency, free_host_bytes, make_resident, placed_source
from lejepa_med.data.sampler import StepSampler
from lejepa_med.errors import DataError

CPU = torch.device("cpu")


def config(**settings: Any) -> PretrainConfig:
    train = {"steps": settings.pop("steps", 10), "batch_size": 4}
    return PretrainConfig.model_validate({"data": settings, "train": train})


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Volumes of two shapes and types; one is CT."""
    arrays = [*numbered(3, (12, 14, 10), np.uint8), *numbered(3, (6, 20, 9), np.int16)]
    return write_cache(tmp_path, arrays, modality=["mri"] * 5 + ["ct"])


def batches(source: Any, size: tuple[int, ...], crops_per_read: int) -> list[Batch]:
    dataset = StepDataset(source, StepSampler(source.patients, 3, 0), size, 0, crops_per_read)
    return [batch for group in dataset.reads(range(1, 8)) for batch in dataset.batches(group)]


@pytest.mark.parametrize("crops_per_read", [1, 3])
@pytest.mark.parametrize("plane", [None, "axial", "coronal", "sagittal"])
def test_batches_are_the_same_wherever_the_voxels_are(cache: Cache, plane: str | None, crops_per_read: int) -> None:
    source, size = CacheSource(cache, cache.table, plane), (8, 8, 8) if plane is None else (8, 8)
    expected = batches(source, size, crops_per_read)
    for where in ("host", "device"):
        held = make_resident(source, where, CPU)  # type: ignore[arg-type]
        assert held.where == where and isinstance(held, CacheSource)
        for one, other in zip(expected, batches(held, size, crops_per_read), strict=True):
            assert one.images.dtype == other.images.dtype
            assert torch.equal(one.images, other.images)
            assert (one.keys, one.patients, one.sequences) == (other.keys, other.patients, other.sequences)
            assert torch.equal(one.spacing_mm, other.spacing_mm) and torch.equal(one.is_ct, other.is_ct)


def test_what_is_held_needs_no_file(cache: Cache) -> None:
    source = make_resident(CacheSource(cache, cache.table), "host", CPU)
    expected = batches(CacheSource(cache, cache.table), (8, 8, 8), 1)
    for file in (cache.folder / "volumes").rglob("*.npy"):
        file.unlink()
    for one, other in zip(expected, batches(source, (8, 8, 8), 1), strict=True):
        assert torch.equal(one.images, other.images)
    assert Subset(source, [1]).where == "host"


def test_a_list_can_live_on_the_device() -> None:
    items = [Item(array[None], (1.0,) * 3, False, f"item {n}") for n, array in enumerate(numbered(4, (9, 9, 9)))]
    source = ListSource(items, ["a", "a", "b", "c"])
    moved = placed_source(config(residency="device"), source, CPU)
    assert moved.where == "device" and moved.patients == source.patients and moved.groups == source.groups
    for one, other in zip(batches(source, (5, 5, 5), 1), batches(moved, (5, 5, 5), 1), strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    ("free", "asked", "steps", "where", "said"),
    [
        (10**9, "auto", 10, "host", "volumes are kept in memory"),
        (15_000, "auto", 10, "disk", "volumes stay on disk (0.0 GB of memory free)"),
        (10**9, "auto", 1, "disk", "volumes stay on disk (this run reads only some of them)"),
        (10**9, "device", 1, "device", "volumes, kept on the device, as asked for"),
        (10**9, "host", 1, "host", "volumes, kept in memory, as asked for"),
        (0, "disk", 10, "disk", "volumes, read from disk, as asked for"),
    ],
)
def test_the_choice_and_its_sentence(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, free: int, asked: str, steps: int, where: str, said: str
) -> None:
    monkeypatch.setattr(residency, "free_host_bytes", lambda: free)
    source = CacheSource(cache, cache.table)
    assert 11_000 < source.nbytes < 15_000
    heard: list[str] = []
    placed = placed_source(config(residency=asked, steps=steps), source, CPU, warn=heard.append)
    assert placed.where == where
    assert len(heard) == 1 and said in heard[0] and heard[0].startswith("data: 0.0 GB of ")


@pytest.mark.parametrize("asked", ["host", "device"])
def test_what_does_not_fit_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(residency, "free_host_bytes", lambda: 5)
    with pytest.raises(DataError, match=f"data.residency {asked}: the volumes of this run take 0.0 GB, 0"):
        choose_residency(config(residency=asked), CacheSource(cache, cache.table), CPU)


def test_size_is_of_what_is_selected_and_guessed_for_old_caches(cache: Cache) -> None:
    whole = CacheSource(cache, cache.table).nbytes
    assert whole == sum(entry_path(cache.folder, entry).stat().st_size for entry in cache.table["entry"])
    some = cache.table.iloc[[0, 5]].reset_index(drop=True)
    assert CacheSource(cache, some).nbytes == 12 * 14 * 10 + 2 * 6 * 20 * 9 + 2 * 128
    assert CacheSource(cache, some.assign(bytes=-1)).nbytes == 12 * 14 * 10 + 2 * 6 * 20 * 9


def test_a_damaged_volume_is_named_while_it_is_loaded(cache: Cache) -> None:
    row = cache.table.iloc[4]
    file = entry_path(cache.folder, row["entry"])
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="series s4 is missing or damaged; run `prepare` again to"):
        make_resident(CacheSource(cache, cache.table), "host", CPU)


def test_progress_of_loading(cache: Cache) -> None:
    heard: list[tuple[str, int, int]] = []
    make_resident(CacheSource(cache, cache.table), "host", CPU, lambda *now: heard.append(now))
    assert heard == [("volumes", number, 6) for number in range(1, 7)]


def test_free_memory_is_that_of_a_machine() -> None:
    assert 2**24 < free_host_bytes() < 2**50


def test_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = dataclasses.replace(residency.examine(), memory_free=10**12)
    monkeypatch.setattr(residency, "examine", lambda: machine)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_host_bytes() == 10**12 // 4
