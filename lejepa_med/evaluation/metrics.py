"""Scores under row weights, so that one formula gives the value (weights 1) and every bootstrap draw at once.

All take `truth` [row] or [row, label], `score` ([row, class] probabilities, or [row] values) and `weights` [draw, row],
and return [draw]. Classes without weight in a draw do not count; nothing to tell apart gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lejepa_med.evaluation.targets import Kind

Array = NDArray[np.float64]
Truth = NDArray[np.generic]
Metric = Callable[[Truth, Array, Array], Array]
_BINS = 15


def balanced_accuracy(truth: Truth, score: Array, weights: Array) -> Array:
    """Mean recall over the classes present."""
    return _balanced(truth, score, score.argmax(1), weights)


def accuracy(truth: Truth, score: Array, weights: Array) -> Array:
    """Share of right answers."""
    return _ratio(weights @ (score.argmax(1) == truth).astype(np.float64), weights.sum(1))


def macro_f1(truth: Truth, score: Array, weights: Array) -> Array:
    """Mean over classes of 2 TP / (2 TP + FP + FN), over classes that occur in truth or answers."""
    member, answer = one_hot(truth, score), one_hot(score.argmax(1), score)
    hits = weights @ (member * answer)
    return nanmean(_ratio(2 * hits, weights @ member + weights @ answer))


def macro_auroc(truth: Truth, score: Array, weights: Array) -> Array:
    """Mean area under the one-vs-rest curves of the classes present; ties count half."""
    member = one_hot(truth, score)
    return nanmean(np.stack([auroc(member[:, c], score[:, c], weights) for c in range(score.shape[1])], axis=1))


def macro_auprc(truth: Truth, score: Array, weights: Array) -> Array:
    """Mean average precision of the classes present, one against the rest."""
    member = one_hot(truth, score)
    return nanmean(np.stack([auprc(member[:, c], score[:, c], weights) for c in range(score.shape[1])], axis=1))


def top_label_ece(truth: Truth, score: Array, weights: Array) -> Array:
    """Expected calibration error: |accuracy - confidence| of the answers, averaged over 15 equal bins by rows
    (Guo et al. 2017, eq. 3)."""
    return ece(score.max(1), score.argmax(1) == truth, weights)


def brier(truth: Truth, score: Array, weights: Array) -> Array:
    """Mean squared distance of the probabilities from the truth, over classes; of two classes that of one."""
    distance = ((score - one_hot(truth, score)) ** 2).sum(1) / (2 if score.shape[1] == 2 else 1)
    return _ratio(weights @ distance, weights.sum(1))


def auroc(positive: Array, score: Array, weights: Array) -> Array:
    """Area under the ROC curve of one score for `positive` [row] of 0 and 1."""
    order = np.argsort(score, kind="stable")
    starts = _tie_starts(score[order])
    hit = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    miss = np.add.reduceat(weights[:, order] * (1 - positive[order]), starts, axis=1)
    below = np.cumsum(miss, axis=1) - miss / 2
    return _ratio((hit * below).sum(1), hit.sum(1) * miss.sum(1))


def auprc(positive: Array, score: Array, weights: Array) -> Array:
    """Average precision: the sum over thresholds of precision times the gain in recall."""
    order = np.argsort(-score, kind="stable")
    starts = _tie_starts(score[order])
    hit = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    every = np.add.reduceat(weights[:, order], starts, axis=1)
    hits, rows = np.cumsum(hit, axis=1), np.cumsum(every, axis=1)
    total = hits[:, -1]
    area = (hit * np.nan_to_num(_ratio(hits, rows))).sum(1)
    return _ratio(area, np.where(rows[:, -1] > total, total, 0.0))


def ece(confidence: Array, right: NDArray[np.bool_], weights: Array) -> Array:
    """Gap between confidence and being right, over bins (0, 1/15], (1/15, 2/15], ..."""
    bins = np.clip(np.ceil(confidence * _BINS) - 1, 0, _BINS - 1).astype(np.int64)
    gaps = (right - confidence)[:, None] * (bins[:, None] == np.arange(_BINS))
    return _ratio(np.abs(weights @ gaps).sum(1), weights.sum(1))


def r2(truth: Truth, score: Array, weights: Array) -> Array:
    """1 - squared error / squared deviation from the mean."""
    values = truth.astype(np.float64) - truth.astype(np.float64).mean()
    total = weights.sum(1)
    spread = weights @ values**2 - (weights @ values) ** 2 / total
    smallest = 1e-12 * (weights @ values**2)  # of a draw of equal values rounding alone is left
    return 1 - _ratio(weights @ (truth.astype(np.float64) - score) ** 2, np.where(spread > smallest, spread, 0))


def mae(truth: Truth, score: Array, weights: Array) -> Array:
    """Mean absolute error, in the unit of the labels."""
    return _ratio(weights @ np.abs(truth.astype(np.float64) - score), weights.sum(1))


def pearson(truth: Truth, score: Array, weights: Array) -> Array:
    """Linear correlation."""
    ones = np.ones_like(weights)
    return _correlation(truth.astype(np.float64) * ones, score * ones, weights)


def spearman(truth: Truth, score: Array, weights: Array) -> Array:
    """Correlation of ranks, equal values sharing their mean rank."""
    return _correlation(_ranks(truth.astype(np.float64), weights), _ranks(score, weights), weights)


def median_level(score: Array) -> NDArray[np.int64]:
    """The answer to a question of degree: the first level that is not exceeded with probability over 1/2."""
    return np.asarray((np.cumsum(score, axis=1)[:, :-1] < 0.5 - 1e-12).sum(1), dtype=np.int64)


def quadratic_kappa(truth: Truth, score: Array, weights: Array) -> Array:
    """Agreement beyond chance, disagreement weighted by its square: Cohen (1968)."""
    answer, member = one_hot(median_level(score), score), one_hot(truth, score)
    squares = (np.asarray(truth, dtype=np.float64) - median_level(score)) ** 2
    level = np.arange(score.shape[1])
    cost = (level[:, None] - level) ** 2
    expected = ((weights @ member) @ cost * (weights @ answer)).sum(1)
    return 1 - _ratio((weights @ squares) * weights.sum(1), expected)


def level_mae(truth: Truth, score: Array, weights: Array) -> Array:
    """Mean distance of the answer from the truth, in levels."""
    return mae(truth, median_level(score).astype(np.float64), weights)


def level_balanced_accuracy(truth: Truth, score: Array, weights: Array) -> Array:
    """Mean recall of the median level."""
    return _balanced(truth, score, median_level(score), weights)


def threshold_auroc(truth: Truth, score: Array, weights: Array) -> Array:
    """Mean over the thresholds k of the area under the curve of P(y > k)."""
    above = 1 - np.cumsum(score, axis=1)[:, :-1].round(12)
    positive = (np.asarray(truth)[:, None] > np.arange(score.shape[1] - 1)).astype(np.float64)
    return nanmean(np.stack([auroc(positive[:, k], above[:, k], weights) for k in range(above.shape[1])], axis=1))


def over_labels(metric: Callable[[Array, Array, Array], Array], truth: Truth, score: Array, weights: Array) -> Array:
    """Mean of a metric (of 0/1, probability, weights) over the labels that have both; unknown cells do not count."""
    values = []
    for number in range(score.shape[1]):
        column = np.asarray(truth[:, number], dtype=np.float64)
        known = np.flatnonzero(np.isfinite(column))
        if not len(known):
            continue
        positive, weight = column[known], weights[:, known]
        both = (weight @ positive > 0) & (weight @ (1 - positive) > 0)
        values.append(np.where(both, metric(positive, score[known, number], weight), np.nan))
    return nanmean(np.stack(values, axis=1)) if values else np.full(len(weights), np.nan)


def _two_classes(metric: Metric) -> Callable[[Array, Array, Array], Array]:
    return lambda positive, score, weights: metric(positive, np.stack([1 - score, score], axis=1), weights)


def mean_over_classes(first: int, last: int | None, truth: Truth, score: Array, weights: Array) -> Array:
    """Weighted mean over cases of the mean of some columns of `score`; undefined entries are left out."""
    case = nanmean(score[:, first:last])
    known = np.isfinite(case)
    return _ratio(weights[:, known] @ case[known], weights[:, known].sum(1))


def _dice(truth: Truth, score: Array, weights: Array) -> Array:
    """Overlap of case and answer, mean over classes, then cases."""
    return mean_over_classes(0, score.shape[1] // 2, truth, score, weights)


def _hd95(truth: Truth, score: Array, weights: Array) -> Array:
    """95th percentile of the distance between surfaces, mm."""
    return mean_over_classes(score.shape[1] // 2, None, truth, score, weights)


CLASSIFICATION: dict[str, Metric] = {
    "balanced_accuracy": balanced_accuracy,
    "accuracy": accuracy,
    "auroc": macro_auroc,
    "auprc": macro_auprc,
    "f1": macro_f1,
    "ece": top_label_ece,
    "brier": brier,
}
REGRESSION: dict[str, Metric] = {"r2": r2, "mae": mae, "spearman": spearman, "pearson": pearson}
MULTILABEL: dict[str, Metric] = {
    "auroc": partial(over_labels, auroc),
    "auprc": partial(over_labels, auprc),
    "balanced_accuracy": partial(over_labels, _two_classes(balanced_accuracy)),
    "ece": partial(over_labels, _two_classes(top_label_ece)),
    "brier": partial(over_labels, _two_classes(brier)),
}
ORDINAL: dict[str, Metric] = {
    "kappa": quadratic_kappa,
    "level_mae": level_mae,
    "balanced_accuracy": level_balanced_accuracy,
    "auroc": threshold_auroc,
}
SEGMENTATION: dict[str, Metric] = {"dice": _dice, "hd95": _hd95}
_OF: dict[Kind, dict[str, Metric]] = {
    "classification": CLASSIFICATION,
    "regression": REGRESSION,
    "multilabel": MULTILABEL,
    "ordinal": ORDINAL,
    "segmentation": SEGMENTATION,
}


def metrics_of(kind: Kind, classes: Sequence[str] = ()) -> dict[str, Metric]:
    """Name to metric; the first is the headline. Segmentation: also the Dice of each of `classes`."""
    if kind != "segmentation":
        return _OF[kind]
    per_class = {f"dice {name}": partial(mean_over_classes, n, n + 1) for n, name in enumerate(classes)}
    return {**SEGMENTATION, **per_class}


def headline(kind: Kind) -> str:
    """Balanced accuracy, R2, AUROC (multilabel), kappa (ordinal) or Dice."""
    return next(iter(_OF[kind]))


def limits(metric: str) -> tuple[float, float]:
    """The lowest and highest value that a metric can have."""
    low = {"r2": -np.inf, "spearman": -1.0, "pearson": -1.0, "kappa": -1.0}.get(metric, 0.0)
    high = {"mae": np.inf, "level_mae": np.inf, "hd95": np.inf, "brier": 2.0}.get(metric, 1.0)
    return low, high


def scores(kind: Kind, truth: Truth, score: Array, classes: Sequence[str] = ()) -> dict[str, float]:
    """Every metric of a kind on one prediction."""
    ones = np.ones((1, len(truth)))
    return {name: float(metric(truth, score, ones)[0]) for name, metric in metrics_of(kind, classes).items()}


def one_hot(classes: Truth, score: Array) -> Array:
    """`[row, class]`, as wide as `score`."""
    return np.asarray(np.asarray(classes)[:, None] == np.arange(score.shape[1]), dtype=np.float64)


def nanmean(values: Array) -> Array:
    """Mean over columns of what is finite; NaN where nothing is."""
    present = np.isfinite(values)
    return _ratio(np.where(present, values, 0).sum(1), present.sum(1).astype(np.float64))


def _balanced(truth: Truth, score: Array, answer: NDArray[np.int64], weights: Array) -> Array:
    member = one_hot(truth, score)
    correct = (answer == truth).astype(np.float64)
    return nanmean(_ratio(weights @ (member * correct[:, None]), weights @ member))


def _ratio(above: Array, below: Array) -> Array:
    return np.asarray(np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0))


def _correlation(first: Array, second: Array, weights: Array) -> Array:
    """Pearson's r of values `[draw, row]`."""
    total = weights.sum(1, keepdims=True)
    first = first - (weights * first).sum(1, keepdims=True) / total
    second = second - (weights * second).sum(1, keepdims=True) / total
    norm = np.sqrt((weights * first**2).sum(1) * (weights * second**2).sum(1))
    return _ratio((weights * first * second).sum(1), norm)


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
