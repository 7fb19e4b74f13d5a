"""Whether a run may use a folder: it must be free, or hold the run that is resumed with the same config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lejepa_med.config import PretrainConfig, load_config
from lejepa_med.config.tasks import OnlineProbeConfig
from lejepa_med.errors import ConfigError, DataError, OutputExistsError

LOCK = ".lock"
"""Empty; held by the process that trains."""
_PROBED = {f"online_probe.{name}" for name in OnlineProbeConfig.model_fields}
MOVABLE = {
    "workers",
    "prefetch",
    "residency",
    "verify",
    "cache",
    "device",
    "checkpoint_every",
    "keep_checkpoints",
    "parallel",
    "on_nan",
    "max_skips",
    "max_loss_ratio",
    "tensorboard",
    "wandb",
    "mlflow",
}
"""Settings that may differ when a run is resumed: the batches and what becomes of them stay."""


def check_folder(out: Path, config: PretrainConfig, resume: bool) -> None:
    """The run directory must be free, or the one to resume."""
    file = out / "config.yaml"
    if resume:
        if not file.exists():
            raise DataError(f"run {out}: nothing to resume there")
        before, now = load_config(PretrainConfig, file), config
        changed = [
            key
            for key in _differences(before.model_dump(), now.model_dump())
            if key.split(".")[-1] not in MOVABLE and key not in _PROBED
        ]
        if changed:
            raise ConfigError(f"run {out}: cannot resume with another {', '.join(changed)}; start a new run instead")
        return
    if out.exists() and any(entry.name != LOCK for entry in out.iterdir()):
        raise OutputExistsError(f"run {out}: the folder is not empty; choose another --out, or --resume it")


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}")
    return found
