"""A whole benchmark in seconds: real grid, splits and statistics, but predictions that are the truth with noise.

Every kind of task, every method, arms with repeats, rivals with and without results, cells that failed, costs, leaks
and duplicates: what a report has to be able to say.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lejepa_med.config.evaluation import BenchmarkConfig, slug
from lejepa_med.config.loading import dump_yaml
from lejepa_med.data.cache import Cache, entry_name, file_digest, write_entry, write_settings
from lejepa_med.evaluation.cells import cell_file, write_cell
from lejepa_med.evaluation.grid import Cell, Grid, PreparedTask
from lejepa_med.evaluation.metrics import headline, scores
from lejepa_med.evaluation.summary import summarise
from lejepa_med.spec import PreprocessSpec

GRADES = ("healthy", "low grade", "high & mixed grade")
SKILL = {"LeJEPA": 1.5, "DINOv2, 32": 0.45, "DINOv2": 0.6, "VICReg": 0.8, "random": 0.35, "from": 0.7, "pixels": 0.5}
FAILED = "RuntimeError in attention:41 fit"
NO_WEIGHTS = "encoder DINOv3: no weights given; set encoders.9.weights=/path/to/dinov3.pth"


def write_showcase_cache(folder: Path, patients: int = 90) -> Cache:
    """Small volumes with masks, and labels of every kind."""
    preprocess, generator, rows, labels = PreprocessSpec(spacing_mm=(8, 8, 8)), np.random.default_rng(0), [], []
    write_settings(folder / "cache", preprocess)
    for patient in range(patients):
        key, owner = (hashlib.sha256(f"{kind}{patient}".encode()).hexdigest()[:12] for kind in ("series", "patient"))
        mask = (np.sqrt(((np.indices((12, 12, 12)) - 6) ** 2).sum(0)) < 3 + patient % 3).astype(np.uint8)
        image = (generator.normal(90, 12, mask.shape) + 80 * mask).clip(0, 255).astype(np.uint8)
        row: dict[str, Any] = {"series_key": key, "patient_key": owner, "study_key": key, "group_key": key}
        row |= {"modality": "mri", "sequence": "t1", "shape": [12] * 3, "spacing_mm": [8.0] * 3}
        for name, array in (("", image), ("mask_", mask)):
            entry = entry_name(key, name, preprocess)
            row[f"{name}entry"] = entry
            row[f"{name}sha256"] = write_entry(folder / "cache", entry, array).sha256
        rows.append(row)
        label = {"series_key": key, "grade": GRADES[patient % 3], "stage": patient % 4, "site": f"s{patient % 5}"}
        label |= {"age": 40 + 30 * generator.random(), "oedema": patient % 2, "bleeding": int(patient % 5 == 0)}
        labels.append(label)
    frame = pd.DataFrame(rows)
    frame.to_parquet(folder / "cache" / "manifest.parquet")
    digest = file_digest(folder / "cache" / "manifest.parquet")
    (folder / "cache" / "manifest.sha256").write_text(digest)
    (folder / "cache" / "mask_labels.json").write_text('{"0": "background", "1": "core"}')
    pd.DataFrame(labels).to_csv(folder / "labels.csv", index=False)
    return Cache.open(folder / "cache")


def showcase_config(folder: Path, run: Path, kinds: Sequence[str], **settings: Any) -> BenchmarkConfig:
    """Arms of every role on the tasks of these kinds."""
    file = {"labels": str(folder / "labels.csv")}
    tasks = {
        "classification": {"name": "tumour grade", "column": "grade", **file},
        "regression": {"name": "age", "column": "age", "kind": "regression", **file},
        "ordinal": {"name": "stage", "column": "stage", "kind": "ordinal", "unit": "study", **file},
        "multilabel": {"name": "findings", "kind": "multilabel", "columns": ["oedema", "bleeding"], **file},
        "segmentation": {"name": "core", "kind": "segmentation"},
    }
    weights = folder / "network.pth"
    weights.write_bytes(b"never loaded here")
    like = str(run)
    encoders: list[dict[str, Any]] = [
        *({"kind": "run", "name": f"LeJEPA {seed}", "path": like, "group": "LeJEPA"} for seed in (1, 2, 3)),
        {"kind": "timm2d", "name": "DINOv2", "weights": str(weights)},
        {"kind": "timm2d", "name": "DINOv2, 32", "weights": str(weights), "protocol": "axial32"},
        {"kind": "run", "name": "VICReg", "path": like, "role": "control"},
        {"kind": "random", "like": like},
        {"kind": "scratch", "like": like},
        {"kind": "pixels", "size": [4, 4, 4]},
        {"kind": "timm2d", "name": "DINOv3"},
    ]
    defaults: dict[str, Any] = {"data": {"cache": str(folder / "cache")}, "tasks": [tasks[kind] for kind in kinds]}
    methods = ["linear", "knn", "attention", "finetune", "lora", "segment_linear", "segment_decoder"]
    defaults |= {"encoders": encoders, "methods": [*methods, "segment_finetune"], "budgets": [1, 2, 5, 10]}
    defaults |= {"finetune_budgets": [2, 5, 10], "seeds": 2, "finetune_seeds": 1, "device": "cpu"}
    defaults |= {"holdout": {"test_fraction": 0.4, "seed": 1}, "segmentation": {"steps": 10}}
    return BenchmarkConfig.model_validate(defaults | settings)


def write_showcase(config: BenchmarkConfig, out: Path, **found: Any) -> Path:
    """The folder that the engine would leave; `found` are leaks and duplicates."""
    grid = Grid.open(config)
    out.mkdir(parents=True)
    (out / "cells").mkdir()
    (out / "benchmark.yaml").write_text(dump_yaml(config))
    results = []
    for cell in grid.cells():
        results.append(simulated(cell, grid.tasks[cell.task]))
        write_cell(out, cell, results[-1])
        assert cell_file(out, cell).is_file()
    (out / "features").mkdir()
    for encoder in config.encoders:
        if encoder.kind != "scratch" and encoder.name != "DINOv3":
            costs: dict[str, Any] = {"encoder": encoder.name, "volumes": len(grid.table), "parameters": 21_659_000}
            costs |= {"seconds": 30.0, "peak_bytes": 2.5 * 2**30, "gpu_seconds": 30.0, "gpu_peak_bytes": 3.0 * 2**30}
            (out / "features" / f"{slug(encoder.name)}.json").write_text(json.dumps(costs | {"energy_joules": 4500.0}))
    leaks = {encoder.name: "checked" for encoder in config.encoders if encoder.kind == "run"}
    summary = summarise(grid, results, leaks | found.get("leaks", {}), found.get("duplicates", {}))
    (out / "summary.json").write_text(json.dumps(summary.as_json(), allow_nan=False))
    return out


def simulated(cell: Cell, task: PreparedTask) -> dict[str, Any]:
    """A result in the form of the engine's: better with skill and labels, the same noise for the same cell."""
    result: dict[str, Any] = {**dataclasses.asdict(cell), "status": "ok", "message": "", "tuned": None, "chosen": {}}
    result |= {"metric": headline(task.labelled.kind), "value": None, "scores": {}, "predictions": None}
    result |= {"seconds": 2.0, "cpu_seconds": 2.0, "peak_bytes": 2.0**31, "gpu_seconds": 1.5}
    result["gpu_peak_bytes"] = 2.0**30
    if cell.encoder == "DINOv3":
        return result | {"status": "no_weights", "message": NO_WEIGHTS}
    if cell.encoder == "VICReg" and cell.method == "attention":
        return result | {"status": "failed", "message": FAILED}
    test = task.split.test
    truth, classes = task.labelled.target[test], task.labelled.classes
    name = f"{cell.task}{cell.encoder}{cell.method}{cell.budget}{cell.seed}"
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    skill = next(value for name, value in SKILL.items() if cell.encoder.startswith(name))
    signal = skill * np.log1p(cell.labels) / 2.5
    score = np.round(noisy(cell.kind, truth, len(classes), signal, np.random.default_rng(seed)), 6)
    measured = {name: float(value) for name, value in scores(task.labelled.kind, truth, score, classes).items()}
    result |= {"scores": {name: value if np.isfinite(value) else None for name, value in measured.items()}}
    result |= {"value": result["scores"][result["metric"]], "tuned": 20 if cell.encoder.startswith("DINO") else 5}
    return result | {
        "predictions": {
            "series_key": [task.labelled.members[row][0] for row in test],
            "patient_key": list(task.test_groups),
            "truth": truth.tolist(),
            "score": score.tolist(),
        }
    }


def noisy(kind: str, truth: np.ndarray, count: int, signal: float, generator: np.random.Generator) -> np.ndarray:
    """Predictions that follow the truth the better the larger `signal` is."""
    if kind == "regression":
        noise = generator.normal(0, truth.std() / (1 + signal), len(truth))
        return np.asarray(truth.mean() + (truth - truth.mean()) * min(1.0, signal) + noise)
    if kind == "multilabel":
        return 1 / (1 + np.exp(-(signal * (2 * truth - 1) + generator.normal(size=truth.shape))))
    if kind == "segmentation":
        overlap = np.clip(0.3 + 0.25 * signal + generator.normal(0, 0.08, (len(truth), count)), 0.05, 0.98)
        return np.hstack([overlap, 20 * (1 - overlap)])
    distance = np.abs(np.arange(count) - truth[:, None]) if kind == "ordinal" else np.arange(count) != truth[:, None]
    logits = -signal * distance + generator.normal(0, 0.8, (len(truth), count))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
