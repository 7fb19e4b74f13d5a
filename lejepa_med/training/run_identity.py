"""Which run a checkpoint is of: it holds the run's config, spec and a digest of the series it is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lejepa_med.data.pretraining_record import FILE
from lejepa_med.whole_files import file_digest

_SECTIONS = ("seed", "model", "projector", "views", "objective", "optim")
"""Of the config: nothing in these may change when a run is resumed."""


def describe_run(run: Path) -> dict[str, str]:
    """The texts of config.yaml and spec.yaml, and the digest of the record of series; empty where there is none."""
    texts = {name: run / f"{name}.yaml" for name in ("config", "spec")}
    described = {name: file.read_text() if file.exists() else "" for name, file in texts.items()}
    return {**described, "series": file_digest(run / FILE) if (run / FILE).exists() else ""}


def other_run(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what the run of a checkpoint differs from this one; what either does not know is not compared."""
    before, here = (yaml.safe_load(described.get("config") or "{}") for described in (stored, now))
    found = [key for key in _SECTIONS if key in before and key in here and _differ(before[key], here[key])]
    both_known = bool(stored.get("series") and now.get("series"))
    return [*found, "the series"] if both_known and stored["series"] != now["series"] else found


def _differ(before: Any, now: Any) -> bool:
    """A key that only one of them has is a setting of another version."""
    if isinstance(before, dict) and isinstance(now, dict):
        return any(_differ(before[key], now[key]) for key in before.keys() & now.keys())
    return bool(before != now)
