"""What a benchmark consists of: tasks with their split, and the cells tasks x encoders x methods x budgets x seeds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.config.evaluation import BenchmarkConfig, EncoderConfig, EvaluationDataConfig, RunEncoder
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.cache import Cache, file_digest
from lejepa_med.data.pretraining_record import FILE, is_complete, read_record
from lejepa_med.errors import DataError
from lejepa_med.evaluation.encoders import methods_of, table_digest, weights_digest
from lejepa_med.evaluation.labels import LabelledSet, load_labels
from lejepa_med.evaluation.splits import (
    Budget,
    Split,
    fitting_budgets,
    labelled_subset,
    leaked_patients,
    split_patients,
)


@dataclass(frozen=True)
class Cell:
    """One number of the benchmark; `key` is a hash of all that it depends on, and names its file."""

    task: str
    kind: str
    encoder: str
    encoder_kind: str
    method: str
    budget: Budget
    labels: int
    seed: int
    key: str


@dataclass(frozen=True)
class PreparedTask:
    """Labels and split of a task; `rows` are the positions of its labelled rows in the benchmark's table."""

    config: TaskConfig
    labelled: LabelledSet
    split: Split
    rows: NDArray[np.int64]

    def subset(self, budget: Budget, seed: int) -> NDArray[np.int64]:
        """Rows of the labelled set that train."""
        return labelled_subset(self.split, self.labelled.groups, budget, seed)

    @property
    def test_groups(self) -> tuple[str, ...]:
        """The patient of every test row."""
        return tuple(self.labelled.groups[row] for row in self.split.test)


@dataclass(frozen=True)
class Grid:
    """A benchmark's data, ready to use. `table` holds every row with a label in some task."""

    config: BenchmarkConfig
    cache: Cache
    table: pd.DataFrame
    tasks: dict[str, PreparedTask]

    @classmethod
    def open(cls, config: BenchmarkConfig) -> Grid:
        """Raises DataError for a cache or labels that cannot be used."""
        cache = Cache.open(config.data.cache)
        selected = select_rows(cache, config.data)
        labelled = [load_labels(task, selected, config.data.index) for task in config.tasks]
        used = {key for item in labelled for key in item.table["series_key"]}
        table = selected[selected["series_key"].isin(used)].reset_index(drop=True)
        position = {key: row for row, key in enumerate(table["series_key"])}
        tasks = {}
        for task, item in zip(config.tasks, labelled, strict=True):
            rows = np.array([position[key] for key in item.table["series_key"]], dtype=np.int64)
            tasks[task.name] = PreparedTask(task, item, split_patients(item, config.holdout), rows)
        return cls(config, cache, table, tasks)

    @cached_property
    def fit(self) -> NDArray[np.bool_]:
        """Rows of `table` that no task tests on: principal components and BatchNorm statistics come from them."""
        fit = np.ones(len(self.table), dtype=bool)
        for task in self.tasks.values():
            fit[task.rows[task.split.test]] = False
        return fit

    def cells(self) -> list[Cell]:
        """The whole grid, encoder by encoder."""
        data = table_digest(self.table)
        return [cell for encoder in self.config.encoders for cell in self._cells_of(encoder, data)]

    def _cells_of(self, encoder: EncoderConfig, data: str) -> list[Cell]:
        weights = weights_digest(encoder)
        cells = []
        for name, task in self.tasks.items():
            for method in self.config.methods:
                if method not in methods_of(encoder):
                    continue
                recipe = self.config.finetune if method == "finetune" else self.config.probe
                identity = [encoder.model_dump(mode="json", exclude={"name", "path", "like", "weights"}), weights, data]
                identity += [file_digest(task.config.labels), task.config.model_dump(mode="json", exclude={"labels"})]
                identity += [method, recipe.model_dump(mode="json"), self.config.holdout.model_dump(mode="json")]
                for budget, seed in _draws(self.config, task, method):
                    text = json.dumps([*identity, encoder.name, budget, seed], sort_keys=True)
                    key = hashlib.sha256(text.encode()).hexdigest()[:16]
                    labels = len(task.subset(budget, seed))
                    kind = task.labelled.kind
                    cells.append(Cell(name, kind, encoder.name, encoder.kind, method, budget, labels, seed, key))
        return cells

    def leaks(self) -> dict[str, str]:
        """Per run: checked, transductive, or not checked (its pretraining series are not known).

        Raises:
            DataError: a run has seen test patients, and the config does not allow it.
        """
        found = {}
        for encoder in self.config.encoders:
            if not isinstance(encoder, RunEncoder):
                continue
            folder = encoder.path if encoder.path.is_dir() else encoder.path.parent
            if not (folder / FILE).exists():
                found[encoder.name] = f"not checked: no {FILE} beside the weights"
                continue
            record = read_record(folder)
            seen = self._leaked(record)
            if seen and not self.config.transductive:
                raise DataError(
                    f"encoder {encoder.name}: it was pretrained on {len(seen)} of the test patients; "
                    f"use the holdout of its pretraining, or set transductive=true to compare all the same"
                )
            found[encoder.name] = f"transductive: saw {len(seen)} test patients" if seen else "checked"
            if not seen and not is_complete(record):
                found[encoder.name] = (
                    "not checked: trained on data given in Python, or started from weights without a record"
                )
        return found

    def _leaked(self, pretraining: pd.DataFrame) -> set[str]:
        """Test patients that occur in a pretraining list, by patient or by series."""
        leaked: set[str] = set()
        for task in self.tasks.values():
            test = task.labelled.table.iloc[task.split.test]
            groups = np.asarray(task.test_groups)
            leaked |= leaked_patients(set(pretraining["patient_key"]) - {""}, groups.tolist())
            for column in ("patient_key", "series_key"):
                leaked |= set(groups[test[column].isin(set(pretraining[column]) - {""}).to_numpy()])
        return leaked


def plan(config: BenchmarkConfig) -> list[Cell]:
    """The cells that `run_benchmark` would compute; reads labels and the cache's manifest, no volume."""
    return Grid.open(config).cells()


def select_rows(cache: Cache, data: EvaluationDataConfig) -> pd.DataFrame:
    """Rows of the cache's manifest that an evaluation uses."""
    table = cache.select(data.modalities, data.sequences)
    if data.one_per_patient:
        table = table.sort_values(["patient_key", "series_key"]).drop_duplicates("patient_key")
    return table.reset_index(drop=True)


def _draws(config: BenchmarkConfig, task: PreparedTask, method: str) -> list[tuple[Budget, int]]:
    """Budgets and seeds of a method; all labels are one draw, which only fine-tuning repeats."""
    if method != "finetune":
        budgets = fitting_budgets(task.split, config.budgets)
        return [(b, seed) for b in budgets for seed in range(1 if b == "all" else config.seeds)]
    if config.finetune_tasks is not None and task.config.name not in config.finetune_tasks:
        return []
    budgets = fitting_budgets(task.split, config.finetune_budgets)
    return [(b, seed) for b in budgets[:-1] or budgets for seed in range(config.finetune_seeds)]
