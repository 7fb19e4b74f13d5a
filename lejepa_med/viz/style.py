"""The look of all charts: colours that colour-blind readers can tell apart, thin axes, figures at twice the size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"  # Okabe & Ito 2008
VERMILION, PURPLE, GREY = "#D55E00", "#CC79A7", "#7A7A7A"
INK, SOFT, FAINT = "#222222", "#666666", "#DDDDDD"
SPARE = ("#882255", "#44AA99", "#332288", "#999933", "#AA4499")  # Tol 2021, muted
_DPI = 200
_SETTINGS = {"svg.hashsalt": "lejepa-med", "svg.fonttype": "path"}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sides in inches of text at 9 points."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def tidy(axes: Any, title: str, x_label: str, y_label: str) -> None:
    """Title at the left, labels with units, two spines, a faint grid."""
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    axes.set_xlabel(x_label, fontsize=8.5, color=SOFT)
    axes.set_ylabel(y_label, fontsize=8.5, color=SOFT)
    axes.tick_params(labelsize=8, colors=SOFT, length=3, width=0.6)
    axes.grid(True, color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(SOFT)
        axes.spines[side].set_linewidth(0.6)


def save_figure(figure: Figure, stem: Path) -> None:
    """`stem.png` at twice the size and `stem.svg`, the same bytes for the same figure."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(f"{stem}.png", dpi=_DPI, metadata={"Software": None})
        figure.savefig(f"{stem}.svg", metadata={"Date": None, "Creator": None})


def svg(figure: Figure) -> bytes:
    """The figure as one SVG document without a date."""
    stream = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
