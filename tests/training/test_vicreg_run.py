"""A VICReg run goes through the same loop, and leaves the same record twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import small_run

from lejepa_med.training.log import read_log


def test_lines_hold_its_parts_and_repeat_to_the_bit(tmp_path: Path) -> None:
    changes = {"objective": {"kind": "vicreg"}}
    warned: list[str] = []
    small_run(tmp_path / "whole", 12, warn=warned.append, train={"steps": 6}, **changes)
    lines = read_log(tmp_path / "whole", "metrics")
    assert [line["step"] for line in lines] == list(range(6))
    for line in lines:
        assert line["total"] == pytest.approx(25 * line["prediction"] + line["sigreg"], rel=1e-5)
    assert lines[-1]["total"] < lines[0]["total"]
    measured = read_log(tmp_path / "whole", "diagnostics")[-1]
    assert measured["projection_std"] > 0 and "sigreg_reference" in measured
    assert not [sentence for sentence in warned if "lam" in sentence]
    again = small_run(tmp_path / "again", 12, train={"steps": 6}, **changes)
    assert (again.path / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
