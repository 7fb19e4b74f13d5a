"""`config`: the full YAML of a kind."""

from __future__ import annotations

import argparse
from typing import Any

from lejepa_med import config as kinds
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
    """Every field with its default and meaning."""
    return {"text": kinds.describe(KINDS[options.kind]).rstrip()}
