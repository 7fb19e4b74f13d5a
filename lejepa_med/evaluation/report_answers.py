"""What is answered wrongly, and how sure of it: confusion matrices and reliability diagrams.

Shown are the reference and its strongest rival (none: the reference alone) with the most labels, by the linear probe
where a task has it; counts of several cells (seeds, repeats) are averaged, calibration takes their answers together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.config.evaluation import slug
from lejepa_med.evaluation.metrics import median_level
from lejepa_med.evaluation.report_data import Benchmark, Row
from lejepa_med.evaluation.report_names import METHOD_PHRASES, Budget, labels_per, number
from lejepa_med.evaluation.report_page import captioned, heading, image, panels
from lejepa_med.evaluation.report_tables import largest_budget
from lejepa_med.viz.outcomes import Reliability, confusion_figure, reliability_figure
from lejepa_med.viz.style import save_figure, svg

Array = NDArray[np.float64]


def answers_section(benchmark: Benchmark, figures: Path) -> str:
    """Per task with classes, levels or several labels its matrices and diagrams; nothing for other tasks."""
    parts = []
    for task, described in benchmark.summary["tasks"].items():
        method = shown_method(benchmark, task)
        if method is None or described["kind"] not in ("classification", "ordinal", "multilabel"):
            continue
        budget = largest_budget(benchmark, task, method)
        drawn = []
        for arm in _shown_arms(benchmark, task, method):
            cells = [c for c in benchmark.cells_of(arm, method, task, budget) if c["status"] == "ok"]
            if cells:
                drawn += _pictures(benchmark, task, arm, cells, figures)
        if drawn:
            caption = _caption(described, method, budget)
            parts += [heading(task), captioned(panels(drawn, "22rem"), caption)]
    return "\n".join(parts)


def shown_method(benchmark: Benchmark, task: str) -> str | None:
    """The linear probe, or else the first method of the task that has a result."""
    methods = benchmark.methods(task)
    found = [m for m in methods if any(k[:2] == (task, m) and row["scores"] for k, row in benchmark.row_of.items())]
    return "linear" if "linear" in found else next(iter(found), None)


def confusion(cell: Row, kind: str, count: int) -> Array:
    """How often each class (row) was answered by each (column)."""
    score = np.asarray(cell["predictions"]["score"], dtype=np.float64)
    truth = np.asarray(cell["predictions"]["truth"], dtype=np.int64)
    answer = median_level(score) if kind == "ordinal" else score.argmax(1)
    found = np.zeros((count, count))
    np.add.at(found, (truth, answer), 1)
    return found


def reliability(cells: list[Row], kind: str) -> Reliability:
    """Of all answers of the cells: the top class, or of several labels each with its likelier value."""
    confidence, right = zip(*(_answers(cell, kind) for cell in cells), strict=True)
    return Reliability.of(np.concatenate(confidence), np.concatenate(right))


def _answers(cell: Row, kind: str) -> tuple[Array, NDArray[np.bool_]]:
    score = np.asarray(cell["predictions"]["score"], dtype=np.float64)
    truth = np.asarray(cell["predictions"]["truth"], dtype=np.float64)
    if kind == "multilabel":
        known = np.isfinite(truth)
        return np.maximum(score, 1 - score)[known], (score[known] > 0.5) == (truth[known] == 1)
    return score.max(1), score.argmax(1) == truth


def _shown_arms(benchmark: Benchmark, task: str, method: str) -> list[str]:
    arms = [benchmark.reference, benchmark.rival(task, method)]
    shown = [arm for arm in arms if arm is not None]
    return shown or [benchmark.encoders[0].name]


def _pictures(benchmark: Benchmark, task: str, arm: str, cells: list[Row], figures: Path) -> list[str]:
    described = benchmark.summary["tasks"][task]
    kind, classes = described["kind"], described["classes"]
    drawn: dict[str, Any] = {}
    if kind != "multilabel":
        counts = np.mean([confusion(cell, kind, len(classes)) for cell in cells], axis=0)
        drawn["confusion"] = confusion_figure(counts, classes, arm)
    if kind != "ordinal":
        budget = cells[0]["budget"]
        measured = benchmark.row_of[task, cells[0]["method"], arm, budget]["scores"]["ece"]["value"]
        title = arm if measured is None else f"{arm}, ECE {number(measured, 'ece')}"
        drawn["calibration"] = reliability_figure(reliability(cells, kind), title)
    images = []
    for name, figure in drawn.items():
        save_figure(figure, figures / f"{name}-{slug(task)}-{slug(arm)}")
        images.append(image(svg(figure), "svg+xml", f"{name} of {arm} on {task}", round(figure.get_figwidth() * 96)))
    return images


def _caption(described: Row, method: str, budget: Budget) -> str:
    kind = described["kind"]
    labels = "all labels" if budget == "all" else f"{budget} {labels_per(kind)}"
    said = f"On test samples, {METHOD_PHRASES[method]} on {labels}. "
    if kind != "multilabel":
        answer = "the median level" if kind == "ordinal" else "the class of highest probability"
        said += f"Matrix: per cent of the samples of a row (their number behind its name); the answer is {answer}. "
    if kind != "ordinal":
        pooled = ", over all known labels together" if kind == "multilabel" else ""
        said += (
            f"Diagram: 15 bins of the confidence of the answer{pooled}; on the diagonal an answer is right as often as "
            "it claims. ECE is that of the tables, a mean over label draws and repeats. Probabilities are of probes "
            "that weight classes equally: with rare classes that shift is in it."
        )
    return said.strip()
