"""Spreads work over processes (joblib's loky) or a Dask cluster; an item that kills its process costs that item alone.

A decoder written in C can crash on a damaged file, or never return. Neither may end the reading of an archive: what was
in flight is tried again item by item in a process of its own, and the culprit gets the result that `lost` makes for it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from joblib.externals import loky

from lejepa_med.config.compute import ComputeConfig
from lejepa_med.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[list[Item]], list[Result]]
"""Takes a batch of items, returns their results in order, and never raises. A function of a module, for pickling."""

_ANSWER_S = 15  # a scheduler that has not answered by then is not there

# loky says so from a thread of its own when a worker ends in good order with work left, and starts another. As an error
# (`python -W error`) the sentence would end that thread, and every result would be waited for without end.
warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")


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
    batches = _batches(items, batch_size)
    if compute.scheduler is None and compute.workers == 1:
        yield from ((batch, work(batch)) for batch in batches)
        return
    with _pool(compute) as (executor, ahead):
        waiting: deque[tuple[list[Item], Future[list[Result]] | None]] = deque()
        try:
            while _fill(waiting, batches, ahead):
                batch = waiting[0][0]
                try:
                    results = _submitted(waiting, executor(), work, seconds_per_item).result()
                except Exception:  # `work` does not raise: a process died (if it does raise, so does the next line)
                    results = _one_by_one(work, batch, lost, seconds_per_item)
                    waiting = deque((batch, future if _is_good(future) else None) for batch, future in waiting)
                waiting.popleft()
                yield batch, results
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    source = iter(items)
    while batch := list(itertools.islice(source, size)):
        yield batch


def _fill(waiting: deque[Any], batches: Iterator[list[Any]], ahead: int) -> bool:
    """Reads on until `ahead` batches wait; whether any does."""
    waiting.extend((batch, None) for batch in itertools.islice(batches, ahead - len(waiting)))
    return bool(waiting)


def _submitted(waiting: deque[Any], executor: Executor, work: Work[Any, Any], seconds: float) -> Future[Any]:
    """The first of the waiting batches, after all of them have been handed out."""
    for place, (batch, future) in enumerate(waiting):
        if future is None:
            waiting[place] = batch, executor.submit(_timed, work, batch, seconds)
    first: Future[Any] = waiting[0][1]
    return first


def _is_good(future: Future[Any] | None) -> bool:
    return future is not None and future.done() and not future.cancelled() and future.exception() is None


@contextlib.contextmanager
def _pool(compute: ComputeConfig) -> Iterator[tuple[Callable[[], Executor], int]]:
    """What gives a working executor (a new one after a crash), and how many batches may be under way."""
    if compute.scheduler is None:
        cores = os.cpu_count() or 1
        workers = compute.workers or cores
        threads = str(max(1, cores // workers))
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        pool = functools.partial(loky.get_reusable_executor, max_workers=workers, timeout=60, env=limits)
        try:
            yield pool, 4 * workers
        finally:  # loky keeps one per process, and a later joblib.Parallel would take this one for its own, and fail
            pool().shutdown(wait=False)
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
        executor: Executor = client.get_executor(pure=False)
        yield lambda: executor, 4 * cores


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
    """Runs a batch in a worker; the process ends by SIGALRM, also inside C code, when an item takes too long."""
    limited = seconds > 0 and threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if limited:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    else:
        return work(batch)
    results: list[Result] = []
    try:
        for item in batch:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            results += work([item])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return results
