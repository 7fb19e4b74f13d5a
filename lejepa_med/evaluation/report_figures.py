"""The figure of a task: score over label budgets, one panel per method, fine-tuning left and frozen linear right."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lejepa_med.evaluation.report_data import NOT_EVALUATED, Benchmark, Row, encoders_in
from lejepa_med.evaluation.report_names import (
    METRICS,
    PERCENT,
    chance_name,
    chance_value,
    labels_per,
    method_title,
    scale,
)
from lejepa_med.viz.lines import Look, looks
from lejepa_med.viz.style import SOFT, new_figure, tidy

_ROOM_FOR_ALL = 1.6
"""`all` stands at least this factor right of the budget before it, so that both ticks can be read."""


def looks_of(benchmark: Benchmark) -> dict[str, Look]:
    """One look per arm, the same in every figure."""
    names = [encoder.name for encoder in benchmark.encoders]
    return dict(zip(names, looks([benchmark.roles[name] for name in names]), strict=True))


def budget_figure(benchmark: Benchmark, task: str) -> Figure:
    """All panels of a task, two in a row, and one legend."""
    methods = benchmark.methods(task)
    columns = min(2, len(methods))
    lines = -(-len(methods) // 2)
    figure = new_figure(4.5 * columns, 3.3 * lines + 0.6)
    limits = _limits(benchmark, task)
    grid = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    for axes, method in zip(grid, methods, strict=False):
        draw_budgets(axes, benchmark, task, method, limits)
    for axes in grid[len(methods) :]:
        figure.delaxes(axes)
    for axes in grid[1 : len(methods) : 2]:
        axes.set_ylabel("")
    handles = {h.get_label(): h for axes in grid[: len(methods)] for h in axes.get_legend_handles_labels()[0]}
    names = [encoder.name for encoder in benchmark.encoders if encoder.name in handles]
    if names:
        figure.legend(
            [handles[name] for name in names], [name_in_legend(benchmark, task, name) for name in names],
            loc="outside lower center", ncols=min(len(names), 2 * columns), frameon=False, fontsize=8.5,
        )  # fmt: skip
    return figure


def budget_panels(benchmark: Benchmark, task: str) -> dict[str, Figure]:
    """The panels as figures of their own, for pages that flow; the legend is the page's."""
    figures = {}
    limits = _limits(benchmark, task)
    for method in benchmark.methods(task):
        figures[method] = new_figure(4.6, 3.5)
        draw_budgets(figures[method].subplots(), benchmark, task, method, limits)
    return figures


def draw_budgets(axes: Any, benchmark: Benchmark, task: str, method: str, limits: tuple[float, float]) -> None:
    """One panel."""
    described = benchmark.summary["tasks"][task]
    metric = described["metric"]
    label = METRICS[metric] + (" (%)" if metric in PERCENT else "")
    tidy(axes, method_title(method), "", label)
    styles = looks_of(benchmark)
    ticks: dict[float, str] = {}
    every: set[int] = set()
    for encoder in reversed(benchmark.encoders):
        rows = _scored(benchmark, task, method, encoder.name)
        places = _places(benchmark, rows)
        ticks |= {place: str(row["budget"]) for place, row in zip(places, rows, strict=True)}
        every |= {row["labels"] for row in rows if row["budget"] == "all"}
        look = styles[encoder.name]
        _line(axes, encoder.name, look, rows, places)
        if not rows and encoder in encoders_in(benchmark, task, method):
            axes.plot([], [], look.dashes, color=look.colour, marker=look.marker, label=encoder.name, markersize=4.5)
    axes.set_ylim(limits)
    of_all = "".join(f"; all: {count}" for count in sorted(every))
    axes.set_xlabel(f"{labels_per(described['kind'])} (log scale{of_all})")
    if not ticks:
        axes.text(0.5, 0.5, "no result", transform=axes.transAxes, ha="center", color=SOFT, fontsize=9)
        axes.set(xticks=[])
        return
    _draw_chance(axes, described)
    axes.set_xscale("log")
    axes.set_xlim(min(ticks) / 1.35, max(ticks) * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([ticks[place] for place in sorted(ticks)])


def name_in_legend(benchmark: Benchmark, task: str, name: str) -> str:
    """The arm's name, and why it has no line, where it has none."""
    encoder = next(encoder for encoder in benchmark.encoders if encoder.name == name)
    statuses = {benchmark.status(task, method, encoder) for method in benchmark.methods(task)} - {NOT_EVALUATED}
    return name if "" in statuses or not statuses else f"{name} ({min(statuses)})"


def _draw_chance(axes: Any, described: Row) -> None:
    name, chance = chance_name(described["kind"]), chance_value(described)
    if name:
        axes.axhline(chance, color=SOFT, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.annotate(
            name, (1.01, chance), xycoords=("axes fraction", "data"), va="center", fontsize=7.5, color=SOFT,
            annotation_clip=False,
        )  # fmt: skip


def _line(axes: Any, name: str, look: Look, rows: list[Row], places: list[float]) -> None:
    if not rows:
        return
    factor = scale(rows[0]["metric"])
    values, low, high = (
        np.array([np.nan if row[end] is None else row[end] for row in rows], dtype=np.float64) * factor
        for end in ("value", "low", "high")
    )
    above = {"ours": 4, "rival": 3}.get(look.role, 2)
    axes.fill_between(places, low, high, color=look.colour, alpha=look.band, linewidth=0, zorder=above - 0.5)
    axes.plot(
        places, values, look.dashes, color=look.colour, marker=look.marker, markersize=5.5 if above > 2 else 4,
        linewidth=look.width, label=name, markeredgewidth=0, zorder=above,
    )  # fmt: skip
    if len(places) == 1 and np.isfinite(low).all():
        axes.errorbar(places, values, [values - low, high - values], color=look.colour, capsize=3, linewidth=1)


def _scored(benchmark: Benchmark, task: str, method: str, encoder: str) -> list[Row]:
    found = [benchmark.row_of.get((task, method, encoder, budget)) for budget in benchmark.budgets(task, method)]
    return [row for row in found if row is not None and row["value"] is not None]


def _places(benchmark: Benchmark, rows: list[Row]) -> list[float]:
    """Labels per class; `all` at its mean, yet far enough from the budget before it."""
    places: list[float] = []
    for row in rows:
        place = benchmark.labels_per_class(row) if row["budget"] == "all" else float(row["budget"])
        if row["budget"] == "all" and places:
            place = max(place, places[-1] * _ROOM_FOR_ALL)
        places.append(place)
    return places


def _limits(benchmark: Benchmark, task: str) -> tuple[float, float]:
    """One vertical range for all panels, over means and bands."""
    rows = [row for key, row in benchmark.row_of.items() if key[0] == task]
    ends = [row[name] for row in rows for name in ("value", "low", "high") if row[name] is not None]
    described = benchmark.summary["tasks"][task]
    factor = scale(described["metric"])
    values = [end * factor for end in ends] + ([chance_value(described)] if chance_name(described["kind"]) else [])
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if not described["classes"]:
        low = max(low, -1.0)  # R² has no floor: a poor fit must not hide the others
    margin = max(0.06 * (high - low), 1e-3)
    return low - margin, high + margin
