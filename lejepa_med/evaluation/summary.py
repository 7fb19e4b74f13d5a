"""Means over label seeds with patient intervals, and paired differences to the first pretrained run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lejepa_med.config.evaluation import slug
from lejepa_med.evaluation.bootstrap import Interval, bootstrap, paired_bootstrap
from lejepa_med.evaluation.grid import Grid, PreparedTask
from lejepa_med.evaluation.metrics import Array, metrics_of

Result = dict[str, Any]
_SECONDARY_DRAWS = 500  # intervals of metrics that are not the headline
_GROUP = ("task", "kind", "encoder", "encoder_kind", "method", "budget")


@dataclass(frozen=True)
class BenchmarkSummary:
    """What `summary.json` holds.

    `rows`: one per task, encoder, method and budget. `differences`: the first run minus another encoder. `tasks`:
    counts. `leaks`: per run what the leak check found. `counts`: cells by status. `messages`: of cells not ok.
    """

    rows: list[Result]
    differences: list[Result]
    tasks: dict[str, Result]
    leaks: dict[str, str]
    counts: dict[str, int]
    messages: list[str]
    features: dict[str, str]

    def as_json(self) -> Result:
        """Plain values, numbers that do not exist as null."""
        plain: Result = _finite(vars(self))
        return plain


def summarise(grid: Grid, results: Sequence[Result], leaks: dict[str, str]) -> BenchmarkSummary:
    """The summary of all cells of a grid."""
    by_row: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for result in results:
        by_row[tuple(result[name] for name in _GROUP)].append(result)
    rows = [_row(grid.tasks[key[0]], key, cells) for key, cells in by_row.items()]
    differences = []
    reference = next((encoder.name for encoder in grid.config.encoders if encoder.kind == "run"), None)
    for key, cells in by_row.items():
        mine = by_row.get((*key[:2], reference, "run", *key[4:]), [])
        if key[2] != reference:
            differences += _difference(grid.tasks[key[0]], key, mine, cells)
    counts: dict[str, int] = defaultdict(int)
    for result in results:
        counts[result["status"]] += 1
    return BenchmarkSummary(
        rows=rows,
        differences=differences,
        tasks={name: describe_task(task) for name, task in grid.tasks.items()},
        leaks=leaks,
        counts=dict(counts),
        messages=sorted({result["message"] for result in results if result["message"]}),
        features={encoder.name: f"features/{slug(encoder.name)}.npz" for encoder in grid.config.encoders},
    )


def describe_task(task: PreparedTask) -> Result:
    """Counts of a task: what it is, and how many rows and patients train and test."""
    labelled, split = task.labelled, task.split
    described: Result = {"kind": labelled.kind, "metric": next(iter(metrics_of(labelled.kind)))}
    described |= {"column": task.config.column, "classes": list(labelled.classes)}
    for side, rows in (("train", split.train), ("test", split.test)):
        described[f"{side}_rows"] = len(rows)
        described[f"{side}_patients"] = len({labelled.groups[row] for row in rows})
        if labelled.classes:
            described[f"{side}_labels"] = np.bincount(labelled.target[rows], minlength=len(labelled.classes)).tolist()
    return described | {"missing_labels": labelled.missing, "unmatched_ids": labelled.unmatched}


def _row(task: PreparedTask, key: tuple[Any, ...], cells: Sequence[Result]) -> Result:
    row: Result = dict(zip(_GROUP, key, strict=True))
    usable = [cell for cell in cells if cell["status"] == "ok"]
    row |= {
        "status": "ok" if usable else cells[0]["status"],
        "message": next((c["message"] for c in cells if c["message"]), ""),
    }
    row |= {"labels": cells[0]["labels"], "seeds": len(usable), "metric": cells[0]["metric"]}
    row |= {"value": None, "low": None, "high": None, "per_seed": [cell["value"] for cell in usable], "scores": {}}
    if usable:
        truth, groups = task.labelled.target[task.split.test], task.test_groups
        for name, metric in metrics_of(task.labelled.kind).items():
            draws = 2000 if name == row["metric"] else _SECONDARY_DRAWS
            interval = bootstrap(truth, _predictions(usable), groups, metric, draws)
            row["scores"][name] = vars(interval)
        row |= row["scores"][row["metric"]]
    return row


def _difference(
    task: PreparedTask, key: tuple[Any, ...], mine: Sequence[Result], other: Sequence[Result]
) -> list[Result]:
    """Reference minus other, over the seeds that both have."""
    mine, other = ([cell for cell in cells if cell["status"] == "ok"] for cells in (mine, other))
    shared = {cell["seed"] for cell in mine} & {cell["seed"] for cell in other}
    if not shared:
        return []
    first, second = (_predictions([cell for cell in cells if cell["seed"] in shared]) for cells in (mine, other))
    name, metric = next(iter(metrics_of(task.labelled.kind).items()))
    truth = task.labelled.target[task.split.test]
    interval: Interval = paired_bootstrap(truth, first, second, task.test_groups, metric)
    row = {"task": key[0], "kind": key[1], "method": key[4], "budget": key[5], "metric": name}
    row |= {"reference": mine[0]["encoder"], "other": key[2], "other_kind": key[3], "seeds": len(shared)}
    return [row | {"difference": interval.value, "low": interval.low, "high": interval.high}]


def _predictions(cells: Sequence[Result]) -> list[Array]:
    return [np.asarray(cell["predictions"]["score"], dtype=np.float64) for cell in cells]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
