"""`config`: the full YAML of a kind, or a starting point of it."""

from __future__ import annotations

import argparse
from typing import Any

from lejepa_med import config as kinds
from lejepa_med.config.starting_points import read_starting_point, starting_points
from lejepa_med.spec import Frozen

KINDS: dict[str, type[Frozen]] = {
    "index": kinds.IndexSettings,
    "prepare": kinds.PrepareConfig,
    "plan": kinds.PlanConfig,
    "pretrain": kinds.PretrainConfig,
    "probe": kinds.ProbeConfig,
    "finetune": kinds.FinetuneConfig,
    "benchmark": kinds.BenchmarkConfig,
    "select": kinds.SelectConfig,
}


def config(options: argparse.Namespace) -> dict[str, Any]:
    """Every field with its default and meaning; with a name, the YAML of that starting point."""
    if options.name is not None:
        return {"text": read_starting_point(options.kind, options.name).rstrip()}
    lines = [kinds.describe(KINDS[options.kind]).rstrip()]
    if names := ", ".join(starting_points(options.kind)):
        lines.append(f"# Starting points, by `lejepa-med config {options.kind} NAME`: {names}")
    return {"text": "\n".join(lines)}
