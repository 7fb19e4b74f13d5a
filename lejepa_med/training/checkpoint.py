"""Checkpoints that are whole or not there.

    RUN/checkpoints/step_500.pt          everything that the next step depends on
    RUN/checkpoints/step_500.pt.sha256   verified before anything is loaded
    RUN/checkpoints/latest               the name of the newest one
Written under a temporary name, flushed to disk, renamed; loaded with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from lejepa_med.errors import WeightsError

FORMAT_VERSION = 1


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Saves the state after `step` steps and removes all but the last `keep` checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step_{step}.pt"
    temporary = folder / f".{file.name}.partial"
    with temporary.open("wb") as stream:
        torch.save({"format": FORMAT_VERSION, "step": step, **state}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    _write(file.with_suffix(".pt.sha256"), _digest(temporary))
    temporary.replace(file)
    _write(folder / "latest", file.name)
    old = sorted(folder.glob("step_*.pt"), key=lambda path: int(path.stem.removeprefix("step_")))[:-keep]
    for path in old:
        path.unlink()
        path.with_suffix(".pt.sha256").unlink(missing_ok=True)
    return file


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The newest checkpoint. Raises WeightsError if there is none, or its bytes are not those that were written."""
    latest = folder / "latest"
    if not latest.exists():
        raise WeightsError(f"{folder}: no checkpoint to resume from; start without --resume")
    file = folder / latest.read_text().strip()
    digest = file.with_suffix(".pt.sha256")
    if not file.exists() or not digest.exists() or _digest(file) != digest.read_text().strip():
        raise WeightsError(f"checkpoint {file}: damaged; remove it and name an older one in {latest}")
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if state["format"] > FORMAT_VERSION:
        raise WeightsError(f"checkpoint {file}: format {state['format']} is newer than this lejepa-med; upgrade it")
    return state


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.partial")
    temporary.write_text(text)
    temporary.replace(file)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
