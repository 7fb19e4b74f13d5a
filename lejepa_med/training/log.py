"""The record of a run: JSON lines, truncated to the checkpoint when a run is resumed.

RUN/metrics.jsonl      deterministic: step, total, prediction, sigreg, lr, grad_norm
RUN/timing.jsonl       samples_per_s, data_wait, memory, residency (disk, host, device, dataset)
RUN/diagnostics.jsonl  every N steps: ranks, spreads, held-out loss, ..., and the codes of the advice that holds
A number that is not finite is null: JSON has no NaN.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


class RunLog:
    """Appends to the three files of a run."""

    NAMES = ("metrics", "timing", "diagnostics")

    def __init__(self, run: Path, start: int) -> None:
        for name in self.NAMES:
            file = run / f"{name}.jsonl"
            if file.exists():
                kept = [line for line in file.read_text().splitlines(keepends=True) if _step(line) < start]
                file.write_text("".join(kept))
        self._streams = {name: (run / f"{name}.jsonl").open("a") for name in self.NAMES}

    def write(self, name: str, **values: Any) -> None:
        """One line, on disk before the next step."""
        strict = {key: None if is_missing(value) else value for key, value in values.items()}
        self._streams[name].write(json.dumps(strict, allow_nan=False) + "\n")
        self._streams[name].flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()


def read_log(run: Path, name: str) -> list[dict[str, Any]]:
    """The lines of `metrics`, `timing` or `diagnostics`, each with the numbers it has: null is as if not measured."""
    file = run / f"{name}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{key: value for key, value in line.items() if not is_missing(value)} for line in lines]


def is_missing(value: Any) -> bool:
    """Null, or a number that is not finite (which older records hold)."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _step(line: str) -> int:
    """The step of a line; a line that a kill cut short counts as later than any."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return 2**62
