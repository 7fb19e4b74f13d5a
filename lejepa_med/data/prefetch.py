"""Batches in the order of steps, made ahead of the loop and brought to its device while it computes.

Stored and listed scans are read by threads (reading and copying leave the interpreter alone, and nothing is copied
between processes); a torch dataset, which may decode in Python, by processes. At most `data.prefetch` batches (of a
torch dataset: per process) wait in memory, and one on a CUDA device, copied from pinned memory on a stream of its own.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NoReturn, TypeVar

import torch

from lejepa_med.config.pretraining import DataConfig
from lejepa_med.data.dataset import Batch, StepDataset
from lejepa_med.errors import DataError, UserError

_KILLED = -9  # the exit code of a process that SIGKILL ended
T = TypeVar("T")
Fed = tuple[int, Batch, float]
"""A step, its batch on the device, and the seconds that the loop waited for it."""


@contextlib.contextmanager
def feed(
    dataset: StepDataset, steps: range, config: DataConfig, device: torch.device
) -> Generator[Iterator[Fed], None, None]:
    """Gives the batches of the steps; the same for any number of workers. Ends all threads and processes behind it."""
    with contextlib.ExitStack() as stack:
        on_cuda = device.type == "cuda"
        stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]
        if dataset.source.where == "dataset":
            batches: Iterator[Batch] = stack.enter_context(_by_processes(dataset, steps, config, pin=on_cuda))
            ahead = config.workers > 0 and on_cuda
        else:
            batches = stack.enter_context(Ahead(_by_threads(dataset, steps, config, stream), config.prefetch))
            ahead = on_cuda
        moved: Iterator[tuple[Batch, torch.cuda.Event | None]] = (_move(batch, device, stream) for batch in batches)
        if ahead:
            moved = stack.enter_context(Ahead(moved, 1))
        yield _timed(steps, moved, device)


def _timed(steps: range, moved: Iterator[tuple[Batch, torch.cuda.Event | None]], device: torch.device) -> Iterator[Fed]:
    for step in steps:
        began = time.perf_counter()
        batch, copied = next(moved)
        if copied is not None:
            copied.synchronize()  # part of the wait: the loop cannot begin without it
            batch.images.record_stream(torch.cuda.current_stream(device))
        yield step, batch, time.perf_counter() - began


def _move(
    batch: Batch, device: torch.device, stream: torch.cuda.Stream | None
) -> tuple[Batch, torch.cuda.Event | None]:
    if stream is None:
        return batch.to(device), None
    with torch.cuda.stream(stream):
        return batch.to(device), stream.record_event()


def _by_threads(
    dataset: StepDataset, steps: range, config: DataConfig, stream: torch.cuda.Stream | None
) -> Iterator[Batch]:
    """Scans that are on the device are cut there, on the stream."""
    on_stream = contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)  # None would start CUDA
    with ThreadPoolExecutor(max(1, config.workers), "scans") as pool, on_stream:
        for group in dataset.reads(steps):
            yield from dataset.batches(group, pool.map, pin=stream is not None)


class _Reads(torch.utils.data.Dataset[list[Batch] | UserError]):
    """The batches that share their scans. An error of the user comes back as it is, not wrapped in a traceback."""

    def __init__(self, dataset: StepDataset, groups: list[range]) -> None:
        self.dataset, self.groups = dataset, groups

    def __getitem__(self, number: int) -> list[Batch] | UserError:
        try:
            return self.dataset.batches(self.groups[number])
        except UserError as error:
            return error


@contextlib.contextmanager
def _by_processes(
    dataset: StepDataset, steps: range, config: DataConfig, pin: bool
) -> Generator[Iterator[Batch], None, None]:
    """Workers are ended here: an error that is on its way keeps the loader alive, and its workers hear no SIGTERM."""
    groups = dataset.reads(steps)
    loader = torch.utils.data.DataLoader(
        _Reads(dataset, groups),
        batch_size=None,
        sampler=range(len(groups)),
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        pin_memory=pin,
        worker_init_fn=_ignore_stop_signals,
        generator=torch.Generator(),  # else it draws from the global state, which belongs to the model (dropout)
    )
    made = iter(loader)
    try:
        with _default_on_child_death():
            yield _unpacked(made, config)
    finally:
        _end_workers(made)


@contextlib.contextmanager
def _default_on_child_death() -> Generator[None, None, None]:
    """torch raises where the main thread is when a worker dies, be it in the middle of a step or of a write.

    Without, the loader finds the dead worker when it waits for a batch: a place where the errors of ranks are agreed.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except ValueError:  # not the main thread: torch has not set it from here either
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _end_workers(made: object) -> None:
    workers = list(getattr(made, "_workers", ()))
    if workers:
        made._shutdown_workers()  # type: ignore[attr-defined]
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _unpacked(made: Iterator[list[Batch] | UserError], config: DataConfig) -> Iterator[Batch]:
    while True:
        try:
            batches = next(made)
        except StopIteration:
            return
        except Exception:
            codes = [worker.exitcode for worker in getattr(made, "_workers", ())]
            if _KILLED not in codes:
                raise
            raise _killed(1 + codes.index(_KILLED), config) from None
        if isinstance(batches, UserError):
            raise batches
        yield from batches


def _killed(worker: int, config: DataConfig) -> DataError:
    return DataError(
        f"loader process {worker} of {config.workers} was killed, as the system does when memory runs out; lower "
        f"data.workers or data.prefetch (now {config.prefetch}), or take smaller crops or batches, or ask for more "
        "memory, and go on with --resume"
    )


def _ignore_stop_signals(worker: int) -> None:
    """A worker must outlive the step that it feeds; the main process decides when to stop."""
    del worker
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


class Ahead(Generic[T]):
    """Iterates over `items` in a thread of its own, at most `depth` of them ahead; an exception comes where it belongs.

    Leaving the `with` block ends the thread and closes `items`.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items, self._ready = items, queue.SimpleQueue[Callable[[], T]]()
        self._free, self._stopped = threading.Semaphore(depth), threading.Event()
        self._thread = threading.Thread(target=self._make, name="batches", daemon=True)

    def __enter__(self) -> Ahead[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._free.release()
        self._thread.join()

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        give = self._ready.get()
        self._free.release()
        return give()

    def _make(self) -> None:
        try:
            while self._free.acquire() and not self._stopped.is_set():
                item = next(self._items)
                self._ready.put(lambda item=item: item)  # type: ignore[misc]
        except StopIteration:
            self._ready.put(_ended)
        except BaseException as error:
            self._ready.put(_raiser(error))
        finally:
            if isinstance(self._items, Generator):
                self._items.close()


def _ended() -> NoReturn:
    raise StopIteration


def _raiser(error: BaseException) -> Callable[[], NoReturn]:
    def give() -> NoReturn:
        raise error

    return give
