"""Lines of progress: rate and time left, with and without a terminal."""

from __future__ import annotations

import sys

import pytest

from lejepa_med.cli import progress
from lejepa_med.cli.progress import ProgressLine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_per_interval_without_a_terminal(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    for done in range(0, 8001, 1000):
        line("finding files", done, 0)
        clock[0] += 4
    line("finding files", 8000, 8000)
    line("files", 2000, 8000)  # 2,000 of them are known from an earlier run
    clock[0] += 20
    line("files", 5000, 8000)
    clock[0] += 20
    line("files", 8000, 8000)
    assert capsys.readouterr().err.splitlines() == [
        "finding files: 4,000, 250 files/s",
        "finding files: 8,000, 250 files/s",
        "finding files: 8,000 of 8,000, 222 files/s, 36 s",
        "files: 5,000 of 8,000, 150 files/s, 20 s left",
        "files: 8,000 of 8,000, 150 files/s, 40 s",
    ]


def test_a_line_that_rewrites_itself_on_a_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = ProgressLine()
    line("series", 0, 4)
    clock[0] += 1
    line("series", 2, 4)
    line("volumes", 0, 2)  # the stage before ended without its last call
    clock[0] += 1
    line("volumes", 2, 2)
    shown = capsys.readouterr().err
    assert shown == "\r\033[Kseries: 2 of 4, 2 series/s, 1 s left\n\r\033[Kvolumes: 2 of 2, 2 volumes/s, 1 s\n"


def test_details_follow_at_the_end_of_a_shown_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def details(stage: str) -> str:
        asked.append(stage)
        return " | loss 0.5"

    line = ProgressLine(details)
    for done in (1, 2, 3):
        line("pretrain", done, 3)
        clock[0] += 5
    assert capsys.readouterr().err.splitlines() == ["pretrain: 3 of 3, 0.3 steps/s, 10 s | loss 0.5"]
    assert asked == ["pretrain"]
