"""`embed`, `probe`, `finetune`, `benchmark`, `report`, `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lejepa_med.cli.progress import ProgressLine
from lejepa_med.config import BenchmarkConfig, FinetuneConfig, ProbeConfig, load_config
from lejepa_med.data.cache import Cache
from lejepa_med.errors import OutputExistsError
from lejepa_med.evaluation import benchmark as grid
from lejepa_med.evaluation import embedding, single
from lejepa_med.evaluation import report as pages
from lejepa_med.evaluation.encoders import lacks_weights
from lejepa_med.evaluation.estimate import estimate
from lejepa_med.weights import export as export_weights
from lejepa_med.weights import load_backbone


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """A table `series_key, patient_key, embedding`, and the private table of paths beside it."""
    backbone = load_backbone(options.model)
    items: Any = options.data
    if len(items) == 1 and (items[0] / "cache.json").exists():
        items = Cache.open(items[0])
    table = embedding.embed(backbone, items, modality=options.modality, progress=ProgressLine())
    embedding.write_embeddings(table, options.out, [] if isinstance(items, Cache) else items)
    return {"rows": table.num_rows, "dimensions": backbone.dim, "table": options.out}


def probe(options: argparse.Namespace) -> dict[str, Any]:
    config = load_config(ProbeConfig, options.config, options.overrides)
    _claim(options.out, "result.json")
    return _headlines(single.run_probe(config, options.out, ProgressLine()), options)


def finetune(options: argparse.Namespace) -> dict[str, Any]:
    config = load_config(FinetuneConfig, options.config, options.overrides)
    _claim(options.out, "result.json")
    return _headlines(single.run_finetune(config, options.out, ProgressLine()), options)


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """The grid, resumed where it was; `--dry-run` prints it."""
    config = load_config(BenchmarkConfig, options.config, options.overrides)
    if options.dry_run:
        cells = grid.plan(config)
        lines = [f"{c.task}  {c.encoder}  {c.method}  {c.budget} labels per class  seed {c.seed}" for c in cells]
        left = estimate(options.out, cells, {one.name for one in config.encoders if lacks_weights(one)})
        text = "\n".join([*lines, f"{len(cells)} cells", left.sentence(config.workers)])
        return {"text": text, "cells": len(cells), "todo": left.todo, "seconds": round(left.seconds, 1)}
    summary = grid.run_benchmark(config, options.out, ProgressLine())
    page = f"lejepa-med report {options.out}"
    return {"cells": summary.counts, "summary": options.out / "summary.json", "next": page}


def report(options: argparse.Namespace) -> dict[str, Any]:
    page = pages.write_report(options.benchmark, options.out or options.benchmark / "report", ProgressLine())
    return {"report": page}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Weights, config and card in a folder that `load_backbone` opens."""
    _claim(options.out, "model.safetensors")
    return {"export": export_weights(options.run, options.out, options.format, options.with_record)}


def _claim(out: Path, name: str) -> None:
    if (out / name).exists():
        raise OutputExistsError(f"{out}: already holds a {name}; choose another --out")


def _headlines(result: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The whole result for programs, and for people one line per method and budget."""
    file = options.out / "result.json"
    whole = {key: value for key, value in result.items() if key != "config"} | {"file": file}
    if options.json:
        return whole
    lines = [f"{row['method']:<17} {row['budget']!s:>5} {row['metric']} {_interval(row)}" for row in result["results"]]
    said = [f"task {result['task']}, {result['status']}", *lines, *result["messages"], f"file: {file}"]
    return {"text": "\n".join(said)}


def _interval(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return "not known"
    bounds = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{bounds}"
