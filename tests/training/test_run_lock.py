"""Two processes never train in one folder; a killed one leaves it free at once."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_run

from lejepa_med.errors import OutputExistsError
from lejepa_med.training import run
from lejepa_med.training.log import read_log
from lejepa_med.training.run_lock import RunLock

HOLDER = """
import os, signal, sys
from pathlib import Path
from lejepa_med.training.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.take()
loader = os.fork()
if loader == 0:
    signal.pause()
print(loader, flush=True)
signal.pause()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    """A process with a run in this folder, killed at the end; its own child, like a loader process, outlives it."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    loader = int(process.stdout.readline())
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        LOADERS.append(loader)


LOADERS: list[int] = []


@pytest.fixture(autouse=True)
def end_loaders() -> Iterator[None]:
    yield
    while LOADERS:
        subprocess.run(["kill", "-9", str(LOADERS.pop())], check=True)


def test_a_run_is_resumed_by_one_process_at_a_time(tmp_path: Path) -> None:
    train: dict[str, Any] = {"steps": 3}
    small_run(tmp_path / "run", train=train)
    before = {file: file.read_bytes() for file in (tmp_path / "run").glob("*.jsonl")}
    with held_by_another(tmp_path / "run"):
        with pytest.raises(OutputExistsError, match="another process trains in this folder"):
            small_run(tmp_path / "run", train=train, resume=True)
        assert {file: file.read_bytes() for file in before} == before
    assert small_run(tmp_path / "run", train=train, resume=True).finished, "a killed process holds nothing"


@pytest.mark.parametrize("ended", [False, True])
def test_two_that_begin_at_once(tmp_path: Path, ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one begins while this one is set up; it trains, or has even ended."""
    out, read = tmp_path / "run", run.first_views

    def while_set_up(*given: Any) -> Any:
        out.mkdir()
        if ended:
            (out / "config.yaml").touch()
        return read(*given)

    monkeypatch.setattr(run, "first_views", while_set_up)
    if ended:
        with pytest.raises(OutputExistsError, match="the folder is not empty"):
            small_run(out)
    else:
        out.mkdir()
        monkeypatch.setattr(run, "first_views", read)
        with held_by_another(out), pytest.raises(OutputExistsError, match="another process trains in this folder"):
            small_run(out)
    assert not (out / "metrics.jsonl").exists()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert small_run(tmp_path / "run").finished
    assert len(read_log(tmp_path / "run", "metrics")) == 4


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        lock.take()
        lock.take()
    with held_by_another(tmp_path), pytest.raises(OutputExistsError):
        RunLock(tmp_path).take()
