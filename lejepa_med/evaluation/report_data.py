"""What a report reads: the finished benchmark folder and, if they are where its config says, the run and the cache."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.config.evaluation import BenchmarkConfig, EncoderConfig
from lejepa_med.config.loading import load_config
from lejepa_med.data.cache import Cache
from lejepa_med.data.pretraining_record import FILE, read_record
from lejepa_med.errors import DataError

Row = dict[str, Any]
Budget = int | str
METHODS = {"finetune": "full fine-tuning", "linear": "frozen, linear probe", "knn": "frozen, k-NN"}
METRICS = {
    "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "auroc": "AUROC", "f1": "macro F1",
    "r2": "R²", "mae": "mean absolute error", "spearman": "Spearman correlation",
}  # fmt: skip
PERCENT = ("balanced_accuracy", "accuracy")
NO_WEIGHTS = "no weights given"
NOT_EVALUATED = "not evaluated this way"
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
_PATH = re.compile(r"(?<![\w.<])(?:[A-Za-z]:)?(?:[\\/][\w.\-+ ]*?(?=[\\/]))+[\\/]([\w.\-+]+)")


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark. `rows`, `differences`, `tasks`, `leaks` as in `summary.json`; `cells` in no order."""

    folder: Path
    config: BenchmarkConfig
    summary: dict[str, Any]
    cells: tuple[Row, ...]

    @classmethod
    def open(cls, folder: Path) -> Benchmark:
        """Raises DataError for a folder without a finished benchmark."""
        for name in ("benchmark.yaml", "summary.json"):
            if not (folder / name).is_file():
                raise DataError(
                    f"benchmark {folder}: no {name} there; finish it with `lejepa-med benchmark CONFIG --out {folder}`"
                )
        config = load_config(BenchmarkConfig, folder / "benchmark.yaml")
        cells = [json.loads(file.read_text()) for file in sorted((folder / "cells").glob("*.json"))]
        return cls(folder, config, json.loads((folder / "summary.json").read_text()), tuple(cells))

    @cached_property
    def row_of(self) -> dict[tuple[str, str, str, Budget], Row]:
        """Summary rows by task, method, encoder and budget."""
        return {(row["task"], row["method"], row["encoder"], row["budget"]): row for row in self.summary["rows"]}

    @cached_property
    def difference_of(self) -> dict[tuple[str, str, str, Budget], Row]:
        """Paired differences by task, method, other encoder and budget."""
        return {(row["task"], row["method"], row["other"], row["budget"]): row for row in self.summary["differences"]}

    @property
    def reference(self) -> str | None:
        """The encoder that others are compared with: the first pretrained run."""
        return next((encoder.name for encoder in self.config.encoders if encoder.kind == "run"), None)

    @property
    def run(self) -> Path | None:
        """Folder of that run, if it is there."""
        for encoder in self.config.encoders:
            if encoder.kind == "run":
                folder = encoder.path if encoder.path.is_dir() else encoder.path.parent
                return folder if folder.is_dir() else None
        return None

    @property
    def cache(self) -> Cache | None:
        """The prepared volumes, if they are there."""
        try:
            return Cache.open(self.config.data.cache)
        except DataError:
            return None

    def methods(self, task: str) -> list[str]:
        """Methods with a row for the task, fine-tuning first."""
        present = {row["method"] for row in self.summary["rows"] if row["task"] == task}
        return [method for method in METHODS if method in present]

    def budgets(self, task: str, method: str) -> list[Budget]:
        """Label budgets of a task and method, ascending, `all` last."""
        rows = [row for row in self.summary["rows"] if (row["task"], row["method"]) == (task, method)]
        return sorted({row["budget"] for row in rows}, key=lambda budget: (budget == "all", budget))

    def status(self, task: str, method: str, encoder: EncoderConfig) -> str:
        """Why an encoder has no number there; empty where it has some."""
        rows = [row for key, row in self.row_of.items() if key[:3] == (task, method, encoder.name)]
        if any(row["value"] is not None for row in rows):
            return ""
        if encoder.kind == "timm2d" and encoder.weights is None:
            return NO_WEIGHTS
        if any(row["status"] == "failed" for row in rows):
            return "failed"
        return NO_WEIGHTS if rows and rows[0]["status"] == "no_weights" else NOT_EVALUATED

    def labels_per_class(self, row: Row) -> float:
        """Mean number of training labels per class (regression: per quintile of the target)."""
        classes = self.summary["tasks"][row["task"]]["classes"]
        return float(row["labels"]) / (len(classes) or 5)

    def truths(self, task: str) -> dict[str, Any]:
        """The label of every test series: a class name, or a value."""
        classes = self.summary["tasks"][task]["classes"]
        found: dict[str, Any] = {}
        for cell in self.cells:
            predictions = cell["predictions"]
            if cell["task"] == task and cell["status"] == "ok" and "series_key" in predictions:
                for key, truth in zip(predictions["series_key"], predictions["truth"], strict=True):
                    found[key] = classes[int(truth)] if classes else float(truth)
                return found
        return found

    def features(self, encoder: str) -> tuple[NDArray[np.float32], list[str], list[str]] | None:
        """Frozen features of an encoder, with series and patient of every row."""
        name = self.summary["features"].get(encoder, "")
        file = self.folder / name
        if not name or not file.is_file():
            return None
        with np.load(file, allow_pickle=False) as stored:
            return stored["features"], stored["series_key"].tolist(), stored["patient_key"].tolist()

    def pretraining(self) -> tuple[int, int] | None:
        """Volumes and patients that the run was pretrained on, with those of the runs that it started from."""
        if self.run is None or not (self.run / FILE).is_file():
            return None
        record = read_record(self.run)
        record = record[record["origin"] != "unknown"]
        return len(record), int(record["patient_key"].nunique())


def without_paths(text: str) -> str:
    """A message in which every path of the machine is cut to its file name; the example `/path/to/` stays."""
    return _PATH.sub(lambda found: found[0] if found[0].startswith("/path/to/") else found[1], text)


def scale(metric: str) -> float:
    """What values are multiplied with for tables: accuracies are shown in per cent."""
    return 100.0 if metric in PERCENT else 1.0


def number(value: float, metric: str, sign: bool = False) -> str:
    """A value as tables show it: 61.2 (per cent) or 0.61."""
    digits = 1 if metric in PERCENT else 2
    rounded = round(value * scale(metric), digits) + 0.0  # no negative zero
    return f"{rounded:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def unit(metric: str) -> str:
    """`%`, or nothing."""
    return " %" if metric in PERCENT else ""


def budget_name(budget: Budget) -> str:
    return "all" if budget == "all" else str(budget)


def strata_name(kind: str) -> str:
    """What a budget counts: labels per class, or per quintile of the target."""
    return "class" if kind == "classification" else "quintile"


def encoders_in(benchmark: Benchmark, task: str, method: str) -> Sequence[EncoderConfig]:
    """Encoders that stand in a table: those evaluated this way, and those that wait for weights."""
    return [
        encoder for encoder in benchmark.config.encoders if benchmark.status(task, method, encoder) != NOT_EVALUATED
    ]
