"""Many short pretraining runs on one cache, with a frozen probe of each: what the two studies of the objective share.

`small_batches.py` varies the batch and lambda, `selection.py` lambda, learning rate, augmentation and length. Runs that
are finished are not run again, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import real_scans
import torch
from joblib import Parallel, delayed
from train_to_the_end import train_to_the_end

from lejepa_med.config import (
    BenchmarkConfig,
    IndexSettings,
    PrepareConfig,
    PretrainConfig,
    ProbeConfig,
    load_config,
    validate,
)
from lejepa_med.data import preparing
from lejepa_med.data.cache import Cache
from lejepa_med.data.index import archive
from lejepa_med.data.splits import is_held_out
from lejepa_med.data.synthetic import write_archive
from lejepa_med.evaluation.benchmark import run_benchmark
from lejepa_med.evaluation.embedding import embed
from lejepa_med.evaluation.single import run_probe
from lejepa_med.training.log import read_log
from lejepa_med.training.monitor import effective_rank
from lejepa_med.weights import load_backbone

CONFIGS = Path(__file__).parent / "configs"
HOLDOUT = {"test_fraction": 0.4, "seed": 0}
PHANTOM_SUBJECTS, PHANTOM_SEED = 480, 2
"""An archive of its own: the demo's (seed 1) stays unseen by every choice that these studies lead to."""


@dataclass(frozen=True)
class ScanSet:
    """A prepared cache, the recipe that is varied on it, and the labels of the probe."""

    name: str
    cache: Path
    index: Path
    config: Path
    task: dict[str, Any]


def open_set(name: str, data: Path | None, out: Path) -> ScanSet:
    """`phantoms` (written here) or `hippocampus` (from `data`); stages that are done are not repeated."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    index, cache = folder / "index", folder / "cache"
    if name == "phantoms":
        source = folder / "archive"
        if not (source / "labels.csv").exists():
            write_archive(source, subjects=PHANTOM_SUBJECTS, seed=PHANTOM_SEED)
        settings = {"rules": [{"glob": "*/anat/*", "modality": "mri"}], "min_slices": 8}
        prepared: dict[str, Any] = {"modalities": ["mri"], "preprocess": {"spacing_mm": (4.0, 4.0, 4.0)}}
        paths = [source]
        task = {"name": "ventricle grade", "labels": str(source / "labels.csv"), "column": "ventricle_grade"}
        task |= {"kind": "classification"}
    else:
        if data is None:
            raise SystemExit("hippocampus: give --data, or set LEJEPA_MED_REAL_DATA")
        chosen = real_scans.SETS["hippocampus"]
        source, labels = data / chosen["folder"], folder / "labels.csv"
        chosen["labels"](source, labels)
        patients = {"file": str(labels), "path_column": "path", "patient_column": chosen["person"]}
        settings, prepared = {"modality": "mri", "patients": patients}, {"preprocess": chosen["preprocess"]}
        paths = [source / chosen["scans"]]
        task = {"name": "volume", "labels": str(labels), "column": "volume_mm3", "group_column": chosen["person"]}
        task |= {"kind": "regression"}
    if not (cache / "manifest.parquet").exists():
        index.mkdir(exist_ok=True)
        (index / "salt").write_bytes(
            b"public scans need no secret!".hex().encode()
        )  # the same patients are held out everywhere
        (index / "salt").chmod(0o600)
        archive.index(paths, index, validate(IndexSettings, settings, "index"))
        preparing.prepare(index, cache, validate(PrepareConfig, prepared, "prepare"))
    return ScanSet(name, cache, index, CONFIGS / f"short_{name}.yaml", task)


def run_all(scans: ScanSet, runs: Mapping[str, Sequence[str]], out: Path, jobs: int) -> dict[str, dict[str, Any]]:
    """`runs` maps a name to overrides of the recipe; gives what `summary.json` of each run holds."""
    work = [delayed(_run)(scans, list(overrides), out / name) for name, overrides in runs.items()]
    done: list[dict[str, Any]] = Parallel(n_jobs=jobs, verbose=5)(work)
    return dict(zip(runs, done, strict=True))


def _run(scans: ScanSet, overrides: list[str], out: Path) -> dict[str, Any]:
    summary = out / "summary.json"
    if not summary.exists():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
        config = load_config(PretrainConfig, scans.config, [f"data.cache={scans.cache}", *overrides])
        train_to_the_end(config, out)
        summary.write_text(json.dumps(_summary(scans, config, out), indent=1))
    values: dict[str, Any] = json.loads(summary.read_text())
    return values


def _summary(scans: ScanSet, config: PretrainConfig, out: Path) -> dict[str, Any]:
    """Last loss parts, effective ranks over the test patients, and the probe of this run and of its random init."""
    lines = read_log(out, "metrics")[-max(1, config.train.steps // 10) :]
    cache = Cache.open(scans.cache)
    table = cache.table
    tested = is_held_out(table["patient_key"], HOLDOUT["test_fraction"], int(HOLDOUT["seed"]))
    rows = embed(load_backbone(out), cache).column("embedding").to_pylist()
    embeddings = torch.from_numpy(np.asarray(rows, dtype=np.float32))[torch.from_numpy(tested)]
    return {
        "prediction": float(np.mean([line["prediction"] for line in lines])),
        "sigreg": float(np.mean([line["sigreg"] for line in lines])),
        "feature_rank": effective_rank(embeddings),
        "features": embeddings.shape[1],
        **_probe(scans, out, config.seed),
    }


def _probe(scans: ScanSet, run: Path, seed: int) -> dict[str, float]:
    """Linear probe with all labels, balanced accuracy or R2: of the run (RUN/probe), its random init and pixels."""
    shared = {
        "data": {"cache": str(scans.cache), "index": str(scans.index)},
        "budgets": [],
        "seeds": 1,
        "holdout": HOLDOUT,
    }
    probe = validate(ProbeConfig, {**shared, "model": str(run), "task": scans.task}, "probe")
    rows = run_probe(probe, run / "probe")["results"]
    controls = {
        **shared,
        "tasks": [scans.task],
        "encoders": [
            {"kind": "random", "name": "random", "like": str(run), "seed": seed},
            {"kind": "pixels", "name": "pixels"},
        ],
        "methods": ["linear"],
    }
    rows += run_benchmark(validate(BenchmarkConfig, controls, "benchmark"), run / "controls").as_json()["rows"]
    linear = {row["encoder"]: row["value"] for row in rows if row["method"] == "linear"}
    return {"probe_run": linear["model"], "probe_random": linear["random"], "probe_pixels": linear["pixels"]}
