"""A folder in which the commands of the docs find what they name, and the small sizes that a test runs them at."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lejepa_med.cli import main as cli
from lejepa_med.data.synthetic import write_archive

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "data"))

_PLACES = {"/path/to/archive": "archive", "/archive": "archive", "CONFIG": "configs/pretrain/brain_mri_resnet3d.yaml"}
"""Words that the reader replaces, and what stands there in the workshop."""
_VIEWS = {
    "model.name": "resnet10_3d", "model.width": "0.25", "projector.hidden": "16", "projector.dim": "8",
    "views.global_size": "[32, 32, 32]", "views.local_size": "[32, 32, 32]",
    "views.global_pitch_mm": "[4, 12]", "views.local_pitch_mm": "[3.2, 6]",
    "objective.num_slices": "16", "data.workers": "0", "logging.tensorboard": "false",
    "data.monitor_fraction": "0.65",
}  # fmt: skip
_COARSE = {"max_in_plane_mm": "8", "max_slice_distance_mm": "16", "min_matrix": "16", "min_slices": "8"}
"""The synthetic archive has voxels of some 4 mm, which the shipped configs leave out."""
_SIZES: dict[str, dict[str, str]] = {
    "index": _COARSE | {"compute.workers": "1"},
    "convert": {"compute.workers": "1"},
    "prepare": {"preprocess.spacing_mm": "[4, 4, 4]", "compute.workers": "1"},
    "views": _VIEWS,
    "plan": _VIEWS | {"plan.probe_seconds": "1"},
    "pretrain": _VIEWS,
    "benchmark": {
        "budgets": "[1]",
        "seeds": "1", "finetune_budgets": "[1]", "finetune_seeds": "1",
        "finetune.epochs": "1", "finetune.min_steps": "1", "workers": "1",
    },
}  # fmt: skip
_ALWAYS = {"pretrain": {"train.steps": "2", "train.batch_size": "4"}, "plan": {"train.batch_size": "4"}}
"""Sizes that replace even those that a command names: they are what makes it run for days."""


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and the words it ran with."""

    code: int
    words: list[str]


def run(text: str) -> Done:
    """Runs a `lejepa-med` command in the current folder, with the places and sizes of the workshop."""
    words = [word for part in shlex.split(text)[1:] for word in _expanded(part)]
    verb = words[0]
    sizes = {k: v for k, v in _SIZES.get(verb, {}).items() if not any(w.startswith(f"{k}=") for w in words)}
    always = _ALWAYS.get(verb, {})
    words = [word for word in words if word.partition("=")[0] not in always]
    words += [f"{key}={value}" for key, value in (sizes | always).items()]
    return Done(cli.main(words), words)


def _expanded(word: str) -> list[str]:
    word = _PLACES.get(word, word)
    return sorted(str(path) for path in Path().glob(word)) if "*" in word else [word]


def furnish(folder: Path, subjects: int) -> None:
    """Configs, an archive and its labels: what a reader has before the first command."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    write_archive(folder / "archive", subjects=subjects, seed=1)
    labels = pd.read_csv(folder / "archive" / "labels.csv")
    labels["diagnosis"] = ["patient" if grade > 1 else "control" for grade in labels["ventricle_grade"]]
    for name in ("labels.csv", "my_labels.csv"):
        labels.to_csv(folder / name, index=False)
    small: dict[str, Any] = {"train": {"steps": 2, "batch_size": 4}, "data": {"cache": "cache"}}
    for key, value in _VIEWS.items():
        *sections, name = key.split(".")
        place: dict[str, Any] = small
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = yaml.safe_load(value)
    (folder / "my_pretrain.yaml").write_text(yaml.safe_dump(small))


def furnish_collections(folder: Path) -> None:
    """A segmentation data set in nnU-Net's layout with a table of its cases, and a file of MedMNIST."""
    from published_layouts import medmnist, nnunet

    nnunet(folder / "FOLDER", channels=("T1w",))
    medmnist(folder / "pathmnist.npz")
    images = sorted((folder / "FOLDER" / "imagesTr").iterdir())
    rows = [{"file": f"imagesTr/{file.name}", "subject": f"s{number}"} for number, file in enumerate(images)]
    pd.DataFrame(rows).to_csv(folder / "FOLDER" / "cases.csv", index=False)


def furnish_runs(folder: Path, names: str) -> None:
    """Runs of other names, and results of theirs."""
    for name in names:
        if not (folder / "runs" / name).exists():
            shutil.copytree(folder / "runs" / "brain", folder / "runs" / name)


def scores(folder: Path, names: str) -> None:
    """A table of probe results of runs, in the form that `select --results` takes."""
    table = pd.DataFrame([{"run": f"runs/{name}", "score": 0.5 + number / 10} for number, name in enumerate(names)])
    table.to_csv(folder / "scores.csv", index=False)


def probe_result(folder: Path, run_name: str) -> None:
    """The file that `probe` leaves, of one run."""
    task = {"name": "age", "labels": "labels.csv", "column": "age", "kind": "regression"}
    config = {
        "data": {"cache": "cache", "index": "index"}, "model": run_name,
        "task": task, "budgets": [1], "seeds": 1,
    }  # fmt: skip
    (folder / "probe.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["probe", str(folder / "probe.yaml"), "--out", str(folder / "other")]) == 0
