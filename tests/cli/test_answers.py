"""`--json`: one object on standard output, also for errors; and no escape sequence where nobody could read it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lejepa_med.cli import archive, doctor, progress
from lejepa_med.cli.answers import as_json
from lejepa_med.cli.main import _VERBS, main

CALLS: dict[str, list[str]] = {
    "demo": ["--out", "full"],
    "doctor": ["gone"],
    "index": ["gone", "--out", "out"],
    "convert": ["gone", "--out", "out"],
    "prepare": ["gone", "--out", "out"],
    "cache": ["stats", "gone"],
    "views": ["gone.yaml", "--out", "out.png"],
    "plan": ["gone.yaml"],
    "pretrain": ["gone.yaml", "--out", "out"],
    "select": ["gone"],
    "embed": ["gone", "gone", "--out", "out.parquet"],
    "probe": ["gone.yaml", "--out", "out"],
    "finetune": ["gone.yaml", "--out", "out"],
    "benchmark": ["gone.yaml", "--out", "out"],
    "report": ["gone"],
    "export": ["gone", "--out", "out"],
    "config": ["pretrain", "train.steps=5"],
}


@pytest.mark.parametrize("verb", _VERBS)
def test_an_error_of_any_verb_is_one_object(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert main([verb, *CALLS[verb], "--json"]) == 2
    out, error = capsys.readouterr()
    answer = json.loads(out)
    assert set(answer) == {"error", "kind"} and out.count("\n") == 1
    assert answer["kind"].endswith("Error")
    assert error.splitlines()[-1] == f"lejepa-med {verb}: {answer['error']}", "people read the same sentence"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"], "nothing is left behind"


def test_an_interrupted_command_ends_at_once_with_its_exit_code() -> None:
    """Also while a thread still computes."""
    script = (
        "import threading, time\n"
        "from lejepa_med.cli import main as program\n"
        "program.main = lambda: 130\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('interrupted', end='')\n"
        "program.program()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "interrupted", "")


@pytest.mark.parametrize("words", [["pretrain", "--json"], ["pretrian", "--json"], ["--json"]], ids=" ".join)
def test_words_that_are_no_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert json.loads(capsys.readouterr().out)["kind"] == "UsageError"


@pytest.mark.parametrize(
    ("words", "usage", "ending"),
    [
        ("prepair index", "lejepa-med [-h]", "did you mean `prepare`?"),
        ("prepare index --out c --confg f", "lejepa-med prepare", "did you mean `--config`?"),
        ("pretrain f --out r --train.steps=10", "lejepa-med pretrain", "settings have no dashes: train.steps=10"),
        ("pretrain f --out r train.steps 10", "lejepa-med pretrain", "a setting is one word: train.steps=VALUE"),
        ("pretrain f g --out r", "lejepa-med pretrain", "unrecognized arguments: g"),
    ],
)
def test_mistyped_words_get_the_usage_of_their_verb_and_a_hint(
    words: str, usage: str, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    error = capsys.readouterr().err
    assert error.startswith(f"usage: {usage}") and error.endswith(f"{ending}\n")


def test_a_defect_keeps_its_traceback_and_names_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(options: object) -> dict[str, Any]:
        del options
        raise KeyError("DOE^JANE")

    monkeypatch.setattr(archive, "cache", broken)
    with pytest.raises(KeyError):
        main(["cache", "stats", "x", "--json"])
    out = capsys.readouterr().out
    assert json.loads(out)["kind"] == "Defect" and "DOE" not in out


def test_what_a_library_prints_is_not_in_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talkative(options: object) -> dict[str, Any]:
        del options
        print("welcome to the library")
        return {"rows": np.int64(3), "loss": math.nan, "table": Path("a"), "parts": [np.float32(math.inf), 0.5]}

    monkeypatch.setattr(doctor, "doctor", talkative)
    assert main(["doctor", "--json"]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out) == {"rows": 3, "loss": None, "table": "a", "parts": [None, 0.5]}
    assert error == "welcome to the library\n"


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(options: object) -> dict[str, Any]:
        del options
        raise KeyboardInterrupt

    monkeypatch.setattr(archive, "cache", stopped)
    assert main(["cache", "stats", "x", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"] == "interrupted"
    monkeypatch.setattr(archive, "prepare", stopped)
    assert main(["prepare", "x", "--out", "y"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command goes on where it was\n")


def test_json_is_strict() -> None:
    assert as_json({"one": {"a": (math.nan, True, None)}}) == '{"one": {"a": [null, true, null]}}'


@pytest.mark.parametrize(
    ("terminal", "term", "system", "rewrites"),
    [
        (True, "xterm", "posix", True),
        (True, "dumb", "posix", False),
        (True, "xterm", "nt", False),
        (False, "xterm", "posix", False),
    ],
)
def test_lines_are_rewritten_on_terminals_that_can(
    terminal: bool, term: str, system: str, rewrites: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(progress.os, "name", system)
    found = progress.rewrites_lines()
    monkeypatch.undo()
    assert found is rewrites


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_no_colour_on_a_terminal_that_asks_for_none(tmp_path: Path) -> None:
    """Help and an error, on a pseudo-terminal: argparse of new versions of Python colours both unless told not to."""
    import pty

    for words, code in ((["--help"], 0), (["pretrian"], 2), (["plan", "gone.yaml"], 2)):
        controller, terminal = pty.openpty()
        command = [sys.executable, "-m", "lejepa_med", *words]
        given = os.environ | {"TERM": "xterm-256color", "NO_COLOR": "1", "PYTHON_COLORS": "0", "COLUMNS": "100"}
        done = subprocess.run(command, stdout=terminal, stderr=terminal, env=given, cwd=tmp_path, check=False)
        os.close(terminal)
        shown = os.read(controller, 65536).decode()
        os.close(controller)
        assert done.returncode == code
        assert "lejepa-med" in shown and not re.search("\x1b\\[[0-9;]*m", shown)
