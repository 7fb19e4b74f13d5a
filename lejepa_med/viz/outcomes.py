"""Right and wrong answers as pictures: a confusion matrix and a reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lejepa_med.viz.style import BLUE, INK, SOFT, new_figure, tidy

BINS = 15
_BLUES = LinearSegmentedColormap.from_list("blues", ["#FFFFFF", BLUE])
_NAME = 14
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Answers in `BINS` equal bins of confidence: how many, their mean confidence, and the share that is right."""

    count: Array
    confidence: Array
    right: Array

    @classmethod
    def of(cls, confidence: Array, right: NDArray[np.bool_]) -> Reliability:
        """Bins (0, 1/15], (1/15, 2/15], ...; NaN where a bin is empty."""
        place = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)
        count = np.bincount(place, minlength=BINS).astype(np.float64)
        sums = [np.bincount(place, values, BINS) for values in (confidence, right.astype(np.float64))]
        means = [np.divide(one, count, out=np.full(BINS, np.nan), where=count > 0) for one in sums]
        return cls(count, means[0], means[1])


def confusion_figure(counts: Array, classes: Sequence[str], title: str) -> Figure:
    """Rows are the truth, columns the answers; each row in per cent of its truth, its number of samples beside it."""
    total = counts.sum(1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    size = len(classes)
    figure = new_figure(1.9 + 0.48 * size, 1.5 + 0.42 * size)
    axes = figure.subplots()
    tidy(axes, title, "answer", "truth")
    axes.grid(False)
    axes.imshow(share, cmap=_BLUES, vmin=0, vmax=1, aspect="auto")
    names = [_short(name) for name in classes]
    axes.set_xticks(
        range(size), names, rotation=45 if max(map(len, names)) > (3 if size > 3 else 7) else 0, ha="center"
    )
    axes.set_yticks(range(size), [f"{name} ({number:g})" for name, number in zip(names, total[:, 0], strict=True)])
    axes.tick_params(length=0)
    for row, column in np.ndindex(size, size):
        colour = "white" if share[row, column] > 0.55 else INK
        text = f"{100 * share[row, column]:.0f}" if total[row, 0] else ""
        axes.text(column, row, text, ha="center", va="center", fontsize=8 if size <= 8 else 6.5, color=colour)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def reliability_figure(reliability: Reliability, title: str) -> Figure:
    """How often an answer is right over how sure it is, above a histogram of the answers."""
    figure = new_figure(3.4, 3.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    tidy(upper, title, "", "share of right answers")
    tidy(lower, "", "confidence of the answer", "answers")
    middle = (np.arange(BINS) + 0.5) / BINS
    upper.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=(0, (1, 3)))
    upper.bar(middle, np.nan_to_num(reliability.right), 0.9 / BINS, color=BLUE, alpha=0.3, linewidth=0)
    filled = reliability.count > 0
    upper.plot(
        reliability.confidence[filled], reliability.right[filled], "o-", color=BLUE, markersize=3.5, linewidth=1.2
    )
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    lower.bar(middle, reliability.count, 0.9 / BINS, color=SOFT, linewidth=0)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
