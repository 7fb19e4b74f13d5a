"""Scores under row weights, so that one formula gives the value (weights 1) and every bootstrap draw at once.

All take `truth` [row], `score` ([row, class] probabilities, or [row] values) and `weights` [draw, row], and return
[draw]. Classes without weight in a draw do not count; nothing to tell apart gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lejepa_med.evaluation.labels import Kind

Array = NDArray[np.float64]
Metric = Callable[[NDArray[np.generic], Array, Array], Array]


def balanced_accuracy(truth: NDArray[np.generic], score: Array, weights: Array) -> Array:
    """Mean recall over the classes present."""
    member = _one_hot(truth, score)
    correct = (score.argmax(1) == truth).astype(np.float64)
    return _nanmean(_ratio(weights @ (member * correct[:, None]), weights @ member))


def accuracy(truth: NDArray[np.generic], score: Array, weights: Array) -> Array:
    """Share of right answers."""
    return _ratio(weights @ (score.argmax(1) == truth).astype(np.float64), weights.sum(1))


def macro_f1(truth: NDArray[np.generic], score: Array, weights: Array) -> Array:
    """Mean over classes of 2 TP / (2 TP + FP + FN), over classes that occur in truth or answers."""
    member, answer = _one_hot(truth, score), _one_hot(score.argmax(1), score)
    hits = weights @ (member * answer)
    return _nanmean(_ratio(2 * hits, weights @ member + weights @ answer))


def macro_auroc(truth: NDArray[np.generic], score: Array, weights: Array) -> Array:
    """Mean area under the one-vs-rest curves of the classes present; ties count half."""
    member = _one_hot(truth, score)
    areas = []
    for column in range(score.shape[1]):
        order = np.argsort(score[:, column], kind="stable")
        starts = _tie_starts(score[order, column])
        positive = np.add.reduceat(weights[:, order] * member[order, column], starts, axis=1)
        negative = np.add.reduceat(weights[:, order] * (1 - member[order, column]), starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        areas.append(_ratio((positive * below).sum(1), positive.sum(1) * negative.sum(1)))
    return _nanmean(np.stack(areas, axis=1))


def r2(truth: NDArray[np.generic], score: Array, weights: Array) -> Array:
    """1 - squared error / squared deviation from the mean."""
    values = truth.astype(np.float64) - truth.astype(np.float64).mean()
    total = weights.sum(1)
    spread = weights @ values**2 - (weights @ values) ** 2 / total
    return 1 - _ratio(weights @ (truth.astype(np.float64) - score) ** 2, np.where(spread > 1e-12, spread, 0))


def mae(truth: NDArray[np.generic], score: Array, weights: Array) -> Array:
    """Mean absolute error, in the unit of the labels."""
    return _ratio(weights @ np.abs(truth.astype(np.float64) - score), weights.sum(1))


def spearman(truth: NDArray[np.generic], score: Array, weights: Array) -> Array:
    """Correlation of ranks, equal values sharing their mean rank."""
    first, second = _ranks(truth.astype(np.float64), weights), _ranks(score, weights)
    total = weights.sum(1, keepdims=True)
    first = first - (weights * first).sum(1, keepdims=True) / total
    second = second - (weights * second).sum(1, keepdims=True) / total
    norm = np.sqrt((weights * first**2).sum(1) * (weights * second**2).sum(1))
    return _ratio((weights * first * second).sum(1), norm)


CLASSIFICATION: dict[str, Metric] = {
    "balanced_accuracy": balanced_accuracy,
    "accuracy": accuracy,
    "auroc": macro_auroc,
    "f1": macro_f1,
}
REGRESSION: dict[str, Metric] = {"r2": r2, "mae": mae, "spearman": spearman}


def metrics_of(kind: Kind) -> dict[str, Metric]:
    """Name to metric; the first is the headline."""
    return CLASSIFICATION if kind == "classification" else REGRESSION


def headline(kind: Kind) -> str:
    """Balanced accuracy or R2."""
    return next(iter(metrics_of(kind)))


def scores(kind: Kind, truth: NDArray[np.generic], score: Array) -> dict[str, float]:
    """Every metric of a kind on one prediction."""
    ones = np.ones((1, len(truth)))
    return {name: float(metric(truth, score, ones)[0]) for name, metric in metrics_of(kind).items()}


def _one_hot(classes: NDArray[np.generic], score: Array) -> Array:
    return np.asarray(np.asarray(classes)[:, None] == np.arange(score.shape[1]), dtype=np.float64)


def _ratio(above: Array, below: Array) -> Array:
    return np.asarray(np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0))


def _nanmean(values: Array) -> Array:
    present = np.isfinite(values)
    return _ratio(np.where(present, values, 0).sum(1), present.sum(1).astype(np.float64))


def _tie_starts(ordered: Array) -> NDArray[np.int64]:
    changes = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    return np.asarray(np.flatnonzero(changes), dtype=np.int64)


def _ranks(values: Array, weights: Array) -> Array:
    """Mean rank of every row in the weighted sample, `[draw, row]`."""
    order = np.argsort(values, kind="stable")
    starts = _tie_starts(values[order])
    tied = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.cumsum(tied, axis=1) - (tied - 1) / 2
    spread = np.repeat(np.arange(len(starts)), np.diff([*starts, len(values)]))
    out = np.empty_like(weights)
    out[:, order] = ranks[:, spread]
    return out
