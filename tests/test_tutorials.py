"""Every tutorial runs from beginning to end in a process of its own, at smoke size, and leaves what it says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = Path(__file__).parent.parent / "tutorials"


def run(name: str, out: Path) -> dict[str, Any]:
    """What the tutorial writes into `result.json`."""
    environment = {**os.environ, "LEJEPA_MED_TUTORIAL_OUT": str(out), "OMP_NUM_THREADS": "1"}
    environment.pop("LEJEPA_MED_TUTORIAL_SIZE", None)
    command = [sys.executable, str(TUTORIALS / f"{name}.py")]
    done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((out / name / "result.json").read_text())
    return result


def test_every_tutorial_is_tested_here() -> None:
    tested = {"01_first_backbone", "02_archive_to_index", "03_pretrain_and_benchmark"}
    assert {file.stem for file in TUTORIALS.glob("*.py")} == tested


def test_first_backbone(tmp_path: Path) -> None:
    result = run("01_first_backbone", tmp_path)
    assert math.isfinite(result["first_loss"]) and result["last_loss"] < result["first_loss"]
    assert 0 <= result["accuracy"] <= 1 and result["dimensions"] == 128
    folder = tmp_path / "01_first_backbone" / "run"
    assert (folder / "DONE").exists() and (folder / "views.png").stat().st_size > 1000


def test_archive_to_index(tmp_path: Path) -> None:
    result = run("02_archive_to_index", tmp_path)
    assert result["files_seen"] == result["files_used"] + result["files_explained"]
    assert result["mri_volumes"] == result["mri_series_written"]
    assert len(result["shape"]) == 3 and (tmp_path / "02_archive_to_index" / result["file"]).exists()


@pytest.mark.long
def test_pretrain_and_benchmark(tmp_path: Path) -> None:
    result = run("03_pretrain_and_benchmark", tmp_path)
    assert set(result["counts"]) == {"ok"} and result["leaks"] == {"LeJEPA": "checked"}
    page = (tmp_path / "03_pretrain_and_benchmark" / result["report"]).read_text()
    assert "pixels + PCA" in page
