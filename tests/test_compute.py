"""Work over processes and over a Dask cluster gives what one process gives, and one bad item costs itself alone."""

from __future__ import annotations

import os
import time

import distributed
import pytest
from joblib import Parallel, delayed

from lejepa_med.compute import spread
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.errors import ConfigError


def square(batch: list[int]) -> list[int]:
    return [number * number for number in batch]


def fragile(batch: list[int]) -> list[int]:
    if 13 in batch:
        os._exit(1)
    if 29 in batch:
        time.sleep(60)
    return square(batch)


def lost(item: int) -> int:
    return -item


def results(work: object, count: int, compute: ComputeConfig, **options: float) -> list[int]:
    pairs = list(spread(work, range(count), compute, lost, batch_size=8, **options))  # type: ignore[arg-type]
    assert [item for batch, _ in pairs for item in batch] == list(range(count))
    return [result for _, found in pairs for result in found]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    assert results(square, 100, ComputeConfig(workers=workers)) == [n * n for n in range(100)]


def test_a_long_stream_is_not_read_ahead_of_its_use() -> None:
    stream = iter(range(100_000))
    found = spread(square, stream, ComputeConfig(workers=2), lost, batch_size=2)
    assert next(found) == ([0, 1], [0, 1])
    assert next(stream) <= 2 * 2 * 4
    found.close()


def test_an_item_that_kills_or_hangs_its_process_costs_itself_alone() -> None:
    expected = [n * n for n in range(60)]
    expected[13], expected[29] = -13, -29
    assert results(fragile, 60, ComputeConfig(workers=2), seconds_per_item=0.5) == expected


def test_a_single_batch_has_a_process_of_its_own_too() -> None:
    assert results(fragile, 14, ComputeConfig(workers=2)) == [*(n * n for n in range(13)), -13]


def test_joblib_in_the_same_process_goes_on_working() -> None:
    for _ in range(2):
        assert Parallel(2, backend="loky")([delayed(lost)(1), delayed(lost)(2)]) == [-1, -2]
        assert results(square, 20, ComputeConfig(workers=2)) == [n * n for n in range(20)]


def test_a_dask_cluster_gives_the_same() -> None:
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        compute = ComputeConfig(scheduler=cluster.scheduler_address)
        assert results(square, 100, compute) == [n * n for n in range(100)]


def test_no_scheduler_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lejepa_med.compute._ANSWER_S", 1)
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        results(square, 3, ComputeConfig(scheduler="tcp://127.0.0.1:9"))
