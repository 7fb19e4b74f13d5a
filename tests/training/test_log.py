"""The record is strict JSON, and whoever reads it gets along with numbers that were not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_runs import settings

from lejepa_med.training.advice import Adviser, advise
from lejepa_med.training.log import RunLog, read_log
from lejepa_med.viz.curves import loss_curves

NAMES = [
    f"{part}_{name}" for part in ("feature", "projection") for name in ("rank", "rank_bound", "std", "dead", "spread")
] + ["samples", "n_eff", "sigreg_reference", "sigreg_relative", "grad_norm", "mode_gap", "batchnorm_batch",
     "held_out_total", "seen_total", "same_patient_nn", "same_patient_chance"]  # fmt: skip


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_what_is_not_finite_is_null_in_the_file_and_missing_for_readers(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.write("diagnostics", step=0, mode_gap=math.nan, n_eff=-math.inf, samples=4, advice=["small_batch"])
    (text,) = (tmp_path / "diagnostics.jsonl").read_text().splitlines()
    assert json.loads(text, parse_constant=refuse) == {
        "step": 0, "mode_gap": None, "n_eff": None, "samples": 4, "advice": ["small_batch"]
    }  # fmt: skip
    assert read_log(tmp_path, "diagnostics") == [{"step": 0, "samples": 4, "advice": ["small_batch"]}]
    (tmp_path / "diagnostics.jsonl").write_text('{"step": 0, "mode_gap": NaN}\n')
    assert read_log(tmp_path, "diagnostics") == [{"step": 0}]


@pytest.mark.parametrize("name", NAMES)
def test_advice_does_without_any_number(name: str) -> None:
    """On the way, where it is NaN, as after a resume, where it is gone; in one line and in all."""
    config = settings(train={"steps": 100, "batch_size": 64})
    whole: dict[str, Any] = dict.fromkeys(NAMES, 0.5) | {"samples": 64, "n_eff": 64.0}
    lines = [{"step": 10 * step + 9, **whole} for step in range(10)]
    without = [{key: value for key, value in line.items() if key != name} for line in lines]
    for before, after in ((lines, without), (without, without)):
        adviser = Adviser(config, before[:-1], None)
        assert adviser(lines[-1] | {name: math.nan}) == [
            item.code for item in advise([*before[:-1], after[-1]], config)
        ]


def test_curves_have_a_gap_there(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in range(30):
            numbers = dict.fromkeys(("total", "prediction", "sigreg", "lr", "grad_norm"), 1.0 + step)
            log.write("metrics", step=step, **numbers)
            rank = math.nan if step == 3 else 2.0
            log.write("diagnostics", step=step, feature_rank=rank, projection_rank=2.0)
    (ranks,) = [axes for axes in loss_curves(tmp_path).axes if len(axes.lines) == 2 and axes.get_ylim()[0] == 0]
    drawn = [line.get_ydata().tolist() for line in ranks.lines]
    assert math.isnan(drawn[0][3]) and drawn[0].count(2.0) == 29 and drawn[1] == [2.0] * 30
