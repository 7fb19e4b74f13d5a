"""A week in miniature: 2,000 steps with 15 stops and kills end in the bits of an undisturbed run, and a run that moves
between one rank and two keeps its loss curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_runs import SMALLEST
from test_engine import bits, execute

from lejepa_med.training.log import read_log

pytestmark = pytest.mark.long

STEPS, MOVED_STEPS, TIMES, BLOCK = 2000, 300, 15, 30


def train(steps: int, every: int) -> dict[str, Any]:
    return {"steps": steps, "batch_size": 4, "checkpoint_every": every, "diagnostics_every": 200, "ema_decay": 0.99}


def test_two_thousand_steps_with_fifteen_stops_and_kills_are_undisturbed(tmp_path: Path) -> None:
    week: dict[str, Any] = {"world": 1, "kind": "dropout", **SMALLEST, "train": train(STEPS, 25)}
    signals = ["SIGKILL", "SIGTERM"]
    codes = execute(
        tmp_path, {"out": "whole", **week}, {"out": "week", **week, "by": signals, "times": TIMES, "apart": 100}
    )
    told = (tmp_path / "week.disturbed").read_text().split("\n")[:-1]
    assert len(told) == TIMES and {line.split()[0] for line in told} == {"killed", "stopped"}
    assert codes["whole"] == [0] and set(codes["week"]) == {0}
    assert [line["step"] for line in read_log(tmp_path / "week", "metrics")] == list(range(STEPS))
    assert bits(tmp_path / "week") == bits(tmp_path / "whole")


def curve(run: Path) -> NDArray[np.float64]:
    """Mean losses of blocks of steps."""
    losses = np.array([line["total"] for line in read_log(run, "metrics")])
    assert len(losses) == MOVED_STEPS
    return losses.reshape(-1, BLOCK).mean(1)


def distance(one: Path, other: Path) -> float:
    """Root mean square of the differences between two curves."""
    return float(np.sqrt(np.mean((curve(one) - curve(other)) ** 2)))


def test_a_run_that_moves_between_ranks_keeps_its_curve(tmp_path: Path) -> None:
    """Within the spread of two seeds; a run whose ranks do not divide the global batch is far outside."""
    base: dict[str, Any] = {"kind": "healthy", **SMALLEST, "train": train(MOVED_STEPS, 10)}
    moves = {"world": [1, 2], "by": ["SIGKILL", "SIGTERM"], "times": 5, "apart": 30}
    execute(
        tmp_path,
        {"out": "seed 0", "world": 1, **base},
        {"out": "seed 1", "world": 1, **base, "seed": 1},
        {"out": "moved", **base, **moves},
        {"out": "undivided", "world": 2, **base, "undivided": True},
    )
    told = (tmp_path / "moved.disturbed").read_text()
    assert told.count(" on 1 ") == 3 and told.count(" on 2 ") == 2, "and to its end on 2"
    spread = distance(tmp_path / "seed 0", tmp_path / "seed 1")
    moved, undivided = (distance(tmp_path / "seed 0", tmp_path / name) for name in ("moved", "undivided"))
    print(f"spread of two seeds {spread:.2g}, moved {moved:.2g}, batch not divided {undivided:.2g}")
    assert moved < spread < undivided
