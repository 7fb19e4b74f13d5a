"""One cell of a grid: computed, measured, and written as a file of its own.

    OUT/cells/<key>.json    settings, status, message, headline, all scores, test predictions, what was tuned, costs

A failure is told without values: the kind of error and where in the code it was raised, no text that may name a scan or
a folder. Errors that are meant for users are told in their own words, without paths.
"""

from __future__ import annotations

import dataclasses
import json
import re
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.cache import write_atomically
from lejepa_med.errors import UserError
from lejepa_med.evaluation.costs import Meter
from lejepa_med.evaluation.encoders import NoWeightsError
from lejepa_med.evaluation.grid import Cell, PreparedTask
from lejepa_med.evaluation.metrics import headline, scores
from lejepa_med.evaluation.predictions import EncoderPredictions

_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[\\/][^\s;,:'\"]+")


def cell_file(out: Path, cell: Cell) -> Path:
    """Where a cell's result lies."""
    return out / "cells" / f"{cell.key}.json"


def is_done(out: Path, cell: Cell) -> bool:
    """Whether its result is there; one that failed is computed again."""
    try:
        return bool(json.loads(cell_file(out, cell).read_text())["status"] == "ok")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_cell(out: Path, cell: Cell, result: dict[str, Any]) -> None:
    """The whole result, or nothing."""
    write_atomically(cell_file(out, cell), json.dumps(result, allow_nan=False).encode())


def run_cell(cell: Cell, task: PreparedTask, predictions: EncoderPredictions) -> dict[str, Any]:
    """The result of one cell: its settings, status, message, headline metric, all scores and the test predictions."""
    result: dict[str, Any] = {
        **dataclasses.asdict(cell),
        "status": "ok",
        "message": "",
        "metric": headline(task.labelled.kind),
    }
    result |= {"value": None, "scores": {}, "predictions": None, "tuned": None, "chosen": {}}
    meter = Meter(predictions.device)
    try:
        with meter:
            prediction, choice = predictions.predict(cell, task)
    except NoWeightsError as error:
        result |= {"status": "no_weights", "message": str(error)}
    except UserError as error:
        result |= {"status": "failed", "message": without_paths(str(error))}
    except Exception as error:  # a defect in one cell must not cost the others; where it happened is kept
        result |= {"status": "failed", "message": f"{type(error).__name__} in {_frames(error)[-1]}"}
        result |= {"traceback": "\n".join(_frames(error))}
    else:
        test = task.split.test
        truth = task.labelled.target[test]
        measured = scores(task.labelled.kind, truth, prediction, task.labelled.classes)
        found = {name: _plain(value) for name, value in measured.items()}
        result |= {"value": found[result["metric"]], "scores": found, "penalty": choice.chosen.get("penalty")}
        result |= {"tuned": choice.tuned, "chosen": choice.chosen}
        result["predictions"] = {
            "series_key": [task.labelled.members[row][0] for row in test],
            "patient_key": list(task.test_groups),
            "truth": _listed(truth),
            "score": _listed(_significant(prediction)),
        }
    return result | meter.numbers


def without_paths(text: str) -> str:
    """A sentence for users, whose results others may see: folders and files are not named."""
    return _PATH.sub("(a path)", text)


def _frames(error: BaseException) -> list[str]:
    """Where an error came through, from the outside in: module and line, no values."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{Path(frame.filename).stem}:{frame.lineno} {frame.name}" for frame in frames] or ["unknown"]


def _significant(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """To nine significant digits, which is what float32 holds: ranks of tiny probabilities must stay."""
    return np.array([float(f"{value:.9g}") for value in values.ravel().tolist()]).reshape(values.shape)


def _listed(values: NDArray[np.generic]) -> list[Any]:
    """As JSON takes it: null for what is not finite."""
    listed = values.astype(object)
    listed[~np.isfinite(values.astype(np.float64))] = None
    return list(listed.tolist())


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
