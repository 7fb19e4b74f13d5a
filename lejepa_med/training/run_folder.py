"""Whether a run may use a folder: it must be free, or hold the run that is resumed with the same config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lejepa_med.config import PretrainConfig, dump_yaml, load_config, read_yaml
from lejepa_med.config.tasks import OnlineProbeConfig
from lejepa_med.errors import ConfigError, DataError, OutputExistsError
from lejepa_med.spec import Spec

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
            raise ConfigError(
                f"run {out}: cannot resume with another {', '.join(changed)}; repeat its settings, or start a new run"
            )
        return
    if out.exists() and any(entry.name != LOCK for entry in out.iterdir()):
        raise OutputExistsError(f"run {out}: the folder is not empty; choose another --out, or --resume it")


def require_same_spec(out: Path, spec: Spec) -> None:
    """Weights of a resumed run must not be of two preparations.

    Raises:
        DataError: the scans there are now were prepared otherwise than those the run was started on.
    """
    file = out / "spec.yaml"
    if not file.exists():
        return
    before, now = read_yaml(file), yaml.safe_load(dump_yaml(spec))
    changed = [key for key in _differences(before, now) if _is_known(before, key)]
    if changed:
        raise DataError(
            f"run {out}: started on scans that were prepared otherwise ({', '.join(changed)} differ); "
            "give the cache it was started on, or start a new run"
        )


def _is_known(before: dict[str, Any], dotted: str) -> bool:
    """A key that an older version did not write says nothing."""
    value: Any = before
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}")
    return found
