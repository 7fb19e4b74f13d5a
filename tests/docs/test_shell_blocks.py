"""Every shell command in README.md and docs/ is run, at small sizes, or listed with the reason why not."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import workshop
from shell_blocks import NOT_RUN, ROOT, Command, all_commands

from lejepa_med.cli.main import parser, split_overrides

COMMANDS = all_commands()
RUN = [command for command in COMMANDS if command.reason_not_run is None]
QUICK = {"docs/collections.md"}
"""Pages that need nothing of what README's commands leave."""
RUN_PAGES = sorted({command.page for command in RUN} - {"README.md"} - QUICK)
BENCHMARKS = sorted({c.text for c in COMMANDS if re.match(r"python (benchmarks|docs)/", c.text)})


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workshop in which README's five commands have run."""
    folder = tmp_path_factory.mktemp("workshop")
    workshop.furnish(folder, subjects=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (command for command in RUN if command.page == "README.md"):
            assert workshop.run(command.text).code == 0, command
    return folder


@pytest.mark.long
def test_the_five_commands_of_the_readme(after_readme: Path) -> None:
    series = pd.read_csv(after_readme / "index" / "series.csv")
    assert set(series.loc[series.verdict != "rejected", "modality"]) == {"mri"}
    assert (after_readme / "runs" / "brain" / "DONE").exists()
    page = (after_readme / "runs" / "brain_benchmark" / "report" / "report.html").read_text(encoding="utf-8")
    assert "diagnosis" in page and "no weights given" in page and "pixels + PCA" in page


def test_commands_are_found() -> None:
    assert len(RUN) > 25 and {"README.md", "docs/get_started.md", "docs/doctor.md"} <= {c.page for c in RUN}


@pytest.mark.parametrize("pattern", NOT_RUN, ids=lambda pattern: NOT_RUN[pattern][:40])
def test_each_exception_is_in_use(pattern: str) -> None:
    assert [command for command in COMMANDS if re.match(pattern, command.text)], "leave this exception out"


def test_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {word for c in COMMANDS if c.text.startswith("make ") for word in c.text.split()[1:]}
    assert named and all(re.search(rf"^{target}:", makefile, re.M) for target in named)


def test_inline_commands_are_grammatical() -> None:
    """`lejepa-med ...` within a sentence: verbs and options exist. Only a verb, or words in capitals, is a mention."""
    checked = 0
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for text in re.findall(r"`lejepa-med ([a-z]+ [^`>]+)(?:> \S+)?`", file.read_text(encoding="utf-8")):
            words, _ = split_overrides([word for word in text.split() if not word.startswith("#")])
            if (words[0] == "config" and words[1:] == ["KIND"]) or "=" in " ".join(words):
                continue
            options = parser().parse_args([*words, *_required(words)])
            assert options.verb == words[0], (file.name, text)
            checked += 1
    assert checked > 15


def _required(words: list[str]) -> list[str]:
    """What a mention may leave out."""
    if words[0] == "cache" and len(words) == 2:
        return ["cache"]
    needs_out = {
        "index",
        "convert",
        "prepare",
        "pretrain",
        "views",
        "benchmark",
        "probe",
        "finetune",
        "export",
        "embed",
    }
    return ["--out", "out"] if words[0] in needs_out and "--out" not in words and "--help" not in words else []


@pytest.mark.long
@pytest.mark.parametrize("text", BENCHMARKS, ids=lambda text: " ".join(text.split()[1:3]))
def test_options_of_measurements_are_known(text: str) -> None:
    script, words = text.split()[1], text.split()[2:]
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *_subcommand(words), "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in words if word.startswith("--"))


def _subcommand(words: list[str]) -> list[str]:
    return words[:1] if words and re.fullmatch(r"[a-z_]+", words[0]) else []


def _furnish_selection(folder: Path) -> None:
    """Runs of several names with scores of their own, and a benchmark of one."""
    workshop.furnish_runs(folder, "abcde")
    workshop.scores(folder, "abc")
    shutil.copytree(folder / "runs" / "brain_benchmark", folder / "benchmark")
    shutil.rmtree(folder / "runs" / "brain_benchmark")
    workshop.probe_result(folder, "runs/b")


FURNISH: dict[str, Callable[[Path], None]] = {
    "docs/collections.md": workshop.furnish_collections,
    "docs/model_selection.md": _furnish_selection,
    "docs/weights.md": lambda folder: workshop.furnish_runs(folder, "a"),
    "docs/results.md": lambda folder: shutil.copytree(folder / "archive", folder / "FOLDER"),
}
NEW_OUTPUT = {"docs/results.md": "index", "docs/index_rules.md": "index"}
"""Pages whose commands begin something that README's have made."""
ALTERNATIVES = {"docs/collections.md": "cache", "docs/weights.md": "brain_backbone"}
"""Pages whose commands are choices: each writes this folder, which is removed before."""


@pytest.mark.long
@pytest.mark.parametrize("page", RUN_PAGES)
def test_commands_of_a_page(page: str, after_readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "workshop"
    shutil.copytree(after_readme, folder, symlinks=True)
    if page in NEW_OUTPUT:
        shutil.rmtree(folder / NEW_OUTPUT[page])
    _run_page(page, folder, monkeypatch)


@pytest.mark.parametrize("page", sorted(QUICK))
def test_commands_of_a_quick_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_page(page, tmp_path, monkeypatch)


def _run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the commands of a page one after the other in a folder with what they name."""
    monkeypatch.chdir(folder)
    FURNISH.get(page, lambda _: None)(folder)
    commands = [command for command in RUN if command.page == page]
    assert commands
    for command in commands:
        if page in ALTERNATIVES:
            shutil.rmtree(folder / ALTERNATIVES[page], ignore_errors=True)
        assert _code(command) == 0, command


def _code(command: Command) -> int:
    """0 also for an answer about this machine: a plan that does not fit it, an extra that is not installed."""
    code = workshop.run(command.text).code
    unfit = command.text.startswith("lejepa-med plan") and code == 1
    bare = "--format onnx" in command.text and importlib.util.find_spec("onnx") is None and code == 2
    return 0 if unfit or bare else code
