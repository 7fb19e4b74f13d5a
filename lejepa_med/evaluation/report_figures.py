"""The figures of a report: score over label budgets, and nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.config.evaluation import EncoderConfig
from lejepa_med.data.cache import Cache
from lejepa_med.evaluation.report_data import (
    METRICS,
    NOT_EVALUATED,
    PERCENT,
    Benchmark,
    Row,
    encoders_in,
    scale,
    strata_name,
)
from lejepa_med.evaluation.report_text import method_title
from lejepa_med.viz.canvas import Tile, tile_sheet
from lejepa_med.viz.slices import middle_slice
from lejepa_med.viz.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    SOFT,
    SPARE,
    VERMILION,
    new_figure,
    tidy,
)

PANELS = ("finetune", "linear")
NEIGHBOURS = 4
_KIND_COLOURS = {
    "run": BLUE, "random": GREY, "scratch": VERMILION, "pixels": GREEN, "shape": PURPLE, "timm2d": ORANGE,
}  # fmt: skip
_KIND_MARKERS = {"run": "o", "random": "s", "scratch": "D", "pixels": "^", "shape": "v", "timm2d": "P"}
CONTROLS = ("random", "scratch", "pixels", "shape")


def encoder_colours(encoders: tuple[EncoderConfig, ...]) -> dict[str, str]:
    """One colour per encoder, the same in every figure: by kind, then from the spare ones."""
    colours: dict[str, str] = {}
    spare = iter((SKY, *SPARE) * len(encoders))
    for encoder in encoders:
        colour = _KIND_COLOURS[encoder.kind]
        colours[encoder.name] = colour if colour not in colours.values() else next(spare)
    return colours


def budget_figure(benchmark: Benchmark, task: str) -> Figure:
    """Two panels, full fine-tuning and frozen linear: score over labels per class, one line and band per encoder."""
    figure = new_figure(9.0, 3.9)
    limits = _limits(benchmark, task)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, method in zip(panels, PANELS, strict=True):
        draw_budgets(axes, benchmark, task, method, limits)
    handles = {h.get_label(): h for axes in panels for h in axes.get_legend_handles_labels()[0]}
    names = [encoder.name for encoder in benchmark.config.encoders if encoder.name in handles]
    if names:
        figure.legend(
            [handles[name] for name in names], [_legend(benchmark, task, name) for name in names],
            loc="outside lower center", ncols=min(len(names), 4), frameon=False, fontsize=8.5,
        )  # fmt: skip
    panels[1].set_ylabel("")
    return figure


def budget_panels(benchmark: Benchmark, task: str) -> dict[str, Figure]:
    """The two panels as figures of their own, for pages that flow; the legend is the page's."""
    figures = {}
    for method in PANELS:
        figures[method] = new_figure(4.6, 3.5)
        draw_budgets(figures[method].subplots(), benchmark, task, method, _limits(benchmark, task))
    return figures


def draw_budgets(axes: Any, benchmark: Benchmark, task: str, method: str, limits: tuple[float, float]) -> None:
    """One panel."""
    described = benchmark.summary["tasks"][task]
    metric = described["metric"]
    label = METRICS[metric] + (" (%)" if metric in PERCENT else "")
    tidy(axes, method_title(method), f"labels per {strata_name(described['kind'])} (log scale)", label)
    colours = encoder_colours(benchmark.config.encoders)
    ticks: dict[float, str] = {}
    for encoder in reversed(benchmark.config.encoders):
        rows = _scored(benchmark, task, method, encoder.name)
        places = _places(benchmark, rows)
        ticks |= {place: _tick(row) for place, row in zip(places, rows, strict=True)}
        _line(axes, encoder, rows, places, colours[encoder.name])
        if not rows and encoder in encoders_in(benchmark, task, method):
            axes.plot([], [], color=colours[encoder.name], marker=_KIND_MARKERS[encoder.kind], label=encoder.name)
    if not ticks:
        axes.text(0.5, 0.5, "not part of this benchmark", transform=axes.transAxes, ha="center", color=SOFT, fontsize=9)
        axes.set(xticks=[], ylim=limits)
        return
    chance = 100 / len(described["classes"]) if described["classes"] else 0.0
    axes.axhline(chance, color=SOFT, linewidth=0.8, linestyle=(0, (1, 3)))
    name = "chance" if described["classes"] else "guessing\nthe mean"
    axes.annotate(
        name, (1.01, chance), xycoords=("axes fraction", "data"), va="center", fontsize=7.5, color=SOFT,
        annotation_clip=False,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(limits)
    axes.set_xlim(min(ticks) / 1.25, max(ticks) * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([ticks[place] for place in sorted(ticks)])


def _line(axes: Any, encoder: EncoderConfig, rows: list[Row], places: list[float], colour: str) -> None:
    if not rows:
        return
    factor = scale(rows[0]["metric"])
    values, low, high = (
        np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64) * factor
        for name in ("value", "low", "high")
    )
    own = encoder.kind == "run"
    axes.fill_between(places, low, high, color=colour, alpha=0.16 if own else 0.07, linewidth=0)
    style = "--" if encoder.kind in CONTROLS else "-"
    axes.plot(
        places, values, style, color=colour, marker=_KIND_MARKERS[encoder.kind], markersize=4.5 if own else 3.8,
        linewidth=2.0 if own else 1.2, label=encoder.name, markeredgewidth=0,
    )  # fmt: skip
    if len(places) == 1:
        axes.errorbar(places, values, [values - low, high - values], color=colour, capsize=3, linewidth=1)


def _scored(benchmark: Benchmark, task: str, method: str, encoder: str) -> list[Row]:
    found = [benchmark.row_of.get((task, method, encoder, budget)) for budget in benchmark.budgets(task, method)]
    return [row for row in found if row is not None and row["value"] is not None]


def _places(benchmark: Benchmark, rows: list[Row]) -> list[float]:
    """Labels per class; `all` at its mean, yet far enough from the budget before it for the ticks to be read."""
    places: list[float] = []
    for row in rows:
        place = benchmark.labels_per_class(row) if row["budget"] == "all" else float(row["budget"])
        places.append(max(place, places[-1] * 1.5) if row["budget"] == "all" and places else place)
    return places


def _tick(row: Row) -> str:
    return f"all\n({row['labels']})" if row["budget"] == "all" else str(row["budget"])


def _limits(benchmark: Benchmark, task: str) -> tuple[float, float]:
    """One vertical range for both panels, over means and bands."""
    rows = [row for key, row in benchmark.row_of.items() if key[0] == task and key[1] in PANELS]
    ends = [row[name] for row in rows for name in ("value", "low", "high") if row[name] is not None]
    described = benchmark.summary["tasks"][task]
    factor = scale(described["metric"])
    values = [end * factor for end in ends] + [100 / len(described["classes"]) if described["classes"] else 0.0]
    low, high = min(values), max(values)
    if not described["classes"]:
        low = max(low, -1.0)  # R² has no floor: a poor fit must not hide the others
    margin = 0.06 * max(high - low, 1e-6)
    return low - margin, high + margin


def _legend(benchmark: Benchmark, task: str, name: str) -> str:
    encoder = next(encoder for encoder in benchmark.config.encoders if encoder.name == name)
    statuses = {benchmark.status(task, method, encoder) for method in PANELS if method in benchmark.methods(task)}
    return name if "" in statuses or not statuses else f"{name} ({sorted(statuses - {NOT_EVALUATED})[0]})"


def nearest(features: NDArray[np.float32], patients: list[str], count: int = NEIGHBOURS) -> NDArray[np.int64]:
    """Rows of the `count` nearest rows of other patients, by cosine of standardised features: `[row, neighbour]`."""
    standard = (features - features.mean(0)) / np.where(features.std(0) > 1e-6, features.std(0), 1.0)
    unit = standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    owner = np.unique(np.asarray(patients), return_inverse=True)[1]
    cosine[owner[:, None] == owner[None]] = -np.inf
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :count]
    return order.astype(np.int64)


def query_rows(labels: list[Any], queries: int = 4) -> list[int]:
    """The first row of up to `queries` classes, or of evenly spaced ranks of a regression target: nobody's choice."""
    if all(isinstance(label, str) for label in labels):
        return [labels.index(name) for name in sorted(set(labels))][:queries]
    order = np.argsort(np.asarray(labels, dtype=np.float64), kind="stable")
    count = min(queries, len(labels))
    return [int(order[round(place)]) for place in np.linspace(0.1, 0.9, count) * (len(labels) - 1)]


def neighbour_sheet(
    cache: Cache, series: list[str], labels: list[Any], neighbours: NDArray[np.int64], queries: list[int]
) -> Image.Image:
    """One line per query: its middle slice, then its neighbours; a frame says whether the class agrees."""
    rows = []
    for query in queries:
        tiles = [Tile(_middle(cache, series[query]), _caption(labels[query]))]
        for row in neighbours[query].tolist():
            frame = None
            if isinstance(labels[query], str):
                frame = BLUE if labels[row] == labels[query] else ORANGE
            tiles.append(Tile(_middle(cache, series[row]), _caption(labels[row]), frame))
        rows.append(tiles)
    columns = ["query", *(f"neighbour {number + 1}" for number in range(neighbours.shape[1]))]
    return tile_sheet(rows, column_titles=columns)


def agreement(labels: list[Any], neighbours: NDArray[np.int64]) -> float:
    """Share of all neighbours with the class of their query; regression: mean absolute difference of the values."""
    pairs = [(labels[query], labels[row]) for query, rows in enumerate(neighbours.tolist()) for row in rows]
    if isinstance(labels[0], str):
        return float(np.mean([first == second for first, second in pairs]))
    return float(np.mean([abs(first - second) for first, second in pairs]))


def chance_agreement(labels: list[Any], patients: list[str]) -> float:
    """The same over all pairs of scans of different patients."""
    everyone = range(len(labels))
    others = [(one, two) for one in everyone for two in everyone if patients[one] != patients[two]]
    if isinstance(labels[0], str):
        return float(np.mean([labels[one] == labels[two] for one, two in others]))
    return float(np.mean([abs(labels[one] - labels[two]) for one, two in others]))


def _middle(cache: Cache, series_key: str) -> NDArray[np.uint8]:
    volume = cache.read(series_key)
    return middle_slice(np.asarray(volume.array), volume.spacing_mm)


def _caption(label: Any) -> str:
    return label[:16] if isinstance(label, str) else f"{label:.3g}"
