"""What a benchmark consists of: tasks with their split, and the cells tasks x encoders x methods x budgets x seeds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.config.evaluation import (
    NOT_IN_IDENTITY,
    BenchmarkConfig,
    EncoderConfig,
    EvaluationDataConfig,
    RunEncoder,
)
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.cache import Cache, file_digest
from lejepa_med.data.pretraining_record import FILE, is_complete, read_record
from lejepa_med.errors import DataError
from lejepa_med.evaluation.encoders import (
    FINETUNING,
    SEGMENTING,
    TRAINING,
    methods_of,
    recipe_of,
    table_digest,
    weights_digest,
)
from lejepa_med.evaluation.labels import LabelledSet, load_labels, with_masks
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
    """Labels and split of a task; `rows` are the positions of its series in the benchmark's table."""

    config: TaskConfig
    labelled: LabelledSet
    split: Split
    rows: NDArray[np.int64]

    def subset(self, budget: Budget, seed: int) -> NDArray[np.int64]:
        """Samples of the labelled set that train."""
        return labelled_subset(self.split, self.labelled.groups, budget, seed)

    @property
    def test_groups(self) -> tuple[str, ...]:
        """The patient of every test sample."""
        return tuple(self.labelled.groups[row] for row in self.split.test)

    def is_in(self, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of the labelled set's series, those of some samples."""
        return np.isin(self.labelled.sample_of, samples)

    def features(self, of_table: NDArray[np.floating]) -> NDArray[np.floating]:
        """`[sample, feature]` from those of the benchmark's table; a sample of several series has their mean."""
        return self.labelled.mean_over_members(of_table[self.rows])


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
        labelled = [
            with_masks(task, selected, cache)
            if task.kind == "segmentation"
            else load_labels(task, selected, config.data.index)
            for task in config.tasks
        ]
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
            fit[task.rows[task.is_in(task.split.test)]] = False
        return fit

    def cells(self) -> list[Cell]:
        """The whole grid, encoder by encoder."""
        data = table_digest(self.table)
        cells = [cell for encoder in self.config.encoders for cell in self._cells_of(encoder, data)]
        if not cells:
            left_out = [said for task in self.tasks.values() for said in self.left_out(task)]
            none = f"none of the encoders can be evaluated by {', '.join(self.config.methods)}"
            raise DataError(f"benchmark: no encoder can be evaluated on any task; {'; '.join(left_out) or none}")
        return cells

    def left_out(self, task: PreparedTask) -> list[str]:
        """What the config asks for and this task has no cells of, each with its reason."""
        said = []
        labelled, split = task.labelled, task.split
        wanted: dict[str, tuple[int, ...]] = {
            "frozen": self.config.budgets if set(self.config.methods) - set(TRAINING) else (),
            "trained": self.config.finetune_budgets if set(self.config.methods) & set(TRAINING) else (),
        }
        for name, budgets in wanted.items():
            lost = sorted(set(budgets) - set(fitting_budgets(split, budgets)))
            if lost:
                numbers = ", ".join(map(str, lost))
                said.append(
                    f"{name} budgets {numbers}: the training side has {len(split.train)} labels, "
                    f"{split.smallest_stratum} of the rarest kind"
                )
        for method in self.config.methods:
            if not applies(method, labelled):
                said.append(f"{method}: not for tasks of kind {labelled.kind} and unit {labelled.unit}")
        return said

    def _cells_of(self, encoder: EncoderConfig, data: str) -> list[Cell]:
        weights = weights_digest(encoder)
        cells = []
        for name, task in self.tasks.items():
            for method in self.config.methods:
                if method not in methods_of(encoder) or not applies(method, task.labelled):
                    continue
                identity = [encoder.model_dump(mode="json", exclude=NOT_IN_IDENTITY), weights, data]
                identity += [_labels_digest(task), task.config.model_dump(mode="json", exclude={"labels"})]
                identity += [method, recipe_of(self.config, method), self.config.holdout.model_dump(mode="json")]
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
            if not seen and len(record) and not self._knows(record):
                found[encoder.name] = (
                    "not checked: none of its scans or patients has a key of this cache, so it was made with another "
                    "index, where the same patients have other keys, or from another archive"
                )
            if not seen and not is_complete(record):
                found[encoder.name] = (
                    "not checked: trained on data given in Python, or started from weights without a record"
                )
        return found

    def _knows(self, pretraining: pd.DataFrame) -> bool:
        """Whether any key of a pretraining list is one of the cache, of whatever side."""
        return any(
            bool(self.cache.table[column].isin(set(pretraining[column]) - {""}).any())
            for column in ("patient_key", "series_key")
        )

    def _leaked(self, pretraining: pd.DataFrame) -> set[str]:
        """Test patients that occur in a pretraining list, by patient or by series."""
        leaked: set[str] = set()
        for task in self.tasks.values():
            tested = task.is_in(task.split.test)
            test = task.labelled.table[tested]
            groups = np.asarray(task.labelled.groups)[task.labelled.sample_of[tested]]
            leaked |= leaked_patients(set(pretraining["patient_key"]) - {""}, groups.tolist())
            for column in ("patient_key", "series_key"):
                leaked |= set(groups[test[column].isin(set(pretraining[column]) - {""}).to_numpy()])
        return leaked


def applies(method: str, labelled: LabelledSet) -> bool:
    """Whether a method can be used on a kind of task: segmentation has methods of its own."""
    return (labelled.kind == "segmentation") == (method in SEGMENTING)


def _labels_digest(task: PreparedTask) -> str:
    """Of the label file or, for segmentation, of the masks that the cache names."""
    if task.config.labels is not None:
        return file_digest(task.config.labels)
    masks = task.labelled.table["mask_entry"].tolist()
    return hashlib.sha256(json.dumps([masks, task.labelled.classes]).encode()).hexdigest()


def select_rows(cache: Cache, data: EvaluationDataConfig) -> pd.DataFrame:
    """Rows of the cache's manifest that an evaluation uses."""
    table = cache.select(data.modalities, data.sequences)
    if data.one_per_patient:
        table = table.sort_values(["patient_key", "series_key"]).drop_duplicates("patient_key")
    return table.reset_index(drop=True)


def _draws(config: BenchmarkConfig, task: PreparedTask, method: str) -> list[tuple[Budget, int]]:
    """Budgets and seeds of a method; all labels are one draw, which only fine-tuning repeats."""
    if method not in TRAINING:
        budgets = fitting_budgets(task.split, config.budgets)
        return [(b, seed) for b in budgets for seed in range(1 if b == "all" else config.seeds)]
    if method in FINETUNING and config.finetune_tasks is not None and task.config.name not in config.finetune_tasks:
        return []
    budgets = fitting_budgets(task.split, config.finetune_budgets)
    return [(b, seed) for b in budgets[:-1] or budgets for seed in range(config.finetune_seeds)]
