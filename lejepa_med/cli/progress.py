"""Progress of long work on standard error: a line that rewrites itself on a terminal, a line per interval elsewhere."""

from __future__ import annotations

import sys
import time

_INTERVAL_S = {True: 0.2, False: 15.0}
_CLEAR = "\r\033[K"


class ProgressLine:
    """Called with (stage, done, total): shows rate and time left. One stage follows another."""

    def __init__(self) -> None:
        self._stage, self._started, self._shown, self._first = "", 0.0, 0.0, 0
        self._terminal = sys.stderr.isatty()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._shown, self._first = stage, now, now, max(0, done - 1)
        finished = done >= total
        if not finished and now - self._shown < _INTERVAL_S[self._terminal]:
            return
        self._shown = now
        seconds = max(now - self._started, 1e-6)
        rate = (done - self._first) / seconds
        line = f"{stage}: {done:,} of {total:,}"
        if seconds > 0.05:  # else the first call came when the work was done
            line += f", {rate:.3g}/s"
            line += f", {duration(seconds)}" if finished or rate <= 0 else f", {duration((total - done) / rate)} left"
        end = "\n" if finished or not self._terminal else ""
        start = _CLEAR if self._terminal else ""
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)

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
