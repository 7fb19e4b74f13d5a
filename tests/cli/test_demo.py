"""The whole path through the command line at smoke size, and what must and must not be in its outputs."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

PRIVATE = {"files.parquet", "scan.sqlite", "salt"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "lejepa_med", "demo", "--out", str(out), "--size", "smoke"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert str(out / "report" / "report.html") in done.stdout
    return out


@pytest.mark.long
def test_demo_leaves_what_it_says(demo: Path) -> None:
    stages = [stage["stage"] for stage in json.loads((demo / "stages.json").read_text())]
    assert stages == ["archive", "index", "prepare", "pretrain", "benchmark", "report"]
    assert {path.name for path in demo.iterdir()} >= {"archive", "index", "cache", "run", "benchmark", "report"}
    summary = json.loads((demo / "benchmark" / "summary.json").read_text())
    assert summary["leaks"] == {"LeJEPA": "checked"}
    page = (demo / "report" / "report.html").read_text()
    assert "no weights given" in page and "ventricle grade" in page
    for text in (page, (demo / "report" / "results.md").read_text()):
        assert "The numbers below mean nothing." in text


@pytest.mark.long
def test_pretraining_saw_no_test_patient(demo: Path) -> None:
    seen = set(pd.read_csv(demo / "run" / "pretraining_series.csv")["patient_key"])
    cells = [json.loads(file.read_text()) for file in (demo / "benchmark" / "cells").glob("*.json")]
    tested = {key for cell in cells if cell["status"] == "ok" for key in cell["predictions"]["patient_key"]}
    assert tested and not seen & tested


@pytest.mark.long
def test_no_patient_id_leaves_the_private_files(demo: Path) -> None:
    labels = pd.read_csv(demo / "archive" / "labels.csv")
    planted = [str(name).encode() for name in labels["patient_id"]] + [b"SYNTHETIC^"]
    for file in demo.rglob("*"):
        if file.is_file() and file.relative_to(demo).parts[0] != "archive" and file.name not in PRIVATE:
            content = file.read_bytes()
            assert not [name for name in planted if name in content], file.relative_to(demo)
