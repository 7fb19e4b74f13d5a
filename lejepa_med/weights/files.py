"""Reads weight files as tensors and nothing else: no code in them runs, and none can grow far beyond its size on disk.

safetensors holds no code. A `.pth` goes through torch's reader with `weights_only`, which knows tensors and plain
containers; before that its ZIP directory is checked, since torch never compresses what it saves.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lejepa_med.config import ModelConfig
from lejepa_med.errors import WeightsError
from lejepa_med.spec import Spec

FORMAT_VERSION = 1
_CONTAINERS = ("model", "state_dict", "teacher")
_LARGEST_GROWTH = 100
"""Tensors may share storage or repeat it (`expand`), so that they can be larger than their file; not by this much."""


def find_weights(path: Path) -> Path:
    """The weight file of a run directory or export, or the file itself. Raises WeightsError if there is none."""
    for candidate in (path / "backbone.safetensors", path / "model.safetensors", path):
        if candidate.is_file():
            return candidate
    if (path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file():
        raise WeightsError(
            f"weights {path}: no backbone.safetensors there yet; finish the run with `pretrain --resume`"
        )
    raise WeightsError(f"weights {path}: no backbone.safetensors there; give a run, an export or a file")


def read_description(file: Path) -> dict[str, Any]:
    """Architecture (`model`, None: a user's own network), `spec` and `provenance` that were stored with the weights.

    Raises:
        WeightsError: missing, damaged, foreign, newer, or a description that is none.
    """
    _require_there(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"weights {file}: damaged or not a safetensors file ({type(error).__name__})") from None
    if "lejepa_med" not in metadata:
        raise WeightsError(f"weights {file}: not written by lejepa-med (no architecture inside)")
    try:
        description: dict[str, Any] = json.loads(metadata["lejepa_med"])
        version = int(description["format"])
        if version <= FORMAT_VERSION:
            if description["model"] is not None:
                ModelConfig.model_validate(description["model"])
            Spec.model_validate(description["spec"])
            dict(description["provenance"])
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError):
        raise WeightsError(
            f"weights {file}: the description inside is damaged, or of a newer lejepa-med; upgrade, or export again"
        ) from None
    if version > FORMAT_VERSION:
        raise WeightsError(f"weights {file}: format {version} is newer than this lejepa-med; upgrade it")
    return description


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a `.pth` (plain, or under `model`, `state_dict` or `teacher`), on the CPU.

    Raises:
        WeightsError: missing, damaged, not a dictionary of tensors, something that would have to be executed, or far
            larger in memory than on disk.
    """
    _require_there(file)
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        _require_uncompressed(file)
        with warnings.catch_warnings(action="ignore"):  # of torch's reader, about what is refused below
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"weights {file}: damaged, or not plain tensors: Python objects inside are not executed; save the "
            "network's state_dict() alone"
        ) from None
    except WeightsError:
        raise
    except Exception as error:  # torch's reader raises whatever a damaged file leads it to
        raise WeightsError(f"weights {file}: damaged, or not plain tensors ({type(error).__name__})") from None
    for key in _CONTAINERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    is_tensors = isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values())
    if not is_tensors or not all(isinstance(key, str) for key in loaded):
        raise WeightsError(f"weights {file}: expected a dictionary of tensors")
    _require_real(file, loaded)
    return dict(loaded)


def _require_there(file: Path) -> None:
    if not file.is_file():
        raise WeightsError(f"weights {file}: no such file; check the path (relative ones start in the current folder)")


def _require_uncompressed(file: Path) -> None:
    """A ZIP of torch stores its parts as they are; a compressed one can be a bomb, and is not torch's."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    size = file.stat().st_size
    stored = all(part.compress_type == zipfile.ZIP_STORED and part.file_size == part.compress_size for part in parts)
    if not stored or sum(part.file_size for part in parts) > size:
        raise WeightsError(f"weights {file}: a compressed archive, which torch does not write; nothing was unpacked")


def _require_real(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Each tensor a dense one of the CPU, and all of them together no illusion made from a few stored numbers."""
    if any(value.layout != torch.strided or value.device.type != "cpu" for value in tensors.values()):
        raise WeightsError(f"weights {file}: sparse tensors, or tensors without content; expected dense ones")
    size, claimed = file.stat().st_size, sum(value.numel() * value.element_size() for value in tensors.values())
    if claimed > _LARGEST_GROWTH * size:
        raise WeightsError(f"weights {file}: claims {claimed:,} bytes of weights in a file of {size:,}; refused")
