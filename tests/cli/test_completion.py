"""What a shell offers after TAB, asked in the way bash, zsh and fish ask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lejepa_med

ROOT = Path(lejepa_med.__file__).parents[1]


def environment(folder: Path) -> dict[str, str]:
    """With a command `lejepa-med` that runs the sources of this checkout."""
    command = folder / "lejepa-med"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lejepa_med "$@"\n')
    command.chmod(0o755)
    given = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    given["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    return given


def offered(line: str, folder: Path) -> set[str]:
    """The words that fit at the end of a line."""
    answer = folder / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_SHELL": "bash"}
    done = subprocess.run(
        ["lejepa-med"], cwd=folder, env=environment(folder) | asked, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return {word.strip() for word in answer.read_text().split("\n") if word}


def test_verbs_options_choices_and_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "more").mkdir()
    assert {"pretrain", "prepare", "benchmark"} <= offered("lejepa-med ", tmp_path)
    assert offered("lejepa-med pre", tmp_path) == {"prepare", "pretrain"}
    assert offered("lejepa-med demo --size ", tmp_path) == {"full", "smoke"}
    assert offered("lejepa-med cache ", tmp_path) >= {"verify", "stats"}
    assert offered("lejepa-med pretrain mine.yaml --res", tmp_path) == {"--resume"}
    assert offered("lejepa-med pretrain mine.yaml train.steps=5 --o", tmp_path) == {"--out"}
    assert offered("lejepa-med pretrain m", tmp_path) == {"mine.yaml", "more/"}
    assert "--out" not in offered("lejepa-med nonsense --", tmp_path)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_itself(tmp_path: Path) -> None:
    """The line of the documentation, then what bash does at TAB."""
    given = environment(tmp_path)
    register = [sys.executable, "-m", "argcomplete.scripts.register_python_argcomplete", "lejepa-med"]
    lines = subprocess.run(register, env=given, check=True, capture_output=True, text=True).stdout
    press = 'COMP_LINE="lejepa-med exp"; COMP_POINT=14; COMP_TYPE=9; COMP_CWORD=1; COMP_WORDS=(lejepa-med exp)'
    call = "$(complete -p lejepa-med | sed 's/.*-F \\([^ ]*\\) .*/\\1/') lejepa-med exp lejepa-med"
    script = f'{lines}\n{press}\n{call}\nprintf "%s" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], env=given, check=False, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("export", "")
