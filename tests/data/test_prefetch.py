"""Batches come in order and are the same for any number of workers; memory is bounded; nothing outlives the loop."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_caches import numbered, write_cache

from lejepa_med.config.pretraining import DataConfig
from lejepa_med.data.cache import entry_path
from lejepa_med.data.dataset import Batch, CacheSource, DatasetSource, Source, StepDataset
from lejepa_med.data.prefetch import Ahead, feed
from lejepa_med.data.sampler import StepSampler
from lejepa_med.errors import DataError

CPU = torch.device("cpu")


class Volumes(torch.utils.data.Dataset[torch.Tensor]):
    """Item 3 cannot be read if `damaged`."""

    def __init__(self, damaged: bool = False) -> None:
        self.damaged = damaged

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.damaged and index == 3:
            raise DataError("series item 3: not a scan")
        return torch.rand(1, 9, 9, 9, generator=torch.Generator().manual_seed(index))


def fed(source: Source, steps: range, config: DataConfig) -> list[tuple[int, Batch, float]]:
    dataset = StepDataset(source, StepSampler(source.patients, 3, 0), (6, 6, 6), 0, config.crops_per_read)
    with feed(dataset, steps, config, CPU) as batches:
        return list(batches)


@pytest.mark.parametrize("crops_per_read", [1, 4])
@pytest.mark.parametrize("kind", ["cache", "dataset"])
def test_the_same_for_any_number_of_workers(tmp_path: Path, kind: str, crops_per_read: int) -> None:
    cache = write_cache(tmp_path, numbered(7))
    source: Source = CacheSource(cache, cache.table) if kind == "cache" else DatasetSource(Volumes())
    whole = fed(source, range(11), DataConfig(crops_per_read=crops_per_read))
    assert [step for step, _, _ in whole] == list(range(11))
    assert all(waited >= 0 for _, _, waited in whole)
    for workers, start in ((1, 0), (2, 0), (2, 6)):  # the last as a run that is resumed
        config = DataConfig(workers=workers, prefetch=3, crops_per_read=crops_per_read)
        parts = fed(source, range(start, 11), config)
        assert [step for step, _, _ in parts] == list(range(start, 11))
        for (_, one, _), (_, other, _) in zip(whole[start:], parts, strict=True):
            assert torch.equal(one.images, other.images) and one.keys == other.keys


def test_steps_of_a_read_share_scans_but_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path, numbered(7))
    source, opened = CacheSource(cache, cache.table), []
    stored = cache.stored
    monkeypatch.setattr(cache, "stored", lambda key: opened.append(key) or stored(key))
    batches = [batch for _, batch, _ in fed(source, range(12), DataConfig(crops_per_read=4))]
    for first in (0, 4, 8):
        group = batches[first : first + 4]
        assert len({tuple(batch.keys) for batch in group}) == 1
        assert len({batch.images.numpy().tobytes() for batch in group}) == 4
    assert batches[0].keys != batches[4].keys
    assert len(opened) == 9, "3 groups of 3 scans"
    alone = StepDataset(source, StepSampler(source.patients, 3, 0), (6, 6, 6), 0, 4)
    assert torch.equal(alone[6].images, batches[6].images)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_as_one_sentence_at_its_step(tmp_path: Path, workers: int) -> None:
    cache = write_cache(tmp_path, numbered(7))
    source = CacheSource(cache, cache.table)
    sampler = StepSampler(source.patients, 1, 0)
    damaged = sampler.batch(4)[0]
    entry_path(tmp_path, cache.table["entry"][damaged]).write_bytes(b"")
    with feed(StepDataset(source, sampler, (6, 6, 6), 0), range(6), DataConfig(workers=workers), CPU) as batches:
        for step in range(4):
            assert next(batches)[0] == step
        with pytest.raises(DataError) as caught:
            next(batches)
    assert str(caught.value).startswith(
        f"cache {tmp_path}: series s{damaged} is missing or damaged; run `prepare` again"
    )
    source = DatasetSource(Volumes(damaged=True))
    with pytest.raises(DataError) as caught:
        fed(source, range(9), DataConfig(workers=workers))
    assert str(caught.value) == "series item 3: not a scan"


def test_no_more_is_made_than_may_wait_and_the_thread_ends() -> None:
    made: list[int] = []
    closed = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            closed.set()

    with Ahead(numbers(), 3) as ahead:
        for taken in range(1, 6):
            assert next(ahead) == taken - 1
            deadline = time.monotonic() + 20
            while len(made) < taken + 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            assert len(made) == taken + 3
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_the_end_and_errors_pass_through_a_chain() -> None:
    with Ahead(iter([1, 2]), 1) as first, Ahead((2 * number for number in first), 1) as second:
        assert list(second) == [2, 4]

    def fails() -> Iterator[int]:
        yield 1
        raise DataError("series x: no")

    with Ahead(fails(), 2) as first, Ahead(iter(first), 1) as second:
        assert next(second) == 1
        with pytest.raises(DataError, match="series x: no"):
            next(second)


def test_a_loop_that_stops_early_leaves_no_thread(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, numbered(7))
    source = CacheSource(cache, cache.table)
    dataset = StepDataset(source, StepSampler(source.patients, 3, 0), (6, 6, 6), 0)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), feed(dataset, range(1000), DataConfig(workers=2), CPU) as batches:
        next(batches)
        raise KeyboardInterrupt
    assert threading.active_count() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", ["disk", "host", "device"])
def test_batches_on_a_gpu_are_those_of_the_cpu(tmp_path: Path, where: str) -> None:
    from lejepa_med.data.residency import make_resident

    cache, cuda = write_cache(tmp_path, numbered(7)), torch.device("cuda")
    source = CacheSource(cache, cache.table)
    held = make_resident(source, where, cuda)  # type: ignore[arg-type]
    dataset = StepDataset(held, StepSampler(source.patients, 3, 0), (6, 6, 6), 0)
    with feed(dataset, range(30), DataConfig(workers=2), cuda) as batches:
        for (_, one, _), (_, other, _) in zip(batches, fed(source, range(30), DataConfig()), strict=True):
            assert one.images.is_cuda and torch.equal(one.images.cpu(), other.images)


FAILING = """
import torch
from lejepa_med.config.pretraining import DataConfig
from lejepa_med.data.dataset import DatasetSource, StepDataset
from lejepa_med.data.prefetch import feed
from lejepa_med.data.sampler import StepSampler

class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        raise ValueError("a decoder of the user")

class Source(DatasetSource):
    def read(self, index, draw):
        return self.dataset[index]

source = Source(Broken())
dataset = StepDataset(source, StepSampler(source.patients, 2, 0), (4, 4, 4), 0)
with feed(dataset, range(8), DataConfig(workers=2), torch.device("cpu")) as fed:
    for _ in fed:
        pass
"""


def test_a_foreign_error_in_a_worker_ends_the_program() -> None:
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "a decoder of the user" in done.stderr
