"""When a run stops before its end: a signal on any rank, or an error of any rank while it makes its next batch."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lejepa_med.distributed import Flags, agree, num_ranks, rank, started_ranks
from lejepa_med.errors import UserError

T = TypeVar("T")


@dataclass
class StopFlag:
    """Set by SIGTERM or SIGINT while its block lasts, which they do not end; read between steps.

    Who presses Ctrl-C a second time does not want to wait: that interrupts, where one process trains.
    A step can take minutes, so the first one is answered at once.
    """

    stopped: bool = False
    _previous: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> StopFlag:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._stop)
        except ValueError:  # not the main thread: a notebook's kernel handles its own signals
            self._previous.clear()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, *_: object) -> None:
        if self.stopped and number == signal.SIGINT and started_ranks() == 1:
            raise KeyboardInterrupt
        if not self.stopped and rank() == 0:
            again = "; Ctrl-C now ends it at once, unsaved" if started_ranks() == 1 else ""
            with contextlib.suppress(OSError):  # a closed terminal; `print` must not be used in a handler of signals
                os.write(2, f"\nstopping: this step is finished and saved first{again}\n".encode())
        self.stopped = True


def until_stopped(items: Iterator[T], stop: StopFlag) -> Iterator[T]:
    """The items, until `stop` is set on any rank; an error of one rank ends all, before others wait for it.

    Several ranks: the next item is made before one is given, and the flags on it and on signals are sent; they are read
    when the step with that one is done. So no step waits for flags, and all ranks end behind the same step.
    """
    if num_ranks() == 1:
        for item in items:
            if not stop.stopped:
                yield item
            if stop.stopped:
                return
        return
    flags, (held, error) = Flags(), _next(items)
    agree(error)
    while held is not None:
        following, error = _next(items)
        flags.give(stop.stopped, error is not None)
        yield held
        stopping, failed = flags.read()
        if failed:
            agree(error)
        if stopping:
            return
        held = following


def _next(items: Iterator[T]) -> tuple[T | None, UserError | None]:
    try:
        return next(items, None), None
    except UserError as error:
        return None, error
