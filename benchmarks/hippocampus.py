"""A 3D backbone of one's own on 175 hippocampus crops: what it tells of shape, of volume, and voxel by voxel.

    python benchmarks/hippocampus.py --data FOLDER --out runs/hippocampus_study

`FOLDER` holds `hippocampus_msd` (without --data: LEJEPA_MED_REAL_DATA). Two crops of one person stay together. The box
that was cut tells of the volume, so `box shape` is the control there; the anterior fraction is the cleaner task.
Segmentation: a linear head, a small decoder, and the decoder with the backbone trained too, against the same from
scratch. Runs that are finished are not run again; `--only` names some; `-- train.steps=500` changes all of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from joblib import Parallel, delayed
from train_to_the_end import train_to_the_end

from lejepa_med.cli.progress import ProgressLine
from lejepa_med.config import BenchmarkConfig, ModelConfig, PrepareConfig, PretrainConfig, load_config, validate
from lejepa_med.data import preparing
from lejepa_med.evaluation.benchmark import run_benchmark
from lejepa_med.evaluation.report import write_report
from lejepa_med.weights import load_backbone, save_backbone
from lejepa_med.weights.files import read_description

CONFIG = Path(__file__).parent / "configs" / "hippocampus_study.yaml"
HOLDOUT = {"test_fraction": 0.4, "seed": 0}
WHOLE = {"window": (32, 40, 32), "pitch_mm": 1.5}
"""A crop in one window, for values of the whole crop; chosen on training persons by hippocampus_windows.py."""
RUNS: dict[str, tuple[str, ...]] = {
    "lejepa_0": ("seed=0",),
    "lejepa_1": ("seed=1",),
    "lejepa_2": ("seed=2",),
    "vicreg": ("seed=0", "objective.kind=vicreg"),
}


def prepare(source: Path, out: Path) -> Path:
    """The cache with its masks, and beside it volume and anterior fraction by key."""
    cache = out / "cache"
    table = {"table": "cases.csv", "patient_column": "subject", "label_columns": ["anterior_mm3", "posterior_mm3"]}
    classes = {0: "background", 1: "anterior", 2: "posterior"}
    settings = {
        "modality": "mri",
        "source": {"kind": "folder", "mask_labels": classes, **table},
        "preprocess": {"spacing_mm": (1.0, 1.0, 1.0), "foreground": False},
    }
    preparing.prepare(source, cache, validate(PrepareConfig, settings, "prepare"))
    labels = pd.read_csv(cache / "labels.csv")
    volume = labels["anterior_mm3"] + labels["posterior_mm3"]
    labels.assign(volume_mm3=volume, anterior_fraction=labels["anterior_mm3"] / volume)[
        ["series_key", "volume_mm3", "anterior_fraction"]
    ].to_csv(out / "labels.csv", index=False)
    return cache


def pretrain(name: str, out: Path, overrides: list[str], threads: int) -> None:
    """One run, or what is left of it."""
    torch.set_num_threads(threads)
    run = out / "runs" / name
    if not (run / "DONE").exists():
        config = load_config(PretrainConfig, CONFIG, [f"data.cache={out / 'cache'}", *RUNS[name], *overrides])
        train_to_the_end(config, run, ProgressLine())


def seeing_whole_crops(out: Path, runs: list[str]) -> Path:
    """Copies of the backbones, with the list of what they saw, whose volumes are shown in one window."""
    for name in runs:
        run, copy = out / "runs" / name, out / "whole" / name
        copy.mkdir(parents=True, exist_ok=True)
        description, backbone = read_description(run / "backbone.safetensors"), load_backbone(run)
        assert backbone.spec is not None
        inference = backbone.spec.inference.model_copy(update=WHOLE)
        spec, model = backbone.spec.model_copy(update={"inference": inference}), description["model"]
        save_backbone(copy / "backbone.safetensors", backbone, ModelConfig.model_validate(model), spec)
        shutil.copy(run / "pretraining_series.csv", copy)
    return out / "whole"


def arms(folder: Path, runs: list[str]) -> list[dict[str, Any]]:
    """The runs in a folder, and what they have to beat."""
    first = str(folder / next(name for name in runs if name.startswith("lejepa")))
    encoders: list[dict[str, Any]] = []
    for name in runs:
        path = str(folder / name)
        if name == "vicreg":
            encoders.append({"kind": "run", "name": "VICReg", "path": path, "role": "control"})
        else:
            encoders.append({"kind": "run", "name": f"LeJEPA {name[-1]}", "path": path, "group": "LeJEPA"})
    return [
        *encoders,
        {"kind": "timm2d", "name": "DINOv2 ViT-S", "weights": None},
        {"kind": "random", "name": "random init", "like": first},
        {"kind": "scratch", "name": "from scratch", "like": first},
    ]


def measure_values(out: Path, runs: list[str], workers: int) -> None:
    """Anterior fraction and volume of every crop."""
    value = {"labels": str(out / "labels.csv"), "kind": "regression"}
    settings = {
        "tasks": [
            {"name": "anterior fraction", "column": "anterior_fraction", **value},
            {"name": "volume", "column": "volume_mm3", **value},
        ],
        "encoders": [
            *arms(seeing_whole_crops(out, runs), runs),
            {"kind": "pixels", "name": "pixels + PCA"},
            {"kind": "shape", "name": "box shape", "intensity": False},
            {"kind": "shape", "name": "shape + intensity"},
        ],
        "methods": ["linear", "knn", "finetune"],
        "budgets": [1, 2, 5, 10],
        "finetune_budgets": [5, 10],
        "finetune": {"grid": [1.0], "epochs": 20},
    }
    _run(settings, out, "values", workers)


def measure_segmentation(out: Path, runs: list[str], workers: int) -> None:
    """Anterior and posterior part, voxel by voxel; budgets are volumes."""
    settings = {
        "tasks": [{"name": "parts", "kind": "segmentation"}],
        "encoders": arms(out / "runs", runs),
        "methods": ["segment_linear", "segment_decoder", "segment_finetune"],
        "budgets": [2, 10],
        "seeds": 3,
        "finetune_budgets": [2, 10],
        "finetune_seeds": 2,
        "segmentation": {"steps": 400, "flips": False},  # front and back are what is asked for
    }
    _run(settings, out, "segmentation", workers)


def _run(settings: dict[str, Any], out: Path, name: str, workers: int) -> None:
    settings |= {"data": {"cache": str(out / "cache")}, "holdout": HOLDOUT, "workers": workers}
    run_benchmark(validate(BenchmarkConfig, settings, "benchmark"), out / name, ProgressLine())
    write_report(out / name, out / f"{name}_report")
    print((out / f"{name}_report" / "results.md").read_text())


def main() -> None:
    """Parses the command line and runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LEJEPA_MED_REAL_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=1, help="runs, then cells, at a time; they share the threads")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value for every run, e.g. objective.lam=0.3")
    options = parser.parse_intermixed_args()
    if options.data is None:
        raise SystemExit("give --data, or set LEJEPA_MED_REAL_DATA")
    prepare(Path(options.data) / "hippocampus_msd", options.out)
    threads = max(1, options.threads // options.jobs)
    Parallel(options.jobs)(delayed(pretrain)(name, options.out, options.overrides, threads) for name in options.only)
    torch.set_num_threads(options.threads)
    measure_values(options.out, options.only, options.jobs)
    measure_segmentation(options.out, options.only, options.jobs)


if __name__ == "__main__":
    main()
