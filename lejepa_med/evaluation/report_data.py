"""What a report reads: the finished benchmark folder and, if they are where its config says, the run and the cache."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.config.evaluation import BenchmarkConfig, EncoderConfig, Role, role_of, slug
from lejepa_med.config.loading import load_config
from lejepa_med.data.cache import Cache
from lejepa_med.data.pretraining_record import FILE, read_record
from lejepa_med.errors import DataError
from lejepa_med.evaluation.arms import Arm, arms_of, reference_of
from lejepa_med.evaluation.report_names import HEADLINE_METHODS, METHODS, Budget

Row = dict[str, Any]
NO_WEIGHTS = "no weights given"
NOT_EVALUATED = "not evaluated this way"
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
        """The arm that others are compared with: that of the first pretrained run."""
        arm = reference_of(self.config)
        return None if arm is None else arm.name

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Every line of the tables."""
        return tuple(arms_of(self.config))

    @cached_property
    def members(self) -> dict[str, tuple[str, ...]]:
        """The encoders of every arm: its repeats, or itself."""
        return {arm.name: arm.members for arm in self.arms}

    @cached_property
    def roles(self) -> dict[str, Role]:
        """The part of every arm; rivals are those that differences to the strongest one are taken among."""
        reference = self.reference
        return {
            arm.name: "ours" if arm.name == reference else "rival" if arm.is_rival else _lesser(role_of(encoder))
            for arm, encoder in zip(self.arms, self.encoders, strict=True)
        }

    @property
    def rivals(self) -> list[str]:
        """Names of the rivals, the reference not among them."""
        return [arm.name for arm in self.arms if arm.is_rival and arm.name != self.reference]

    def rival(self, task: str, method: str) -> str | None:
        """The strongest rival there; None without a result of one."""
        found = (row["other"] for row in self.against_rival(task, method))
        return next(found, None)

    def against_rival(self, task: str, method: str) -> list[Row]:
        """Differences to the strongest rival, by ascending budget."""
        budgets = self.budgets(task, method)
        found = [row for row in self.summary.get("best_rival", ()) if (row["task"], row["method"]) == (task, method)]
        return sorted(found, key=lambda row: budgets.index(row["budget"]))

    @cached_property
    def area_of(self) -> dict[tuple[str, str, str], Row]:
        """Areas under the budget curve by task, method and arm."""
        return {(row["task"], row["method"], row["encoder"]): row for row in self.summary.get("areas", ())}

    @cached_property
    def area_difference_of(self) -> dict[tuple[str, str, str], Row]:
        """The reference's area minus that of another arm, by task, method and that arm."""
        found = self.summary.get("area_differences", ())
        return {(row["task"], row["method"], row["other"]): row for row in found}

    def cells_of(self, arm: str, method: str, task: str | None = None, budget: Budget | None = None) -> list[Row]:
        """All cells of an arm and method, of one task and budget or of all."""
        return [
            cell
            for cell in self.cells
            if cell["encoder"] in self.members.get(arm, (arm,))
            and cell["method"] == method
            and task in (None, cell["task"])
            and budget in (None, cell["budget"])
        ]

    def feature_costs(self, arm: str) -> Iterator[Row]:
        """What the frozen features of an arm's encoders cost, as far as they were computed for this benchmark."""
        for name in self.members[arm]:
            file = self.folder / "features" / f"{slug(name)}.json"
            if file.is_file():
                yield json.loads(file.read_text())

    @cached_property
    def encoders(self) -> tuple[EncoderConfig, ...]:
        """One encoder for every arm, under the arm's name: the first of its repeats."""
        by_name = {encoder.name: encoder for encoder in self.config.encoders}
        return tuple(by_name[names[0]].model_copy(update={"name": arm}) for arm, names in self.members.items())

    @property
    def run(self) -> Path | None:
        """Folder of that run, if it is there."""
        reference = reference_of(self.config)
        first = reference.members[0] if reference is not None else None
        for encoder in self.config.encoders:
            if encoder.kind == "run" and first in (encoder.name, None):
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

    def headline_methods(self, task: str) -> list[str]:
        """Full fine-tuning and the frozen linear probe; of a task without them the first method."""
        methods = self.methods(task)
        return [method for method in methods if method in HEADLINE_METHODS] or methods[:1]

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
        """Mean number of training labels per class, level, quintile or value of a label; masks: volumes."""
        described = self.summary["tasks"][row["task"]]
        if described["kind"] == "segmentation":
            return float(row["labels"])
        if described["kind"] == "multilabel":
            return float(row["labels"]) / 2
        return float(row["labels"]) / (len(described["classes"]) or 5)

    def test_series(self, task: str) -> list[str]:
        """Keys of the test series (of a study or patient its first), sorted."""
        for cell in self.cells:
            if cell["task"] == task and cell["status"] == "ok":
                return sorted(cell["predictions"]["series_key"])
        return []

    def unknown_patients(self, task: str) -> int | None:
        """Test samples whose patient the index does not know; None where the config names no index that is there."""
        return None if self._nameless is None else len(self._nameless & set(self.test_series(task)))

    def unknown_elsewhere(self) -> int:
        """Scans of the cache that no task tests and whose patient the index does not know."""
        if self._nameless is None or self.cache is None:
            return 0
        tested = {key for task in self.summary["tasks"] for key in self.test_series(task)}
        return len((self._nameless & set(self.cache.table["series_key"])) - tested)

    @cached_property
    def _nameless(self) -> set[str] | None:
        """Series of the index without a patient."""
        table = self.config.data.index / "series.parquet" if self.config.data.index is not None else None
        if table is None or not table.is_file():
            return None
        found = pd.read_parquet(table, columns=["series_key", "flags"])
        flagged = found["flags"].fillna("").str.split(";").map(lambda flags: "patient_unknown" in flags)
        return set(found.loc[flagged, "series_key"])

    def test_patients(self, task: str) -> dict[str, str]:
        """Test series to patient, as the task groups them."""
        for cell in self.cells:
            found = cell["predictions"]
            if cell["task"] == task and cell["status"] == "ok" and "series_key" in found:
                return dict(zip(found["series_key"], found["patient_key"], strict=True))
        return {}

    def truths(self, task: str) -> dict[str, Any]:
        """The label of every test series: a class name, or a value; none of masks."""
        kind, classes = self.summary["tasks"][task]["kind"], self.summary["tasks"][task]["classes"]
        if kind == "segmentation":
            return {}
        found: dict[str, Any] = {}
        for cell in self.cells:
            predictions = cell["predictions"]
            if cell["task"] == task and cell["status"] == "ok" and "series_key" in predictions:
                for key, truth in zip(predictions["series_key"], predictions["truth"], strict=True):
                    if kind == "multilabel":
                        found[key] = ", ".join(c for c, value in zip(classes, truth, strict=True) if value) or "none"
                    else:
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


def _lesser(role: Role) -> Role:
    """`rival` is for those that the comparison takes for rivals."""
    return "control" if role == "rival" else role


def encoders_in(benchmark: Benchmark, task: str, method: str) -> Sequence[EncoderConfig]:
    """Encoders that stand in a table: those evaluated this way, and those that wait for weights."""
    return [encoder for encoder in benchmark.encoders if benchmark.status(task, method, encoder) != NOT_EVALUATED]
