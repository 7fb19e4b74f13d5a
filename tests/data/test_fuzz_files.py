"""Damaged NIfTI files, images and archives: each a reason, never an exception, a hang, a word, or much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import file_mutations
import pytest


def fuzz(folder: Path, seed: int, count: int) -> None:
    program = Path(file_mutations.__file__)
    command = [sys.executable, "-W", "error", str(program), str(folder), str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + count)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    report = json.loads((folder / "report.json").read_text())
    assert report["failures"] == []
    assert report["slowest_s"] < file_mutations.LONGEST_S and report["grown"] < 256 << 20
    outcomes = report["outcomes"]
    assert sum(outcomes.values()) >= count  # a row for each file
    assert {"read", "truncated", "unreadable"} <= set(outcomes)  # the damage is neither always fatal nor never


def test_damaged_files_are_reasons(tmp_path: Path) -> None:
    fuzz(tmp_path, 0, 100)


@pytest.mark.long
def test_many_damaged_files_are_reasons(tmp_path: Path) -> None:
    fuzz(tmp_path, 1000, 2500)
