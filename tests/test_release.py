"""What is released: one version, a small wheel without tests or data, types, and a workflow of our own targets."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import lejepa_med

ROOT = Path(__file__).parent.parent
LARGEST_WHEEL = 1_000_000


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        return tomllib.load(stream)


def test_the_version_has_one_place() -> None:
    assert project()["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lejepa_med._version.__version__"}
    assert "version" not in project()["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None and lejepa_med.__version__ in (heading[1], heading[1].split("-")[0])
    assert str(cited) == lejepa_med.__version__


def test_the_citation_has_what_the_format_asks_for() -> None:
    """Citation File Format 1.2.0; cffconvert's own check needs the network."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software" and citation["license"] == "Apache-2.0"
    for work in (citation, citation["preferred-citation"]):
        assert work["title"] and all("name" in a or {"family-names", "given-names"} <= set(a) for a in work["authors"])


def test_contributing_begins_with_three_commands() -> None:
    commands = re.findall(r"^    (make \S+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert commands == ["make test", "make check", "make test-long"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {command.split()[1] for command in commands} <= set(targets)


def test_the_workflow_runs_the_same_targets() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert {"make test", "make check", "make test-long"} <= set(steps)
    assert workflow["permissions"] == {"contents": "read"}
    oldest = project()["project"]["requires-python"].removeprefix(">=")
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert versions[0] == oldest
    promised = {line.rpartition(" ")[2] for line in project()["project"]["classifiers"] if ":: Python :: 3." in line}
    assert set(versions) <= promised


@pytest.mark.long
def test_the_wheel_is_small_and_holds_the_package_alone(tmp_path: Path) -> None:
    """Built from a copy, with the setuptools that is installed: no network."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    source = tmp_path / "source"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name == f"lejepa_med-{lejepa_med.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < LARGEST_WHEEL
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        entry = opened.read(f"lejepa_med-{lejepa_med.__version__}.dist-info/entry_points.txt").decode()
    modules = {str(path.relative_to(ROOT).as_posix()) for path in (ROOT / "lejepa_med").rglob("*.py")}
    others = {name for name in names if name.startswith("lejepa_med/")} - modules
    assert modules <= names
    demo = {f"lejepa_med/cli/demo_configs/{kind}.yaml" for kind in ("index", "prepare", "pretrain", "benchmark")}
    configs = ROOT / "configs"
    files = [file.relative_to(configs).as_posix() for file in configs.rglob("*") if file.is_file()]
    assert others == {"lejepa_med/py.typed", *demo, *(f"lejepa_med/starting_points/{name}" for name in files)}
    assert {name.split("/")[0] for name in names} == {"lejepa_med", f"lejepa_med-{lejepa_med.__version__}.dist-info"}
    assert "lejepa-med = lejepa_med.cli.main:program" in entry
