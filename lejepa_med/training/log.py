"""The record of a run: JSON lines, truncated to the checkpoint when a run is resumed.

RUN/metrics.jsonl      deterministic: step, total, prediction, sigreg, lr, grad_norm
RUN/timing.jsonl       samples_per_s, data_wait, memory, residency (disk, host, device, dataset)
RUN/diagnostics.jsonl  every N steps: ranks, spreads, held-out loss, ..., and the codes of the advice that holds
RUN/probes.jsonl       a line per task of the online probe, if there are any; `step` counts the steps trained
A number that is not finite is null: JSON has no NaN. What `logging` asks for gets the same numbers, as far as they are.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from lejepa_med.config import PretrainConfig
from lejepa_med.errors import DataError
from lejepa_med.training.trackers import Tracker, build_trackers
from lejepa_med.whole_files import DiskError, cannot_write, in_a_sentence, write_atomically

_TAIL = 16_384  # bytes that hold the last line of any log


class RunLog:
    """Appends to the files of a run, and to the trackers of its config; probes.jsonl begins with its first line.

    What the disk refuses is raised by the next `check` or `secure`, where ranks meet, and nothing is written after it.

    Raises:
        DiskError: the files cannot be written.
    """

    NAMES = ("metrics", "timing", "diagnostics", "probes")

    def __init__(self, run: Path, start: int, config: PretrainConfig | None = None) -> None:
        self._trackers: list[Tracker] = [] if config is None else build_trackers(run, start, config)
        for name in self.NAMES:
            file = run / f"{name}.jsonl"
            if file.exists():
                write_atomically(file, "".join(_lines_before(file, start)).encode(), durable=True)
        self._run = run
        self._refused: DiskError | None = None
        with in_a_sentence(run):
            self._streams = {name: (run / f"{name}.jsonl").open("a") for name in self.NAMES if name != "probes"}

    def write(self, name: str, **values: Any) -> None:
        """One line, on disk before the next step."""
        strict = {key: None if is_missing(value) else value for key, value in values.items()}
        if self._refused is not None:
            return
        try:
            if name not in self._streams:
                self._streams[name] = (self._run / f"{name}.jsonl").open("a")
            self._streams[name].write(json.dumps(strict, allow_nan=False) + "\n")
            self._streams[name].flush()
        except OSError as error:
            self._refused = cannot_write(self._run, error)
        if self._trackers:
            self._track(int(values["step"]), scalars(name, strict))

    def check(self) -> None:
        """Raises a DataError where the disk has refused a line."""
        if self._refused is not None:
            problem, remedy = self._refused.problem, self._refused.remedy
            raise DataError(f"{problem}; {remedy}, then go on with --resume")

    def secure(self) -> None:
        """All lines so far are on the disk, also after a loss of power: before a checkpoint counts on them."""
        try:
            for stream in self._streams.values():
                os.fsync(stream.fileno())
        except OSError as error:
            self._refused = self._refused or cannot_write(self._run, error)
        self.check()

    def _track(self, step: int, numbers: dict[str, float]) -> None:
        """A tracker that fails is left out from then on: no server may stop a training."""
        for tracker in list(self._trackers):
            try:
                tracker.scalars(step, numbers)
            except Exception as error:
                self._trackers.remove(tracker)
                _warn(tracker, f"takes no more numbers from step {step} on", error)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            with suppress(OSError):  # what it still holds was refused before
                stream.close()
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                _warn(tracker, "may lack the last numbers", error)


def _warn(tracker: Tracker, what: str, error: Exception) -> None:
    """Not in the error's own words, which may name hosts and paths."""
    warnings.warn(f"{type(tracker).__name__} {what} ({type(error).__name__})", stacklevel=4)


def scalars(name: str, line: dict[str, Any]) -> dict[str, float]:
    """`metrics/total`, `probes/TASK/linear` and the like: what of a line is a number."""
    numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
    prefix = f"{name}/{line['task']}" if "task" in line else name
    return {f"{prefix}/{key}": float(value) for key, value in numbers.items()}


def read_log(run: Path, name: str) -> list[dict[str, Any]]:
    """The lines of one of `RunLog.NAMES`, each with the numbers it has: null is as if not measured."""
    file = run / f"{name}.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    if lines and not lines[-1].endswith("\n") and not _is_whole(lines[-1]):
        lines.pop()  # being written, or cut short by a kill
    return [_measured(json.loads(line)) for line in lines]


def read_log_before(run: Path, name: str, start: int) -> list[dict[str, Any]]:
    """As `read_log`, of the steps before `start`: what a kill has left of later lines need not be whole."""
    file = run / f"{name}.jsonl"
    lines = [json.loads(line) for line in _lines_before(file, start)] if file.exists() else []
    return [_measured(line) for line in lines]


def last_step(run: Path) -> tuple[int, str]:
    """How many steps a run has made, and why it ended before `train.steps`; empty if it did not."""
    line = last_line(run, "metrics")
    return int(line.get("step", -1)) + 1, str(line.get("ended", ""))


def last_line(run: Path, name: str) -> dict[str, Any]:
    """The newest whole line of a log that may be growing, without reading the rest; empty if there is none yet."""
    try:
        with (run / f"{name}.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().split(b"\n")[:-1]  # what follows the last line end is still being written
        return _measured(json.loads(lines[-1]))
    except (OSError, ValueError, IndexError):
        return {}


def _measured(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not is_missing(value)}


def _lines_before(file: Path, start: int) -> list[str]:
    return [f"{line}\n" for line in file.read_text().splitlines() if _step(line) < start]


def is_missing(value: Any) -> bool:
    """Null, or a number that is not finite (which older records hold)."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _step(line: str) -> int:
    """The step of a line; a line that a kill cut short counts as later than any."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return 2**62
