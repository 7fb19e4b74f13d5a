"""The ready benchmarks run on synthetic files in the layouts that they name, with the commands in their comments."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
from published_layouts import nnunet

from lejepa_med.cli.main import main

CONFIGS = Path(__file__).parent.parent / "configs"
FOMO = {
    "fomo25_infarct": ("fomo-task1", "skull_stripped", ("ss_flair", "ss_dwi_b1000", "ss_adc")),
    "fomo25_brain_age": ("fomo-task3", "preprocessed", ("ss_t1", "ss_t2")),
}
SMALL = ("seeds=1", "finetune_seeds=1", "finetune.epochs=1", "finetune.min_steps=1", "device=cpu")
PATIENTS = 16


def head(number: int) -> nibabel.Nifti1Image:
    """A ball whose brightness is the patient's."""
    ball = np.random.default_rng(number).normal(10, 3, (24, 24, 24))
    ball[5:19, 5:19, 5:19] += 100 + 20 * (number % 4)
    return nibabel.Nifti1Image(ball.astype(np.float32), np.diag([-6, 6, 6, 1.0]))


def write_fomo(task: str, folder: str, series: tuple[str, ...]) -> None:
    for number in range(PATIENTS):
        for name in series:
            file = Path(task, folder, f"sub_{number + 1}", "ses_1", f"{name}.nii.gz")
            file.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(head(number), file)
        label = Path(task, "labels", f"sub_{number + 1}", "ses_1", "label.txt")
        label.parent.mkdir(parents=True)
        label.write_text(str(number % 2 if task == "fomo-task1" else 20 + 3 * number))


def run_words(config: Path, verb: str) -> list[str]:
    """The command of a verb in the comments of a config."""
    (line,) = re.findall(rf"^#   lejepa-med ({verb} .*)$", config.read_text(encoding="utf-8"), re.MULTILINE)
    return [str(CONFIGS.parent / word) if word.startswith("configs/") else word for word in line.split()]


def pretrain_on(cache: str) -> None:
    """The run that the configs name, of two steps."""
    settings = Path("pretrain.yaml")
    values = {
        "data": {"cache": cache, "monitor_fraction": 0.0, "holdout": {"test_fraction": 0.5}},
        "model": {"name": "resnet10_3d", "width": 0.125, "stem_pool": False},
        "projector": {"hidden": 8, "dim": 4},
        "objective": {"num_slices": 8},
        "views": {
            "num_local": 1, "global_size": [16] * 3, "local_size": [8] * 3, "base_crop_mm": 96,
            "global_pitch_mm": None, "local_pitch_mm": None,
        },
        "train": {"steps": 2, "batch_size": 2, "device": "cpu"},
    }  # fmt: skip
    settings.write_text(json.dumps(values))
    assert main(["pretrain", str(settings), "--out", "runs/brain"]) == 0


def counts(out: Path) -> dict[str, int]:
    """Cells by their outcome."""
    found: dict[str, int] = {}
    for file in (out / "cells").rglob("*.json"):
        status = json.loads(file.read_text())["status"]
        found[status] = found.get(status, 0) + 1
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", FOMO)
def test_fomo25(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = CONFIGS / "benchmark" / f"{name}.yaml"
    write_fomo(*FOMO[name])
    (table,) = re.findall(r"^#   (\(echo patient_id.*\n#    .* > \w+\.csv)$", config.read_text(), re.MULTILINE)
    subprocess.run(["bash", "-c", table.replace("\n#", "\n")], check=True)
    prepare = run_words(config, "prepare")
    assert main([*prepare, "preprocess.spacing_mm=[6, 6, 6]", "compute.workers=1"]) == 0
    pretrain_on(prepare[prepare.index("--out") + 1])
    words = run_words(config, "benchmark")
    few = [*SMALL, "budgets=[2]", "finetune_budgets=[2]", "holdout.test_fraction=0.5"]
    assert main([*words, *few]) == 0
    found = counts(Path(words[words.index("--out") + 1]))
    assert found["ok"] > 4 and set(found) <= {"ok", "no_weights"}, found


@pytest.mark.long
def test_segmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = CONFIGS / "benchmark" / "segmentation.yaml"
    nnunet(tmp_path / "Dataset010_MINE", cases=8)
    assert main([*run_words(config, "prepare"), "compute.workers=1", "preprocess.foreground=false"]) == 0
    pretrain_on("cache_lesions")
    words = run_words(config, "benchmark")
    few = [*SMALL, "budgets=[2]", "finetune_budgets=[2]", "holdout.test_fraction=0.5", "segmentation.steps=2"]
    assert main([*words, *few]) == 0
    found = counts(Path("runs/lesions"))
    assert set(found) == {"ok", "no_weights"} and found["ok"] >= 5, found
