"""The main job on real scans: index, prepare, pretrain, benchmark, as in docs/results.md.

    python benchmarks/real_scans.py hippocampus --data FOLDER --out runs/hippocampus
    python benchmarks/real_scans.py open_ms     --data FOLDER --out runs/open_ms

`FOLDER` holds `hippocampus_msd` (MSD Task04 crops with `cases.csv`) and `open_ms_longitudinal` (with `volumes.csv`);
without --data, LEJEPA_MED_REAL_DATA names it. Stages that are finished in --out are not run again. Prints the tables.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path
from typing import Any

from train_to_the_end import train_to_the_end

from lejepa_med.cli.progress import ProgressLine
from lejepa_med.config import BenchmarkConfig, IndexSettings, PrepareConfig, PretrainConfig, load_config, validate
from lejepa_med.data import preparing
from lejepa_med.data.index import archive
from lejepa_med.evaluation.benchmark import run_benchmark
from lejepa_med.evaluation.report import write_report

CONFIGS = Path(__file__).parent / "configs"


def hippocampus_labels(source: Path, file: Path) -> None:
    """Anterior share and volume (mm3) of every case that has a mask, with the person it belongs to."""
    with (source / "cases.csv").open() as stream, file.open("w", newline="") as target:
        rows = csv.writer(target)
        rows.writerow(["path", "subject", "anterior_fraction", "volume_mm3"])
        for case in csv.DictReader(stream):
            anterior, posterior = float(case["anterior_mm3"] or 0), float(case["posterior_mm3"] or 0)
            if anterior + posterior > 0:
                volume = anterior + posterior
                rows.writerow([case["file"], case["subject"], anterior / volume, volume])


def open_ms_labels(source: Path, file: Path) -> None:
    """Sequence type and patient of every volume."""
    with (source / "volumes.csv").open() as stream, file.open("w", newline="") as target:
        rows = csv.writer(target)
        rows.writerow(["path", "patient", "sequence"])
        rows.writerows([row["file"], row["patient"], row["sequence"]] for row in csv.DictReader(stream))


SETS: dict[str, dict[str, Any]] = {
    "hippocampus": {
        "folder": "hippocampus_msd",
        "scans": "images",
        "labels": hippocampus_labels,
        "person": "subject",
        "preprocess": {"spacing_mm": (1.0, 1.0, 1.0), "foreground": False},
        "config": "hippocampus.yaml",
        "tasks": [("anterior fraction", "anterior_fraction"), ("volume", "volume_mm3")],
        "control": {"kind": "shape", "name": "box shape", "intensity": False},
    },
    "open_ms": {
        "folder": "open_ms_longitudinal",
        "scans": ".",
        "labels": open_ms_labels,
        "person": "patient",
        "preprocess": {"spacing_mm": (4.0, 4.0, 4.0)},
        "config": "open_ms.yaml",
        "tasks": [("sequence", "sequence")],
        "control": {"kind": "shape", "name": "shape + intensity"},
    },
}


def run(name: str, data: Path, out: Path) -> Path:
    """All stages; returns the benchmark's folder."""
    chosen, progress = SETS[name], ProgressLine()
    source = data / chosen["folder"]
    out.mkdir(parents=True, exist_ok=True)
    labels = out / "labels.csv"
    chosen["labels"](source, labels)
    patients = {"file": str(labels), "path_column": "path", "patient_column": chosen["person"]}
    index = validate(IndexSettings, {"modality": "mri", "patients": patients}, "index")
    archive.index([source / chosen["scans"]], out / "index", index, progress)
    prepare = validate(PrepareConfig, {"preprocess": chosen["preprocess"]}, "prepare")
    preparing.prepare(out / "index", out / "cache", prepare, progress)
    config = load_config(PretrainConfig, CONFIGS / chosen["config"], [f"data.cache={out / 'cache'}"])
    if not (out / "run" / "DONE").exists():
        began = time.perf_counter()
        train_to_the_end(config, out / "run", progress)
        print(f"pretraining: {time.perf_counter() - began:.0f} s")
    run_benchmark(validate(BenchmarkConfig, benchmark_settings(chosen, out), "benchmark"), out / "benchmark", progress)
    return out / "benchmark"


def benchmark_settings(chosen: dict[str, Any], out: Path) -> dict[str, Any]:
    """LeJEPA against its random init, pixels, the shape control, and DINOv2 where weights are given."""
    tasks = [
        {"name": title, "labels": str(out / "labels.csv"), "column": column, "group_column": chosen["person"]}
        for title, column in chosen["tasks"]
    ]
    return {
        "data": {"cache": str(out / "cache"), "index": str(out / "index")},
        "tasks": tasks,
        "encoders": [
            {"kind": "run", "name": "LeJEPA", "path": str(out / "run")},
            {"kind": "random", "name": "random init", "like": str(out / "run")},
            {"kind": "pixels", "name": "pixels + PCA"},
            chosen["control"],
            {"kind": "timm2d", "name": "DINOv2 ViT-S"},
        ],
        "methods": ["linear", "knn"],
        "holdout": {"test_fraction": 0.4, "seed": 0},
    }


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=sorted(SETS))
    parser.add_argument("--data", type=Path, default=os.environ.get("LEJEPA_MED_REAL_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data, or set LEJEPA_MED_REAL_DATA")
    benchmark = run(options.set, Path(options.data), options.out)
    write_report(benchmark, options.out / "report")
    print((options.out / "report" / "results.md").read_text())


if __name__ == "__main__":
    main()
