"""Spreads work over processes or a Dask cluster, by joblib; an item that kills its process costs that item alone.

A decoder written in C can crash on a damaged file, or never return. Neither may end the reading of an archive: what was
in flight is tried again item by item in a process of its own, and the culprit gets the result that `lost` makes for it.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import joblib

from lejepa_med.config.compute import ComputeConfig
from lejepa_med.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[list[Item]], list[Result]]
"""Takes a batch of items, returns their results in order, and never raises. A function of a module, for pickling."""

_ANSWER_S = 15  # a scheduler that has not answered by then is not there
_CHUNK = 64  # batches per round and worker: the source is read no further ahead than this


def spread(
    work: Work[Item, Result],
    items: Iterable[Item],
    compute: ComputeConfig,
    lost: Callable[[Item], Result],
    batch_size: int = 32,
    seconds_per_item: float = 0.0,
) -> Iterator[tuple[list[Item], list[Result]]]:
    """Batches of items with their results, in order; `items` may be a long stream and is read in this thread only.

    `seconds_per_item` ends an item that takes longer (0: never); it has no effect in this process (`workers: 1`).

    Raises:
        ConfigError: the Dask scheduler does not answer, or the extra is missing.
    """
    workers = compute.workers or os.cpu_count() or 1
    batches = _batches(items, batch_size)
    if compute.scheduler is None and compute.workers == 1:
        yield from ((batch, work(batch)) for batch in batches)
        return
    with _backend(compute, workers) as jobs:
        while chunk := list(itertools.islice(batches, _CHUNK * max(1, jobs))):
            yield from _chunk(work, chunk, jobs, lost, seconds_per_item)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    source = iter(items)
    while batch := list(itertools.islice(source, size)):
        yield batch


@contextlib.contextmanager
def _backend(compute: ComputeConfig, workers: int) -> Iterator[int]:
    """Makes joblib use the cluster or local processes; yields the number of jobs."""
    if compute.scheduler is None:
        with joblib.parallel_config("loky", n_jobs=workers):
            yield workers
        return
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError('compute.scheduler needs the extra `dask`: pip install "lejepa-med[dask]"') from None
    try:
        client = Client(compute.scheduler, timeout=_ANSWER_S)
    except (OSError, ValueError, TypeError):
        raise ConfigError(f"compute.scheduler: no Dask scheduler answers at {compute.scheduler}") from None
    with client:
        cores = sum(client.nthreads().values())
        if not cores:
            raise ConfigError(f"compute.scheduler: the scheduler at {compute.scheduler} has no workers")
        with joblib.parallel_config("dask", client=client, n_jobs=cores):
            yield cores


def _chunk(
    work: Work[Item, Result], chunk: list[list[Item]], jobs: int, lost: Callable[[Item], Result], seconds: float
) -> Iterator[tuple[list[Item], list[Result]]]:
    done = 0
    while done < len(chunk):
        left = chunk[done:]
        # Never one job: joblib would run that in this process, where a crash ends everything.
        parallel = joblib.Parallel(n_jobs=max(2, jobs), return_as="generator", batch_size=1)
        outcomes = parallel(joblib.delayed(_timed)(work, batch, seconds) for batch in left)
        try:
            for results in outcomes:
                done += 1
                yield chunk[done - 1], results
        except Exception:  # `work` does not raise: a process died (if it does raise, so does the next line)
            yield chunk[done], _one_by_one(work, chunk[done], lost, seconds)
            done += 1
        finally:
            with warnings.catch_warnings():  # joblib warns of tasks that nobody waits for any more
                warnings.simplefilter("ignore")
                outcomes.close()


def _one_by_one(
    work: Work[Item, Result], batch: Sequence[Item], lost: Callable[[Item], Result], seconds: float
) -> list[Result]:
    results: list[Result] = []
    context = multiprocessing.get_context("spawn")
    executor: Any = None
    for item in batch:
        executor = executor or ProcessPoolExecutor(1, context)
        try:
            results += executor.submit(_timed, work, [item], seconds).result()
        except BrokenProcessPool:
            results.append(lost(item))
            executor.shutdown()
            executor = None
    if executor is not None:
        executor.shutdown()
    return results


def _timed(work: Work[Item, Result], batch: list[Item], seconds: float) -> list[Result]:
    """Runs a batch in a worker; the process ends by SIGALRM, also inside C code, when it takes too long."""
    limited = seconds > 0 and threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if limited:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds * len(batch))
    try:
        return work(batch)
    finally:
        if limited:
            signal.setitimer(signal.ITIMER_REAL, 0)
