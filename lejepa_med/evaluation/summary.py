"""Means over label seeds with their intervals, and paired differences to the arm of the first pretrained run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lejepa_med.config.evaluation import slug
from lejepa_med.evaluation.arms import Arm, arms_of, reference_of
from lejepa_med.evaluation.comparison import Point, Result, area_differences, areas, best_rivals, differences
from lejepa_med.evaluation.grid import Grid, PreparedTask
from lejepa_med.evaluation.metrics import headline, limits, metrics_of

_GROUP = ("task", "kind", "encoder", "encoder_kind", "method", "budget")


@dataclass(frozen=True)
class BenchmarkSummary:
    """What `summary.json` holds.

    `rows`: one per task, arm, method and budget; an arm is an encoder, or a group of repeats under the group's name,
    whose encoders have rows of their own in `repeats`. `differences`: the first run's arm minus another, of which
    `best_rival` are those to the strongest rival; `areas`, `area_differences`: under the budget curve. `tasks`: counts.
    `leaks`: per run what the leak check found; `duplicates`: like images on both sides. `counts`: cells by status.
    `messages`: of cells not ok.
    """

    rows: list[Result]
    repeats: list[Result]
    differences: list[Result]
    best_rival: list[Result]
    areas: list[Result]
    area_differences: list[Result]
    tasks: dict[str, Result]
    leaks: dict[str, str]
    duplicates: dict[str, Result]
    counts: dict[str, int]
    messages: list[str]
    features: dict[str, str]

    def as_json(self) -> Result:
        """Plain values, numbers that do not exist as null."""
        plain: Result = _finite(vars(self))
        return plain


def summarise(
    grid: Grid, results: Sequence[Result], leaks: dict[str, str], duplicates: dict[str, Result]
) -> BenchmarkSummary:
    """The summary of all cells of a grid."""
    arms, reference = arms_of(grid.config), reference_of(grid.config)
    lone = [Arm(name, arm.kind, (name,)) for arm in arms if len(arm.members) > 1 for name in arm.members]
    rows, points = _rows(grid, results, arms)
    compared = differences(points, reference)
    counts: dict[str, int] = defaultdict(int)
    for result in results:
        counts[result["status"]] += 1
    return BenchmarkSummary(
        rows=rows,
        repeats=_rows(grid, results, lone)[0],
        differences=compared,
        best_rival=best_rivals(points, compared),
        areas=areas(points),
        area_differences=area_differences(points, reference),
        tasks={name: describe_task(grid, task) for name, task in grid.tasks.items()},
        leaks=leaks,
        duplicates=duplicates,
        counts=dict(counts),
        messages=sorted({result["message"] for result in results if result["message"]}),
        features={name: f"features/{slug(encoder)}.npz" for name, encoder in _shown(arms)},
    )


def describe_task(grid: Grid, task: PreparedTask) -> Result:
    """Counts of a task: what it is, how many samples and patients train and test, and what does not apply to it."""
    labelled, split = task.labelled, task.split
    described: Result = {"kind": labelled.kind, "metric": headline(labelled.kind), "unit": labelled.unit}
    described |= {"column": ", ".join(task.config.label_columns), "classes": list(labelled.classes)}
    described |= {"series": len(labelled.table), "split": _split_name(task)}
    for side, rows in (("train", split.train), ("test", split.test)):
        described[f"{side}_rows"] = len(rows)
        described[f"{side}_patients"] = len({labelled.groups[row] for row in rows})
        if labelled.kind == "multilabel":
            described[f"{side}_labels"] = (labelled.target[rows] == 1).sum(0).tolist()
            described[f"{side}_known"] = np.isfinite(labelled.target[rows]).sum(0).tolist()
        elif labelled.kind in ("classification", "ordinal"):
            described[f"{side}_labels"] = np.bincount(labelled.target[rows], minlength=len(labelled.classes)).tolist()
    described["test_class_patients"] = _class_patients(task)
    described["set_aside"] = len(labelled) - len(split.train) - len(split.test)
    described["left_out"] = grid.left_out(task)
    return described | {"missing_labels": labelled.missing, "unmatched_ids": labelled.unmatched}


def _class_patients(task: PreparedTask) -> dict[str, int]:
    """Test patients of every class; of several labels, those who have it or those who lack it, whichever are fewer."""
    labelled, tested = task.labelled, task.split.test
    groups, target = np.asarray(labelled.groups)[tested], labelled.target[tested]
    if labelled.kind == "multilabel":
        return {
            name: min(len(set(groups[target[:, number] == value])) for value in (0, 1))
            for number, name in enumerate(labelled.classes)
        }
    if labelled.kind not in ("classification", "ordinal"):
        return {}
    return {name: len(set(groups[target == number])) for number, name in enumerate(labelled.classes)}


def _split_name(task: PreparedTask) -> str:
    if task.labelled.sides is not None:
        return "official"
    return "holdout" if task.labelled.sites is None else "holdout by site"


def _shown(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """Names under which features are looked up, and the encoder that made them: of an arm its first."""
    return [pair for arm in arms for pair in [(arm.name, arm.members[0]), *zip(arm.members, arm.members, strict=True)]]


def _rows(grid: Grid, results: Sequence[Result], arms: Sequence[Arm]) -> tuple[list[Result], list[Point]]:
    """A row and a point for each of these arms by task, method and budget, in the order of the cells."""
    arm_of = {name: arm for arm in arms for name in arm.members}
    together: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for result in results:
        if result["encoder"] in arm_of:
            arm = arm_of[result["encoder"]]
            key = (result["task"], result["kind"], arm.name, arm.kind, result["method"], result["budget"])
            together[key].append(result)
    points = []
    for key, cells in together.items():
        points.append(Point(arm_of[cells[0]["encoder"]], grid.tasks[key[0]], key[4], key[5]))
        for cell in cells:
            if cell["status"] == "ok":
                points[-1].cells[cell["encoder"]][cell["seed"]] = cell
    rows = [
        _row(dict(zip(_GROUP, key, strict=True)), point, cells)
        for (key, cells), point in zip(together.items(), points, strict=True)
    ]
    return rows, points


def _row(row: Result, point: Point, cells: Sequence[Result]) -> Result:
    usable = [cell for cell in cells if cell["status"] == "ok"]
    row["status"] = "ok" if usable else cells[0]["status"]
    row["message"] = next((cell["message"] for cell in cells if cell["message"]), "")
    row |= {"labels": cells[0]["labels"], "seeds": len(usable), "metric": cells[0]["metric"]}
    row |= {"members": list(point.arm.members), "repeats": len(point.cells)}
    row |= {"value": None, "low": None, "high": None, "per_seed": [cell["value"] for cell in usable], "scores": {}}
    labelled = point.task.labelled
    if point.seeds:
        for name in metrics_of(labelled.kind, labelled.classes):
            row["scores"][name] = vars(point.score(name, point.seeds).interval.within(*limits(name)))
        row |= row["scores"][row["metric"]]
    return row


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
