"""Arms compared on the same draws of patients: means, differences, areas under the budget curve, adjusted p values.

The reference is compared with every other arm, and in particular with the strongest rival: of each task and method the
one with the largest area on the test patients. To choose on the test patients favours the rival, never the reference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lejepa_med.evaluation.arms import Arm
from lejepa_med.evaluation.bootstrap import DRAWS, Drawn, draw_metric, holm, mean_of, over_runs_and_labels
from lejepa_med.evaluation.grid import PreparedTask
from lejepa_med.evaluation.metrics import limits, metrics_of
from lejepa_med.evaluation.splits import Budget

Result = dict[str, Any]
SECONDARY_DRAWS = 500
"""For intervals of metrics that are not the headline."""
BIASED = ("ece",)
"""Metrics that are larger in nearly every draw than in the data: their draws are moved onto the value."""


@dataclass
class Point:
    """An arm at one budget of a task and method: its cells with a result, by encoder and label seed."""

    arm: Arm
    task: PreparedTask
    method: str
    budget: Budget
    cells: dict[str, dict[int, Result]] = field(default_factory=lambda: defaultdict(dict))
    _drawn: dict[tuple[str, str, int], Drawn] = field(default_factory=dict)

    @property
    def seeds(self) -> set[int]:
        """Label seeds that all encoders of the arm with any result have."""
        return set.intersection(*(set(cells) for cells in self.cells.values())) if self.cells else set()

    @property
    def labels(self) -> int:
        """Training labels."""
        return int(next(cell["labels"] for cells in self.cells.values() for cell in cells.values()))

    def score(self, metric: str, seeds: Iterable[int], members: Iterable[str] | None = None) -> Drawn:
        """Mean over label seeds and the arm's encoders (or some `members`), both of which are drawn as repeats."""
        names = self.cells if members is None else members
        cells = {name: {seed: self._cell(metric, name, seed) for seed in sorted(seeds)} for name in names}
        return over_runs_and_labels(cells, self.arm.name)

    def _cell(self, metric: str, name: str, seed: int) -> Drawn:
        key = (metric, name, seed)
        if key not in self._drawn:
            task, labelled = self.task, self.task.labelled
            functions = metrics_of(labelled.kind, labelled.classes)
            prediction = np.asarray(self.cells[name][seed]["predictions"]["score"], dtype=np.float64)
            draws = DRAWS if metric == next(iter(functions)) else SECONDARY_DRAWS
            truth = labelled.target[task.split.test]
            drawn = draw_metric(truth, prediction, task.test_groups, functions[metric], draws)
            self._drawn[key] = drawn.centred if metric in BIASED else drawn
        return self._drawn[key]


def differences(points: Sequence[Point], reference: Arm | None) -> list[Result]:
    """The reference minus every other arm at every budget, over the label seeds of both."""
    mine = {_place(point): point for point in points if point.arm == reference}
    rows = []
    for other in points:
        if other.arm == reference or _place(other) not in mine:
            continue
        first = mine[_place(other)]
        shared = first.seeds & other.seeds
        if shared:
            metric = _headline(first)
            found = first.score(metric, shared) - other.score(metric, shared)
            row = {**_described(first), "budget": first.budget, **_against(first, other), "seeds": len(shared)}
            rows.append(row | _difference(found))
    return adjusted(rows)


def best_rivals(points: Sequence[Point], rows: Sequence[Result]) -> list[Result]:
    """Of `differences`, those to the strongest rival of a task and method, adjusted as one family of the method.

    The strongest has the largest area over the budgets that all rivals have (one budget: the best score there).
    """
    curves: dict[tuple[str, str], dict[str, list[Point]]] = defaultdict(dict)
    for (task, method, name), curve in _curves(points).items():
        if curve[0].arm.is_rival:
            curves[task, method][name] = curve
    best = {key: _strongest(rivals) for key, rivals in curves.items()}
    chosen = [dict(row) for row in rows if best.get((row["task"], row["method"])) == row["other"]]
    return adjusted(chosen, lambda row: (row["method"],))


def _strongest(rivals: dict[str, list[Point]]) -> str:
    """The name of the curve with the largest area; where no budget is common to all, of the largest own mean."""
    common = set.intersection(*({point.budget for point in curve} for curve in rivals.values()))
    found = {}
    for name, curve in rivals.items():
        shared = [point for point in curve if point.budget in common] or curve
        area = _area(shared, [point.seeds for point in shared])
        values = [point.score(_headline(point), point.seeds).value for point in shared]
        found[name] = float(np.mean(values)) if area is None else area.value
    return max(found, key=lambda name: -np.inf if np.isnan(found[name]) else found[name])


def areas(points: Sequence[Point]) -> list[Result]:
    """Per task, method and arm the mean headline over the logarithm of the number of labels."""
    rows = []
    for curve in _curves(points).values():
        found = _area(curve, [point.seeds for point in curve])
        if found is not None:
            interval = found.interval.within(*limits(_headline(curve[0])))
            row = {**_described(curve[0]), "encoder": curve[0].arm.name, **vars(interval)}
            rows.append(row | {"budgets": [point.budget for point in curve], "repeats": len(_members(curve))})
    return rows


def area_differences(points: Sequence[Point], reference: Arm | None) -> list[Result]:
    """The reference's area minus every other arm's, over the budgets and label seeds of both.

    `p_adjusted` is Holm's over the tasks of a method, `p_adjusted_all` over all tasks and methods of the benchmark.
    """
    curves, rows = _curves(points), []
    for (task, method, name), curve in curves.items():
        mine = curves.get((task, method, reference.name), []) if reference is not None else []
        pairs = [(a, b) for a in mine for b in curve if a.budget == b.budget and a.seeds & b.seeds]
        if not pairs or reference is None or name == reference.name:
            continue
        shared = [a.seeds & b.seeds for a, b in pairs]
        first, second = _area([a for a, _ in pairs], shared), _area([b for _, b in pairs], shared)
        if first is not None and second is not None:
            row = {**_described(pairs[0][0]), **_against(*pairs[0]), "budgets": [a.budget for a, _ in pairs]}
            rows.append(row | _difference(first - second))
    return adjusted(adjusted(rows), lambda row: (row["other"],), "p_adjusted_all")


def adjusted(
    rows: list[Result],
    family: Callable[[Result], tuple[str, ...]] = lambda row: (row["method"], row["other"]),
    name: str = "p_adjusted",
) -> list[Result]:
    """Adds Holm's p over all rows of a family, under that name."""
    members: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for row in rows:
        members[family(row)].append(row)
    for together in members.values():
        for row, value in zip(together, holm([row["p"] for row in together]), strict=True):
            row[name] = value
    return rows


def _area(curve: Sequence[Point], seeds: Sequence[set[int]]) -> Drawn | None:
    """Trapezoids over log(labels), divided by its range; None for fewer than two budgets.

    Of repeats, those with a result at every budget: an area of other runs at other budgets would be of none.
    """
    x = np.log([point.labels for point in curve])
    members = _members(curve)
    if len(curve) < 2 or x[-1] <= x[0] or not members:
        return None
    step = np.diff(x) / (x[-1] - x[0])
    weights = (np.concatenate([[0.0], step]) + np.concatenate([step, [0.0]])) / 2
    parts = [point.score(_headline(point), chosen, members) for point, chosen in zip(curve, seeds, strict=True)]
    return mean_of(parts, weights.tolist())


def _members(curve: Sequence[Point]) -> list[str]:
    """Encoders of the arm that have a result at every budget."""
    return [name for name in curve[0].cells if all(name in point.cells for point in curve)]


def _curves(points: Sequence[Point]) -> dict[tuple[str, str, str], list[Point]]:
    """Points with a result by task, method and arm, from few labels to many."""
    found: dict[tuple[str, str, str], list[Point]] = defaultdict(list)
    for point in points:
        if point.seeds:
            found[point.task.config.name, point.method, point.arm.name].append(point)
    return {key: sorted(curve, key=lambda point: point.labels) for key, curve in found.items()}


def _place(point: Point) -> tuple[str, str, Budget]:
    return point.task.config.name, point.method, point.budget


def _headline(point: Point) -> str:
    return next(iter(metrics_of(point.task.labelled.kind)))


def _described(point: Point) -> Result:
    task = point.task
    return {"task": task.config.name, "kind": task.labelled.kind, "method": point.method, "metric": _headline(point)}


def _against(first: Point, other: Point) -> Result:
    return {"reference": first.arm.name, "other": other.arm.name, "other_kind": other.arm.kind}


def _difference(found: Drawn) -> Result:
    interval = found.interval
    return {"difference": interval.value, "low": interval.low, "high": interval.high, "p": found.p}
