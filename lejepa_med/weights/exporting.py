"""A run's weights as a folder for others: what it says of the training are settings and counts, never a path or a key.

OUT/model.safetensors        weights, architecture and spec, as `load_backbone` reads them
OUT/config.json              the same description, with settings, last metrics and how many patients were seen
OUT/README.md                model card, with the header of Hugging Face
OUT/model.onnx, model.pt2    only if asked for: the embedding as a program (see `programs`)
OUT/pretraining_series.csv   only if asked for: keys of everyone seen, for leak checks of `benchmark` and `select`
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from lejepa_med.data.pretraining_record import FILE as RECORD
from lejepa_med.data.pretraining_record import is_complete, read_record
from lejepa_med.errors import WeightsError
from lejepa_med.weights.files import find_weights, read_description
from lejepa_med.weights.model_card import model_card
from lejepa_med.weights.programs import write_program
from lejepa_med.weights.saved import load_backbone
from lejepa_med.whole_files import whole_file, write_atomically

Format = Literal["safetensors", "onnx", "torch"]
_SECTIONS = ("seed", "model", "projector", "views", "objective", "optim", "train", "inference", "init_adapt")
_DATA = ("kind", "plane", "modalities", "sequences", "holdout", "monitor_fraction", "balance", "patient_weight")
_CARRIED = ("settings", "metrics", "seen")


def export(run: Path, out: Path, form: Format = "safetensors", with_record: bool = False) -> Path:
    """A folder that `load_backbone` opens anywhere, made from a run, an earlier export or a weight file; returns `out`.

    `form` adds the embedding as a program: ONNX, or torch.export's. `with_record` adds the keys of the series and
    patients seen, which tell nobody's name, but let owners of the same index recognise them; by default only their
    number leaves.

    Raises:
        WeightsError: `run` holds no finished weights, or no record though asked for.
        UserError: a package that ONNX needs is not installed.
    """
    file = find_weights(run)
    description = read_description(file)
    folder = run if run.is_dir() else file.parent
    if with_record and not (folder / RECORD).is_file():
        raise WeightsError(f"weights {run}: no {RECORD} there; export without the record")
    described = description | _carried(folder) | _trained(folder) | _seen(folder)
    out.mkdir(parents=True, exist_ok=True)
    if form != "safetensors":
        write_program(load_backbone(file), out, form)
    if with_record:
        write_atomically(out / RECORD, (folder / RECORD).read_bytes())
    write_atomically(out / "config.json", (json.dumps(described, indent=1) + "\n").encode())
    write_atomically(out / "README.md", model_card(described, form).encode())
    with file.open("rb") as source, whole_file(out / "model.safetensors") as target:
        shutil.copyfileobj(source, target)
    return out


def _carried(folder: Path) -> dict[str, Any]:
    """What an earlier export says of the training."""
    if not (folder / "config.json").is_file():
        return {}
    try:
        told = json.loads((folder / "config.json").read_text())
        return {key: told[key] for key in _CARRIED if key in told}
    except (ValueError, TypeError):
        return {}


def _trained(folder: Path) -> dict[str, Any]:
    """Settings of a run without anything that names a file or a host, and the last line of its metrics."""
    if not (folder / "config.yaml").is_file():
        return {}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    settings = {key: config[key] for key in _SECTIONS if key in config}
    settings["data"] = {key: config["data"][key] for key in _DATA if key in config.get("data", {})}
    settings["started_from_weights"] = config.get("init_from") is not None or bool(config.get("init_download"))
    return {"settings": settings, "metrics": _last_numbers(folder / "metrics.jsonl")}


def _last_numbers(file: Path) -> dict[str, int | float]:
    lines = file.read_text().splitlines() if file.is_file() else []
    last = json.loads(lines[-1]) if lines else {}
    return {key: value for key, value in last.items() if isinstance(value, int | float)}


def _seen(folder: Path) -> dict[str, Any]:
    """How many were trained on by the run and by the weights it started from, and whether that is everyone."""
    if not (folder / RECORD).is_file():
        return {}
    record = read_record(folder)
    known = record[record["origin"] != "unknown"]
    counts = {origin: _counts(rows) for origin, rows in known.groupby("origin")}
    return {"seen": {**counts, "complete": bool(is_complete(record))}}


def _counts(rows: pd.DataFrame) -> Mapping[str, int]:
    return {"patients": int(rows["patient_key"].nunique()), "series": int(rows["series_key"].nunique())}
