"""Every tutorial runs from beginning to end in a process of its own, and leaves the numbers that it promises.

At smoke size tutorials 2 and 3 run once for those that start where they end; in full each starts from nothing.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from lejepa_med.file_locks import lock_stream

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "tutorials"
START = ("02_archive_to_index", "03_pretrain")
Result = dict[str, Any]


def run(name: str, out: Path, size: str) -> Result:
    """What the tutorial writes into `result.json`; it is not run again where that is there."""
    file = out / name / "result.json"
    if not file.exists():
        settings = {"LEJEPA_MED_TUTORIAL_OUT": str(out), "LEJEPA_MED_TUTORIAL_SIZE": size, "OMP_NUM_THREADS": "1"}
        settings |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        command = [sys.executable, str(TUTORIALS / f"{name}.py")]
        done = subprocess.run(
            command, cwd=out, env=os.environ | settings, capture_output=True, text=True, timeout=1500, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    result: Result = json.loads(file.read_text())
    return result


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, index, cache and runs of tutorials 2 and 3, made by the first of several workers.

    The salt is given: who is held out of 24 patients hangs on it, and so does whether they are enough.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "tutorials"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("wb") as stream:
        lock_stream(stream)
        salt = folder / "work" / "index" / "salt"
        if not salt.exists():
            salt.parent.mkdir(parents=True)
            salt.write_bytes(b"02" * 32)
            salt.chmod(0o600)
        for name in START:
            run(name, folder, "smoke")
    return folder


def first_backbone(result: Result, out: Path, full: bool) -> None:
    assert math.isfinite(result["first_loss"]) and result["last_loss"] < result["first_loss"]
    assert 0 <= result["accuracy"] <= 1 and result["dimensions"] == 128
    assert not full or (result["accuracy"] > result["pixels"] and result["accuracy"] > 0.35), "chance is .25"
    folder = out / "01_first_backbone" / "run"
    assert (folder / "DONE").exists() and (folder / "views.png").stat().st_size > 1000


def archive_to_index(result: Result, out: Path, full: bool) -> None:
    written = sum(
        1 for line in (out / "work" / "archive" / "labels.csv").read_text().splitlines()[1:] if "sub-" in line
    )
    assert result["files"] == result["on_disk"] and result["unexplained"] == 0
    assert result["modalities_before"]["unknown"] >= written > 0, "NIfTI files say nothing before the rule"
    assert set(result["modalities"]) == {"mri", "ct"} and result["modalities"]["ct"] == 13
    clutter = {"duplicate": 1, "not_a_scan": 1, "secondary_capture": 1, "structured_report": 1}
    assert {name: count for name, count in result["reasons"].items() if name != "localizer"} == clutter
    assert len(result["shape"]) == 3 and (out / "02_archive_to_index" / result["file"]).exists()


def pretrain(result: Result, out: Path, full: bool) -> None:
    assert result["run"]["scans"] == result["run_2d"]["scans"] > result["run"]["trained_on"] > 0
    assert result["run"]["trained_on"] == result["run_2d"]["trained_on"], "the same patients are left out"
    assert result["run"]["dimensions"] == 128 and result["run_2d"]["dimensions"] == 512
    for name in ("run", "run_2d"):
        assert math.isfinite(result[name]["last"])
        assert not full or result[name]["last"] < result[name]["first"]
    assert (out / "03_pretrain" / "views.png").stat().st_size > 1000


def read_the_loss(result: Result, out: Path, full: bool) -> None:
    runs = ["lam_0.001", "lam_0.1", "lam_0.8"]
    assert sorted(result["ranking"]) == runs and all(result[name]["held_out"] for name in runs)
    scores = [result["scores"][name] for name in result["ranking"]]
    assert scores == sorted(scores) and all(score > 0 for score in scores)
    if full:
        low, _, high = (result[name] for name in runs)
        assert low["prediction"] < high["prediction"] and low["sigreg"] > high["sigreg"], "what lam trades"
        assert low["projection_std"] < high["projection_std"]


def compare_with_dinov2(result: Result, out: Path, full: bool) -> None:
    assert result["counts"]["no_weights"] > 0 and set(result["counts"]) == {"ok", "no_weights"}
    assert result["dinov2_values"] == 0 and "DINOv2 ViT-S" in result["encoders"] and len(result["encoders"]) == 6
    assert result["leaks"]["LeJEPA"] == "checked"
    values = {name: value for name, value in result["values"].items() if "DINOv2" not in name}
    assert values and all(0 <= value <= 1 for value in values.values())
    page = (out / "05_compare_with_dinov2" / "benchmark" / "report" / "report.html").read_text(encoding="utf-8")
    assert "no weights given" in page and "pixels + PCA" in page


def finetune_and_segment(result: Result, out: Path, full: bool) -> None:
    assert result["grade_status"] == "ok" and 0 <= result["grade"]["finetune"] <= 1
    assert set(result["counts"]) == {"ok"} and result["leaks"]["LeJEPA"] == "checked"
    arms = {(name.split(", ")[0], name.split(", ")[1]) for name in result["dice"]}
    frozen = {(name, method) for name in ("LeJEPA", "random init") for method in ("segment_linear", "segment_decoder")}
    assert arms == frozen | {(name, "segment_finetune") for name in ("LeJEPA", "from scratch")}
    assert all(0 <= value <= 1 for value in result["dice"].values())
    assert not full or result["dice"]["LeJEPA, segment_finetune"] > 0.3


def many_gpus(result: Result, out: Path, full: bool) -> None:
    assert len(result["one"]) == len(result["two"]) == result["steps"] == (60 if full else 8)
    assert max(result["apart"][:2]) < 1e-5 and max(result["apart"]) < 0.05 and len(set(result["one"])) > 1
    assert result["same_after_kill"] is True


def use_elsewhere(result: Result, out: Path, full: bool) -> None:
    assert result["filled"] + 3 == result["tensors"] > 50, "three biases go into the norms behind them"
    assert result["fresh"] > 0
    assert result["monai"] and result["timm"] and result["torch"]
    assert "do not fit" in result["refused"]
    packages = ("onnx", "onnxscript", "onnxruntime")
    assert result["onnx"] is (True if all(importlib.util.find_spec(name) for name in packages) else None)


def medmnist3d(result: Result, out: Path, full: bool) -> None:
    assert result["splits"]["train"] >= result["trained_on"] > result["splits"]["test"] > 0, "some are monitored"
    assert set(result["counts"]) == {"ok", "no_weights"} and result["leaks"]["LeJEPA"] == "checked"
    scored = [row for row in result["rows"] if row["status"] == "ok"]
    assert {row["encoder"] for row in result["rows"]} - {row["encoder"] for row in scored} == {"Raptor"}
    assert all(0 <= row[name] <= 1 for row in scored for name in ("auroc", "accuracy", "balanced_accuracy"))


CHECKS: dict[str, Callable[[Result, Path, bool], None]] = {
    "01_first_backbone": first_backbone,
    "02_archive_to_index": archive_to_index,
    "03_pretrain": pretrain,
    "04_read_the_loss": read_the_loss,
    "05_compare_with_dinov2": compare_with_dinov2,
    "06_finetune_and_segment": finetune_and_segment,
    "07_many_gpus": many_gpus,
    "08_use_elsewhere": use_elsewhere,
    "09_medmnist3d": medmnist3d,
}


@pytest.mark.parametrize("name", CHECKS)
def test_smoke(name: str, started: Path) -> None:
    CHECKS[name](run(name, started, "smoke"), started, False)


@pytest.mark.long
@pytest.mark.parametrize("name", CHECKS)
def test_full(name: str, tmp_path: Path) -> None:
    if name == "03_pretrain":
        run("02_archive_to_index", tmp_path, "full")
    CHECKS[name](run(name, tmp_path, "full"), tmp_path, True)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks", TUTORIALS / "notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_tutorial_is_tested_here() -> None:
    assert [script.stem for script in generator().scripts()] == list(CHECKS)


def test_the_notebooks_are_the_scripts(tmp_path: Path) -> None:
    fresh = {file.name: file.read_text(encoding="utf-8") for file in generator().write_all(tmp_path)}
    kept = {file.name: file.read_text(encoding="utf-8") for file in (TUTORIALS / "notebooks").glob("*.ipynb")}
    assert kept == fresh, "run `make notebooks`"


@pytest.mark.parametrize("name", CHECKS)
def test_a_notebook_holds_every_line(name: str) -> None:
    lines = (TUTORIALS / f"{name}.py").read_text(encoding="utf-8").splitlines()
    cells = json.loads((TUTORIALS / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    marked = [line for line in lines if line.startswith("# %%")]
    assert [cell["cell_type"] for cell in cells] == ["markdown" if "[" in line else "code" for line in marked]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    compile(code, name, "exec")
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert all(
        line.removeprefix("# ") in text for line in lines if line.strip() and not line.startswith(("# %%", "#\n"))
    )
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_the_medmnist_commands_are_understood() -> None:
    """Each override in the comments of the ready config is a field of the config that it changes."""
    from lejepa_med.config import PretrainConfig, load_config

    config = ROOT / "configs" / "benchmark" / "medmnist3d.yaml"
    (line,) = [line for line in config.read_text().splitlines() if line.startswith("#   lejepa-med pretrain")]
    words = line.split()[3:]
    settings = load_config(PretrainConfig, ROOT / words[0], [word for word in words[1:] if "=" in word])
    tasks = yaml.safe_load(config.read_text())["tasks"]
    assert settings.data.official_split == Path(tasks[0]["labels"]) and tasks[0]["split_column"] == "split"
