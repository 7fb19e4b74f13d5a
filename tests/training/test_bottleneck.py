"""Each verdict follows from numbers alone, and its sentence says what to do about it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lejepa_med.training.bottleneck import Setting, Stage, Verdict, diagnose, in_words, milliseconds

GB = 10**9
SETTING = Setting(
    workers=0,
    batches=4,
    batch_size=64,
    batch_bytes=GB // 2,
    on_gpu=True,
    cores=16,
    cache_bytes=350 * GB,
    memory_free=100 * GB,
    device_memory_free=70 * GB,
)
BALANCED = {"cutting": 1.0, "collation": 0.5, "copy": 0.2, "views": 1.0, "model": 2.0}


def verdict(milliseconds_: dict[str, float], **setting: object) -> Verdict:
    stages = [Stage(name, ms / 1e3, ms / 1e3, ms / 1e3, 5, None) for name, ms in milliseconds_.items()]
    return diagnose(stages, dataclasses.replace(SETTING, **setting))  # type: ignore[arg-type]


def test_a_slow_disk() -> None:
    found = verdict(BALANCED | {"disk": 40.0})
    assert found.bottleneck == "disk"
    assert found.factor == pytest.approx(41.5 / 3.2)
    assert found.volumes_per_s == pytest.approx(1000 / 41.5)
    assert found.waiting == pytest.approx(1 - 3.2 / 41.5)
    assert found.sentence.startswith("The bottleneck is reading from disk: 40 ms per volume; without it training")
    assert "13.0 times as fast, and 92% of the time training waits for batches." in found.sentence
    assert found.workers_to_hide == 13  # 41.5 / 3.2
    assert "copy the cache (350.0 GB) to a local SSD" in found.advice["disk"]
    assert "data.workers=13" in found.advice["workers"]


def test_a_slow_disk_and_a_cache_that_fits_on_the_device() -> None:
    found = verdict(BALANCED | {"disk": 40.0}, cache_bytes=50 * GB, memory_free=20 * GB)
    assert "set data.residency=device" in found.advice["disk"]


def test_the_disk_of_a_cache_that_stays_in_memory_counts_once() -> None:
    stages = [Stage(name, ms / 1e3, 0.0, 0.0, 5, None) for name, ms in (BALANCED | {"disk": 40.0}).items()]
    cold = Stage("storage_cold", 0.05, 0.05, 0.05, 5, 7_000_000)
    found = diagnose([cold, *stages], dataclasses.replace(SETTING, cache_bytes=70 * GB))
    assert found.bottleneck == "model"
    assert "disk" not in found.advice
    assert "the first pass only (about 8 min of reading)" in found.advice["first_pass"]  # 10,000 volumes x 50 ms


def test_cutting_without_workers() -> None:
    found = verdict(BALANCED | {"cutting": 9.0})
    assert found.bottleneck == "cutting"
    assert "cutting and stacking base crops: 9.5 ms per volume" in found.sentence
    assert "views.base_crop_mm" in found.advice["cutting"]
    assert "Set data.workers=3: 3 reading threads can hide the reading" in found.advice["workers"]


def test_more_workers_than_cores() -> None:
    found = verdict(BALANCED | {"cutting": 9.0}, cores=2)
    assert found.workers_to_hide == 3
    assert (
        "3 reading threads would hide the reading, but 2 cores leave room for 1: set data.workers=1"
        in (found.advice["workers"])
    )


def test_workers_hide_the_reading() -> None:
    numbers = BALANCED | {"cutting": 9.0}
    found = verdict(numbers, workers=3)
    assert (found.bottleneck, found.waiting) == ("model", 0.0)
    assert found.volumes_per_s == pytest.approx(1000 / 3.2)
    assert found.sentence.endswith("training hardly ever waits.")
    assert set(found.advice) == {"model"}
    too_few = verdict(numbers, workers=1)
    assert too_few.bottleneck == "cutting"
    assert too_few.factor == pytest.approx(9.5 / 3.2)
    assert too_few.waiting == pytest.approx(1 - 3.2 / 9.5)


@pytest.mark.parametrize(("on_gpu", "advice"), [(False, "made on the CPU (16 cores): on a GPU"), (True, "on the GPU")])
def test_slow_views(on_gpu: bool, advice: str) -> None:
    found = verdict(BALANCED | {"views": 30.0}, on_gpu=on_gpu)
    assert found.bottleneck == "views"
    assert "The bottleneck is making the views: 30 ms per volume" in found.sentence
    assert advice in found.advice["views"]


def test_slow_copies() -> None:
    found = verdict(BALANCED | {"copy": 30.0})
    assert found.bottleneck == "copy"
    assert "copying batches to the device" in found.sentence
    assert "data.residency=device" in found.advice["copy"]


def test_a_model_that_takes_longest_is_as_it_should_be() -> None:
    found = verdict(BALANCED | {"model": 100.0})
    assert found.bottleneck == "model"
    assert found.factor == pytest.approx(101.2 / 1.5)
    assert "as it should be; the data path alone could feed 67.5 times as many" in found.sentence
    assert found.advice["model"].startswith("Nothing to do")
    assert "workers" not in found.advice


def test_a_model_that_takes_longest_and_still_waits() -> None:
    found = verdict(BALANCED | {"cutting": 3.0})
    assert found.waiting == pytest.approx(1 - 3.2 / 3.5)
    assert set(found.advice) >= {"workers"}
    assert found.workers_to_hide == 2
    assert "Set data.workers=2: 2 reading threads" in found.advice["workers"]


def test_one_thread_reads_whatever_workers_say() -> None:
    assert verdict(BALANCED | {"disk": 40.0}, workers=0) == verdict(BALANCED | {"disk": 40.0}, workers=1)


def test_batches_too_large_for_memory() -> None:
    found = verdict(BALANCED, batches=17, memory_free=10 * GB)
    assert "8.5 GB of 10.0 GB of free memory: lower train.batch_size or data.prefetch" in found.advice["memory"]
    assert "memory" not in verdict(BALANCED, batches=17, memory_free=20 * GB).advice
    assert "memory" not in verdict(BALANCED, batches=17, memory_free=None).advice


times = st.floats(1e-6, 10.0)


@given(times, times, times, times, times, times, st.integers(0, 40))
def test_no_other_part_is_worth_more(
    disk: float, cutting: float, collation: float, copy: float, views: float, model: float, workers: int
) -> None:
    """Taking any stage away never helps more than taking the bottleneck away, and more workers never hurt."""
    numbers = {
        "disk": disk, "cutting": cutting, "collation": collation, "copy": copy, "views": views, "model": model
    }  # fmt: skip
    numbers = {name: 1e3 * seconds for name, seconds in numbers.items()}
    found = verdict(numbers, workers=workers)
    for name in numbers:
        without = verdict(numbers | {name: 0.0}, workers=workers)
        assert without.volumes_per_s <= found.volumes_per_s * found.factor * (1 + 1e-9)
    assert 0 <= found.waiting < 1
    assert found.factor >= 1
    assert verdict(numbers, workers=workers + 1).volumes_per_s >= found.volumes_per_s * (1 - 1e-9)
    assert verdict(numbers, workers=found.workers_to_hide).waiting < 1e-6


def test_numbers_as_people_read_them() -> None:
    assert [in_words(count) for count in (2_500_000, 900_000_000, 25_300_000_000)] == ["2.5 MB", "900.0 MB", "25.3 GB"]
    assert [milliseconds(seconds) for seconds in (4.5461, 0.0613, 0.00012)] == ["4,546", "61.3", "0.12"]
