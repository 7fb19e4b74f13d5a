"""What the loss of a run did, and what the representation did meanwhile.

SIGReg is drawn with its value for independent Gaussian samples (1.0525 for 17 knots over [0, 3]): a reference, no
bound. The loss falls smoothly while a backbone collapses, so the ranks stand beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lejepa_med.errors import DataError
from lejepa_med.training.log import read_log
from lejepa_med.viz.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SOFT, VERMILION, new_figure, tidy

GAUSSIAN_REFERENCE = 1.0525
"""E[SIGReg] of independent N(0, 1) samples, trapezoid with 17 knots over [0, 3]."""
PANELS = ("prediction", "sigreg", "total", "lr", "ranks", "grad_norm")
"""What every run has; one with an online probe has a panel `probe` too."""
_TITLES = {
    "prediction": "Prediction term",
    "sigreg": "SIGReg",
    "total": "Total loss",
    "lr": "Learning rate",
    "ranks": "Effective rank",
    "grad_norm": "Gradient norm",
    "probe": "Online probe, training patients",
}
_METRICS = {"balanced_accuracy": "balanced accuracy", "r2": "R²"}
_COLOURS = {"prediction": BLUE, "sigreg": GREEN, "total": INK, "lr": ORANGE, "grad_norm": VERMILION}
_LOGARITHMIC = ("prediction", "sigreg", "total", "grad_norm")
_UNITS = {"ranks": "dimensions in use"}
_SHOWN = 3000  # raw points; more only make the file larger
Array = NDArray[np.float64]
Lines = Sequence[dict[str, Any]]


def loss_curves(run: Path) -> Figure:
    """Panels over the steps of a run: the loss, its two parts, learning rate, effective ranks, gradient norm, and the
    online probe if there was one.

    Raises:
        DataError: the run has no metrics.jsonl.
    """
    record = _read(run)
    names = _panels(record)
    columns = -(-len(names) // 2)
    figure = new_figure(3.2 * columns, 5.2)
    grid = list(figure.subplots(2, columns).flat)
    for axes, name in zip(grid, names, strict=False):
        _draw(axes, name, record)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    return figure


def curve_panels(run: Path) -> dict[str, Figure]:
    """The same panels, each as a figure of its own, for pages that flow."""
    record = _read(run)
    figures = {}
    for name in _panels(record):
        figures[name] = new_figure(3.6, 2.6)
        _draw(figures[name].subplots(), name, record)
    return figures


def smoothed(values: Array, window: int) -> Array:
    """Centred running mean; at the ends over what there is."""
    kernel = np.ones(window)
    return np.asarray(np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same"))


def mixing_weight(metrics: Lines) -> float:
    """Lambda of `total = (1 - lambda) prediction + lambda sigreg`, from the record itself."""
    total, prediction, sigreg = (_column(metrics, name) for name in ("total", "prediction", "sigreg"))
    apart = np.abs(sigreg - prediction) > 1e-6
    return float(np.median((total - prediction)[apart] / (sigreg - prediction)[apart])) if apart.any() else 0.0


@dataclass(frozen=True)
class _Record:
    metrics: Lines
    diagnostics: Lines
    probes: Lines


def _read(run: Path) -> _Record:
    metrics = read_log(run, "metrics")
    if not metrics:
        raise DataError("run: its metrics.jsonl is missing or empty; curves need the record of the training")
    return _Record(metrics, read_log(run, "diagnostics"), read_log(run, "probes"))


def _panels(record: _Record) -> tuple[str, ...]:
    return (*PANELS, "probe") if record.probes else PANELS


def _column(lines: Lines, name: str) -> Array:
    return np.array([line.get(name, np.nan) for line in lines], dtype=np.float64)


def _draw(axes: Any, name: str, record: _Record) -> None:
    metrics = record.metrics
    tidy(axes, _TITLES[name], "step", _UNITS.get(name, ""))
    if name == "probe":
        _draw_probes(axes, record.probes)
        return
    if name == "ranks":
        _draw_ranks(axes, record.diagnostics)
    else:
        _draw_metric(axes, _column(metrics, "step"), _column(metrics, name), _COLOURS[name], smooth=name != "lr")
    if name == "lr":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axes.yaxis.get_offset_text().set_fontsize(8)
    values = _column(metrics, name) if name in _LOGARITHMIC else np.zeros(0)
    known = values[np.isfinite(values)]  # a step that was left out has none
    if len(known) and (known > 0).all():
        _log_scale(axes, known)
    if name == "sigreg":
        _reference(axes, GAUSSIAN_REFERENCE, "1.05, Gaussian samples")
    elif name == "total":
        lam = mixing_weight(metrics)
        _reference(axes, lam * GAUSSIAN_REFERENCE, f"λ \N{MULTIPLICATION SIGN} 1.05, λ = {lam:.3g}")


def _draw_metric(axes: Any, steps: Array, values: Array, colour: str, smooth: bool) -> None:
    every = max(1, len(steps) // _SHOWN)
    if not smooth or len(values) < 20:
        axes.plot(steps, values, color=colour, linewidth=1.4)
        return
    size = 4 if len(values) < 300 else 2
    axes.plot(steps[::every], values[::every], ".", color=colour, markersize=size, alpha=0.3, markeredgewidth=0)
    axes.plot(steps[::every], smoothed(values, max(3, len(values) // 40))[::every], color=colour, linewidth=1.4)


def _draw_ranks(axes: Any, diagnostics: Lines) -> None:
    if not diagnostics:
        axes.text(0.5, 0.5, "no diagnostics recorded", transform=axes.transAxes, ha="center", color=SOFT, fontsize=8)
        return
    marker = "o" if len(diagnostics) < 30 else ""
    for name, colour, label, style in (
        ("feature_rank", PURPLE, "backbone features", "-"),
        ("projection_rank", GREY, "projections", "--"),
    ):
        steps, values = _column(diagnostics, "step"), _column(diagnostics, name)
        axes.plot(steps, values, style, color=colour, marker=marker, markersize=3, linewidth=1.4, label=label)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7.5, frameon=False, labelcolor=SOFT)


def _draw_probes(axes: Any, probes: Lines) -> None:
    """A colour per task; linear and k-NN probe, which begin with those of the fresh weights."""
    tasks = list(dict.fromkeys(line["task"] for line in probes))
    colours = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, GREY)
    for task, colour in zip(tasks, itertools.cycle(colours), strict=False):
        lines = [line for line in probes if line["task"] == task]
        for name, label, style in (("linear", "linear", "-"), ("knn", "k-NN", "--")):
            label = label if len(tasks) == 1 else f"{task}, {label}"
            axes.plot(
                _column(lines, "step"), _column(lines, name), style, color=colour, marker="o", markersize=3,
                linewidth=1.4, label=label,
            )  # fmt: skip
    metrics = dict.fromkeys(str(line["metric"]) for line in probes)
    axes.set_ylabel(", ".join(_METRICS.get(name, name) for name in metrics))
    axes.legend(fontsize=7.5, frameon=False, labelcolor=SOFT)


def _reference(axes: Any, value: float, label: str) -> None:
    """A dashed line with its label: below it, or above where the axis is near."""
    axes.axhline(value, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)), label=label)
    height = axes.transAxes.inverted().transform(axes.transData.transform((0, value)))[1]
    above = height < 0.12
    axes.annotate(
        label, (0.02, value), xycoords=("axes fraction", "data"), xytext=(0, 3 if above else -3),
        textcoords="offset points", va="bottom" if above else "top", fontsize=7.5, color=SOFT,
    )  # fmt: skip


def _log_scale(axes: Any, values: Array) -> None:
    """Logarithmic where values span more than a factor of ten, with plain numbers at the ticks."""
    if values.max() > 10 * values.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
