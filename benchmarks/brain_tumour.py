"""Does a backbone of one's own beat one from ImageNet on 1,684 MRI slices? Three tumour types, split by blocks.

    python benchmarks/brain_tumour.py --data FOLDER --weights FILE --out runs/tumour --stage dev
    python benchmarks/brain_tumour.py --data FOLDER --weights FILE --out runs/tumour --stage final

`FOLDER` holds `brain_tumour_cheng` (without --data: LEJEPA_MED_REAL_DATA); `FILE` is ImageNet's EfficientNet-Lite0. The
slices carry no patient; those of a patient are neighbours in the original numbering. So of each class, in that order,
the last 25 % are sealed (`final`), the 25 % before them are looked at while a recipe is chosen (`dev`), 20 slices
between two parts are dropped, and 10 neighbours count as one patient. Pretraining sees the slices before the part that
is tested, and nothing else. Runs that are finished are not run again; `--only` names some.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from train_to_the_end import train_to_the_end

from lejepa_med.cli.progress import ProgressLine
from lejepa_med.config import BenchmarkConfig, PrepareConfig, PretrainConfig, load_config, validate
from lejepa_med.data import preparing
from lejepa_med.evaluation.benchmark import run_benchmark
from lejepa_med.evaluation.report import write_report

CONFIG = Path(__file__).parent / "configs" / "brain_tumour.yaml"
BLOCK, GAP = 10, 20
IMAGENET = ("model.name=timm/efficientnet_lite0", "init_from_seen=no_patients", "optim.lr=2e-4", "train.steps=250")
SLOW_IN_BF16 = ("train.precision=float32",)  # depthwise convolutions on a CPU: 2.9 s a step against 6.2
RUNS: dict[str, tuple[str, ...]] = {
    "lejepa_0": ("seed=0",),
    "lejepa_1": ("seed=1",),
    "lejepa_2": ("seed=2",),
    "vicreg": ("seed=0", "objective.kind=vicreg"),
    "imagenet_continued": ("seed=0", *IMAGENET, *SLOW_IN_BF16),
}


def sides(numbers: list[int], stage: str) -> dict[int, str]:
    """train or test of the slices of one class, in the order of their numbers; what is missing is not used."""
    first, second = int(len(numbers) * 0.5), int(len(numbers) * 0.75)
    start = {"dev": first, "final": second}[stage]
    end = {"dev": second, "final": len(numbers)}[stage]
    found = dict.fromkeys(numbers[: start - GAP // 2], "train")
    return found | dict.fromkeys(numbers[start + GAP // 2 : end - (GAP // 2 if stage == "dev" else 0)], "test")


def lay_out(source: Path, out: Path, stage: str) -> Path:
    """A folder of pictures with a table that says class, block, side, and a class permuted over blocks."""
    images = out / "pictures" / "images"
    images.mkdir(parents=True, exist_ok=True)
    of_class: dict[str, list[tuple[int, str]]] = defaultdict(list)
    with (source / "labels.csv").open() as stream:
        for row in csv.DictReader(stream):
            of_class[row["label"]].append((int(row["original_index"]), row["file"]))
    rows = []
    for label, slices in sorted(of_class.items()):
        slices.sort()
        side = sides([number for number, _ in slices], stage)
        for place, (number, file) in enumerate(slices):
            if number in side:
                name = f"{label}_{number:04d}.jpg"
                if not (images / name).exists():
                    (images / name).symlink_to((source / "images" / file).resolve())
                rows.append({"file": name, "label": label, "block": f"{label} {place // BLOCK}", "side": side[number]})
    table = pd.DataFrame(rows)
    blocks = table.drop_duplicates("block")
    given = dict(zip(blocks["block"], np.random.default_rng(0).permutation(blocks["label"]), strict=True))
    table.assign(shuffled=table["block"].map(given)).to_csv(out / "pictures" / "cases.csv", index=False)
    return out / "pictures"


def prepare(source: Path, out: Path, stage: str) -> Path:
    """The cache of a stage, and beside it the labels and the split by key."""
    cache = out / "cache"
    pictures = lay_out(source, out, stage)
    table = {"table": "cases.csv", "patient_column": "block", "label_columns": ["label", "side", "shuffled"]}
    settings = {"source": {"kind": "folder", **table}, "preprocess": {"image_size": 160}}
    preparing.prepare(pictures, cache, validate(PrepareConfig, settings, "prepare"))
    labels = pd.read_csv(cache / "labels.csv")
    labels.assign(split=labels["side"]).to_csv(out / "labels.csv", index=False)
    return cache


def pretrain(name: str, out: Path, weights: Path | None, overrides: list[str], threads: int) -> None:
    """One run; `imagenet_continued` starts from `weights`."""
    torch.set_num_threads(threads)
    run = out / "runs" / name
    if not (run / "DONE").exists():
        lines = [f"data.cache={out / 'cache'}", f"data.official_split={out / 'labels.csv'}", *RUNS[name], *overrides]
        if name == "imagenet_continued":
            lines.append(f"init_from={weights}")
        config = load_config(PretrainConfig, CONFIG, lines)
        train_to_the_end(config, run, ProgressLine())


def benchmark(out: Path, weights: Path | None, runs: list[str], stage: str) -> Path:
    """All arms on the class, and on the permuted class as a check of the whole procedure; recipes are chosen frozen."""
    first = out / "runs" / next(name for name in runs if name.startswith("lejepa"))
    shared = {"labels": str(out / "labels.csv"), "split_column": "split", "kind": "classification"}
    encoders: list[dict[str, Any]] = []
    for name in runs:
        path = str(out / "runs" / name)
        if name.startswith("lejepa"):
            encoders.append({"kind": "run", "name": f"LeJEPA {name[-1]}", "path": path, "group": "LeJEPA"})
        elif name == "vicreg":
            encoders.append({"kind": "run", "name": "VICReg", "path": path, "role": "control"})
        else:
            encoders.append({"kind": "run", "name": "ImageNet, continued", "path": path, "role": "rival"})
    encoders += [
        {"kind": "timm2d", "name": "EfficientNet-Lite0, ImageNet", "model": "efficientnet_lite0",
         "weights": weights and str(weights)},
        {"kind": "timm2d", "name": "DINOv2 ViT-S", "weights": None},
        {"kind": "random", "name": "random init", "like": str(first)},
        {"kind": "scratch", "name": "from scratch", "like": str(first)},
        {"kind": "pixels", "name": "pixels + PCA"},
        {"kind": "shape", "name": "shape + intensity"},
    ]  # fmt: skip
    settings = {
        "data": {"cache": str(out / "cache")},
        "tasks": [
            {"name": "tumour type", "column": "label", **shared},
            {"name": "shuffled labels", "column": "shuffled", **shared},
        ],
        "encoders": encoders,
        "methods": ["linear", "knn", *(["finetune"] if stage == "final" else [])],
        "finetune_tasks": ["tumour type"],
        "finetune_budgets": [10, 100],
        "finetune": {"epochs": 10, "grid": [1.0]},  # two CPU cores: nothing is tuned, for no arm
    }
    run_benchmark(validate(BenchmarkConfig, settings, "benchmark"), out / "benchmark", ProgressLine())
    write_report(out / "benchmark", out / "report")
    return out / "report" / "results.md"


def main() -> None:
    """Parses the command line and runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LEJEPA_MED_REAL_DATA"))
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0 of ImageNet; without it its rows say so")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=("dev", "final"), required=True)
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the threads")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value for every run, e.g. objective.lam=0.05")
    options = parser.parse_intermixed_args()
    if options.data is None:
        raise SystemExit("give --data, or set LEJEPA_MED_REAL_DATA")
    out = options.out / options.stage
    prepare(Path(options.data) / "brain_tumour_cheng", out, options.stage)
    runs = [name for name in options.only if name != "imagenet_continued" or options.weights is not None]
    threads = max(1, options.threads // options.jobs)
    Parallel(options.jobs)(delayed(pretrain)(name, out, options.weights, options.overrides, threads) for name in runs)
    torch.set_num_threads(options.threads)
    print(benchmark(out, options.weights, runs, options.stage).read_text())


if __name__ == "__main__":
    main()
