"""Progress of long work on standard error: a line that rewrites itself on a terminal, a line per interval elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

_INTERVAL_S = {True: 0.2, False: 15.0}
_CLEAR = "\r\033[K"
# What a rate counts.
_ONE = {"files": "files", "finding files": "files", "series": "series", "volumes": "volumes", "pretrain": "steps"}


def rewrites_lines() -> bool:
    """Whether standard error is a terminal that knows escape sequences. No colour is used anywhere."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and os.name != "nt"


@contextlib.contextmanager
def shown_while(sentence: str) -> Iterator[None]:
    """On a terminal a sentence that goes away with its block; nothing elsewhere."""
    if not rewrites_lines():
        yield
        return
    print(sentence, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(_CLEAR, end="", file=sys.stderr, flush=True)


class ProgressLine:
    """Called with (stage, done, total), total 0 while unknown: shows rate and time left. Stages follow each other.

    `details` is asked for more about a stage when its line is shown.
    """

    def __init__(self, details: Callable[[str], str] | None = None) -> None:
        self._details = details
        self._stage, self._started, self._shown, self._first, self._open = "", 0.0, 0.0, 0, False
        self._terminal = rewrites_lines()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._end_line()
            # What the first call brings is known from an earlier run where nothing was done yet in this one.
            first = done if stage == "files" else max(0, done - 1)
            self._stage, self._started, self._shown, self._first = stage, now, now, first
        finished = 0 < total <= done
        if not finished and now - self._shown < _INTERVAL_S[self._terminal]:
            return
        self._shown = now
        line = f"{stage}: {done:,} of {total:,}" if total else f"{stage}: {done:,}"
        line += self._speed(stage, done, total, max(now - self._started, 1e-6), finished)
        line += self._details(stage) if self._details is not None else ""
        start = _CLEAR if self._terminal else ""
        self._open = self._terminal and not finished
        print(f"{start}{line}", end="" if self._open else "\n", file=sys.stderr, flush=True)

    def _speed(self, stage: str, done: int, total: int, seconds: float, finished: bool) -> str:
        if seconds <= 0.05:  # the first call came when the work was done
            return ""
        rate = (done - self._first) / seconds
        unit = f" {_ONE[stage]}" if stage in _ONE else ""
        text = f", {rate:,.0f}{unit}/s" if rate >= 100 else f", {rate:.3g}{unit}/s"
        if finished or rate <= 0:
            return f"{text}, {duration(seconds)}"
        return f"{text}, {duration((total - done) / rate)} left" if total else text

    def _end_line(self) -> None:
        if self._open:
            print(file=sys.stderr, flush=True)
            self._open = False

    def note(self, sentence: str) -> None:
        """A sentence of its own, above the line that goes on rewriting itself."""
        print(f"{_CLEAR if self._terminal else ''}{sentence}", file=sys.stderr, flush=True)
        if self._terminal:
            self._shown = 0.0


def duration(seconds: float) -> str:
    """A time that people read: 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
