"""Runs ranked by their loss: against a probe result, or as a list with the spread over draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from lejepa_med.viz.style import BLUE, FAINT, GREY, INK, SOFT, new_figure, tidy

_COLUMNS, _MOST_PANELS, _MOST_NAMED = 3, 6, 40


@dataclass(frozen=True)
class RunPoint:
    """A run: its score, the spread of the score over draws (NaN: one draw), its lambda and its length."""

    name: str
    score: float
    spread: float
    lam: float
    steps: int


@dataclass(frozen=True)
class Panel:
    """One outcome: the lines above the chart, the name of the result with its unit, and `values` by run name."""

    title: str
    y_label: str
    values: dict[str, float]


def ranking_figure(points: Sequence[RunPoint], x_label: str) -> Figure:
    """One line per run, best on top: its score, and the standard deviation over draws as a bar."""
    shown = list(points)[:_MOST_NAMED]
    figure = new_figure(7.2, 1.3 + 0.24 * len(shown))
    axes = figure.subplots()
    for line, point in enumerate(shown):
        if math.isfinite(point.spread):
            axes.plot([point.score - point.spread, point.score + point.spread], [line, line], color=FAINT, linewidth=5)
        axes.plot(point.score, line, "o", color=BLUE, markersize=5)
    left_out = len(points) - len(shown)
    title = "Runs by their held-out loss, best first" + (f" ({left_out} more not drawn)" if left_out else "")
    tidy(axes, title, f"{x_label} (bar: standard deviation over draws)", "")
    axes.set_yticks(range(len(shown)), [f"{p.name}   λ {p.lam:.3g}, {p.steps:,} steps" for p in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    return figure


_LEGEND_INCHES = 1.3
"""Width of one entry."""


def agreement_figure(points: Sequence[RunPoint], panels: Sequence[Panel], x_label: str) -> Figure:
    """One panel per outcome (the first six): result over score, coloured by length, or by lambda at one length."""
    shown = list(panels)[:_MOST_PANELS]
    columns = min(_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    width = max(4.8, 3.9 * columns)
    figure = new_figure(width, 3.3 * lines + 0.4)
    grid = figure.subplots(lines, columns, squeeze=False)
    by_length = len({point.steps for point in points}) > 1
    classes = sorted({_class(point, by_length) for point in points})
    colours = _colours(classes)
    for axes, panel in zip(grid.flat, shown, strict=False):
        _draw(axes, panel, points, by_length, colours)
        axes.set_xlabel(x_label, fontsize=8.5, color=SOFT)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    handles = [grid.flat[0].plot([], [], "o", color=colours[c], label=_label(c, by_length))[0] for c in _few(classes)]
    fitting = min(len(handles), int(width / _LEGEND_INCHES))
    figure.legend(handles=handles, loc="outside lower center", ncols=fitting, frameon=False, fontsize=8)
    return figure


def _draw(axes: Any, panel: Panel, points: Sequence[RunPoint], by_length: bool, colours: dict[float, Any]) -> None:
    tidy(axes, panel.title, "", panel.y_label)
    there = [point for point in points if point.name in panel.values]
    for point in there:
        axes.plot(
            point.score, panel.values[point.name], "o", color=colours[_class(point, by_length)], markersize=6,
            markeredgecolor=INK, markeredgewidth=0.4,
        )  # fmt: skip
    scores = [point.score for point in there]
    if scores and max(scores) > 10 * min(scores) > 0:
        axes.set_xscale("log")


def _class(point: RunPoint, by_length: bool) -> float:
    return float(point.steps) if by_length else point.lam


def _colours(classes: Sequence[float]) -> dict[float, Any]:
    """Dark to light with rising length or lambda; one class needs no scale."""
    if len(classes) == 1:
        return {classes[0]: GREY}
    scale = colormaps["viridis"]
    return {value: scale(0.05 + 0.85 * number / (len(classes) - 1)) for number, value in enumerate(classes)}


def _few(classes: Sequence[float]) -> list[float]:
    """At most six of many classes, the ends among them."""
    if len(classes) <= 6:
        return list(classes)
    return [classes[round(place * (len(classes) - 1) / 5)] for place in range(6)]


def _label(value: float, by_length: bool) -> str:
    return f"{value:,.0f} steps" if by_length else f"λ {value:.3g}"
