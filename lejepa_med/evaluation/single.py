"""`probe` and `finetune`: one encoder on one task, as a benchmark of one row.

    OUT/result.json    task, encoder, counts, results by method and budget, config
beside the files of `benchmark`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lejepa_med.config.evaluation import BenchmarkConfig, FinetuneConfig, ProbeConfig, RunEncoder
from lejepa_med.data.cache import write_atomically
from lejepa_med.evaluation.benchmark import Progress, run_benchmark


def run_probe(config: ProbeConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Probes of one frozen model over label budgets, of masks a linear head and a small decoder; as `result.json`."""
    if config.task.kind == "segmentation":
        return _run(config, _segmenting(config, ("segment_linear", "segment_decoder")), out, progress)
    grid = _grid(config, methods=("linear", "knn"), budgets=config.budgets, seeds=config.seeds, probe=config.probe)
    return _run(config, grid, out, progress)


def run_finetune(config: FinetuneConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Full fine-tuning of one model over label budgets, of masks with a small decoder; what `result.json` holds."""
    if config.task.kind == "segmentation":
        return _run(config, _segmenting(config, ("segment_finetune",)), out, progress)
    grid = _grid(
        config,
        methods=("finetune",),
        finetune_budgets=config.budgets,
        finetune_seeds=config.seeds,
        finetune=config.finetune,
    )
    return _run(config, grid, out, progress)


def _segmenting(config: ProbeConfig | FinetuneConfig, methods: tuple[str, ...]) -> BenchmarkConfig:
    settings = {"finetune_budgets": config.budgets, "finetune_seeds": config.seeds}
    return _grid(config, methods=methods, segmentation=config.segmentation, **settings)


def _grid(config: ProbeConfig | FinetuneConfig, **settings: Any) -> BenchmarkConfig:
    shared = {"data": config.data, "tasks": (config.task,), "holdout": config.holdout, "device": config.device}
    encoder = RunEncoder(name="model", path=config.model)
    shared |= {"transductive": config.transductive, "allow_duplicates": config.allow_duplicates}
    return BenchmarkConfig(encoders=(encoder,), **shared, **settings)


def _run(
    config: ProbeConfig | FinetuneConfig, grid: BenchmarkConfig, out: Path, progress: Progress | None
) -> dict[str, Any]:
    summary = run_benchmark(grid, out, progress).as_json()
    result = {
        "task": config.task.name,
        "encoder": str(config.model),
        "counts": summary["tasks"][config.task.name],
        "leaks": summary["leaks"]["model"],
        "status": "ok" if set(summary["counts"]) == {"ok"} else "failed",
        "messages": summary["messages"],
        "results": summary["rows"],
        "config": config.model_dump(mode="json"),
    }
    write_atomically(out / "result.json", json.dumps(result, indent=1, allow_nan=False).encode())
    return result
