"""An online probe beside the training: a copy of the weights is measured in a thread while the steps go on.

The loop copies the weights and goes on; what was measured is picked up between later steps. A probe that is due while
the one before still runs is left out, and said to be. On a GPU the thread has its own stream. Nothing here touches
weights, running statistics or random states of the training, so a run is the same to the bit with and without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lejepa_med.backbones import Backbone
from lejepa_med.errors import UserError

Lines = list[dict[str, Any]]
Measure = Callable[[Backbone, Callable[[], None]], Lines]
"""From a backbone in evaluation mode to one line per task. The second argument is called now and then, and raises
`ProbeStoppedError` when the measurement is no longer wanted."""


class ProbeStoppedError(Exception):
    """The run stops before this probe is done."""


@dataclass
class _Running:
    thread: threading.Thread
    stop: threading.Event
    step: int
    lines: Lines = field(default_factory=list)
    error: BaseException | None = None


class BackgroundProbe:
    """Measures the weights after 0, `every`, 2 `every`, ... steps, and the last; at most one measurement at a time.

    `copy` is a backbone of its own of the same shape, on the device of the training; `measure` may change it. Both are
    None on ranks other than the first, which only know when a probe is due. Lines get `step`, the number of steps that
    the weights have been trained for. `warn` is told why a probe failed, or was left out (once); neither stops a run.
    """

    def __init__(
        self,
        copy: Backbone | None,
        measure: Measure | None,
        every: int,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._copy, self._measure, self._every = copy, measure, every
        self._warn = warn or (lambda sentence: None)
        self._running: _Running | None = None
        self._failed = self._said = False
        self._given = -1  # the last ones measured

    def due(self, done: int) -> bool:
        """Whether the weights after this many steps are probed; the same on all ranks."""
        return done % self._every == 0

    def start(self, done: int, weights: Mapping[str, Tensor]) -> Lines:
        """Begins to measure a copy of `weights`. Returns lines that were finished before.

        While a probe runs another is left out. Weights are not measured twice.
        """
        lines = self.finished()
        if self._copy is None or self._measure is None or self._failed or self._given == done:
            return lines
        if self._running is not None:
            if not self._said:
                self._warn(
                    f"step {done}: the online probe of step {self._running.step} still runs, so this one is left out; "
                    f"a larger online_probe.every or a smaller online_probe.max_series keeps up"
                )
            self._said = True
            return lines
        self._given = done
        self._copy.load_state_dict(weights)
        ready = None
        if next(self._copy.parameters()).is_cuda:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        measure = partial(self._measure, self._copy.eval())
        running = _Running(threading.Thread(target=lambda: _measure(running, measure, ready)), threading.Event(), done)
        self._running = running
        running.thread.start()
        return lines

    def is_running(self, wait_s: float) -> bool:
        """Whether a measurement has not ended; waits for its end, but no longer than this."""
        if self._running is not None:
            self._running.thread.join(wait_s)
        return self._running is not None and self._running.thread.is_alive()

    def stop(self) -> Lines:
        """What still runs is told to stop, and waited for: some volumes, not a whole probe. Returns what has ended."""
        if self._running is not None:
            self._running.stop.set()
        return self.finished(wait=True)

    def finished(self, wait: bool = False) -> Lines:
        """Lines of a measurement that has ended since the last call; `wait`: also of the one that runs."""
        running = self._running
        if running is None or (running.thread.is_alive() and not wait):
            return []
        running.thread.join()
        self._running = None
        if running.error is not None:
            self._failed = True
            told = str(running.error) if isinstance(running.error, UserError) else type(running.error).__name__
            self._warn(f"the online probe of step {running.step} failed and is switched off: {told}")
        return running.lines

    def __enter__(self) -> BackgroundProbe:
        return self

    def __exit__(self, *_: object) -> None:
        """What runs is stopped; what has ended is lost, unless `stop` was called before."""
        self.stop()


def _measure(running: _Running, measure: Callable[[Callable[[], None]], Lines], ready: torch.cuda.Event | None) -> None:
    def check() -> None:
        if running.stop.is_set():
            raise ProbeStoppedError

    try:
        with _own_stream(ready):
            lines = measure(check)
        running.lines = [{"step": running.step, **line} for line in lines]
    except ProbeStoppedError:
        pass
    except BaseException as error:  # told by the loop; it must not end a training
        running.error = error


def _own_stream(ready: torch.cuda.Event | None) -> AbstractContextManager[Any]:
    if ready is None:
        return nullcontext()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_event(ready)
    return torch.cuda.stream(stream)
