"""Metrics equal scikit-learn's, and weights mean repetition; intervals on cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from lejepa_med.evaluation import metrics
from lejepa_med.evaluation.bootstrap import Interval, draw_metric, mean_of, patient_draws

GENERATOR = np.random.default_rng(0)
ROWS = 60
TRUTH = GENERATOR.integers(0, 3, ROWS)
SCORE = GENERATOR.dirichlet(np.ones(3), ROWS).round(2)  # with ties
SCORE += 0.4 * np.eye(3)[TRUTH]
VALUES = GENERATOR.normal(size=ROWS)
GUESS = (VALUES + GENERATOR.normal(size=ROWS)).round(1)


def expected(name: str, rows: np.ndarray) -> float:
    truth, score, values, guess = TRUTH[rows], SCORE[rows], VALUES[rows], GUESS[rows]
    match name:
        case "balanced_accuracy":
            return sk.balanced_accuracy_score(truth, score.argmax(1))
        case "accuracy":
            return sk.accuracy_score(truth, score.argmax(1))
        case "f1":
            return sk.f1_score(truth, score.argmax(1), average="macro")
        case "auroc":
            return float(np.mean([sk.roc_auc_score(truth == c, score[:, c]) for c in range(3)]))
        case "auprc":
            return float(np.mean([sk.average_precision_score(truth == c, score[:, c]) for c in range(3)]))
        case "ece":
            return binned_gap(score.max(1), score.argmax(1) == truth)
        case "brier":
            return float(((score - np.eye(3)[truth]) ** 2).sum(1).mean())
        case "r2":
            return sk.r2_score(values, guess)
        case "mae":
            return sk.mean_absolute_error(values, guess)
        case "spearman":
            return float(stats.spearmanr(values, guess).statistic)
        case "pearson":
            return float(stats.pearsonr(values, guess).statistic)
    raise AssertionError(name)


def binned_gap(confidence: np.ndarray, right: np.ndarray) -> float:
    """ECE of 15 bins, as a loop over the bins that hold something."""
    number = np.ceil(confidence * 15)
    inside = [number == bin_ for bin_ in np.unique(np.clip(number, 1, 15))]
    inside[-1] |= number > 15
    return float(sum(rows.mean() * abs(right[rows].mean() - confidence[rows].mean()) for rows in inside))


@pytest.mark.parametrize("name", [*metrics.CLASSIFICATION, *metrics.REGRESSION])
def test_weights_are_repetitions(name: str) -> None:
    metric = {**metrics.CLASSIFICATION, **metrics.REGRESSION}[name]
    truth, score = (TRUTH, SCORE) if name in metrics.CLASSIFICATION else (VALUES, GUESS)
    drawn = np.random.default_rng(1).integers(0, ROWS, (4, ROWS))
    weights = np.stack([np.ones(ROWS), *(np.bincount(rows, minlength=ROWS) for rows in drawn)]).astype(float)
    found = metric(truth, score, weights)
    assert found == pytest.approx([expected(name, rows) for rows in (np.arange(ROWS), *drawn)])


def test_classes_that_are_absent_do_not_count() -> None:
    truth, score = np.array([0, 0, 1]), np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.9, 0.0]])
    found = metrics.scores("classification", truth, score)
    assert found["balanced_accuracy"] == pytest.approx(0.75)
    assert found["auroc"] == pytest.approx(1.0)


def test_all_rows_of_a_patient_are_drawn_together() -> None:
    groups = ["a", "a", "b", "c", "c", "c"]
    weights = np.concatenate(list(patient_draws(groups, 500, seed=0)))
    assert weights.shape == (500, 6)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()
    assert weights.mean(0) == pytest.approx(np.ones(6), abs=0.15)


def _difference(first: list[np.ndarray], second: list[np.ndarray], metric: metrics.Metric) -> Interval:
    """Of means over label seeds, on the same draws of pairs of rows."""
    groups = [f"p{row // 2}" for row in range(ROWS)]
    a, b = (mean_of([draw_metric(TRUTH, score, groups, metric) for score in scores]) for scores in (first, second))
    return (a - b).interval


def test_identical_predictions_differ_by_exactly_nothing() -> None:
    found = _difference([SCORE, SCORE[::-1]], [SCORE, SCORE[::-1]], metrics.balanced_accuracy)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_difference_is_signed_and_averages_seeds() -> None:
    perfect, worthless = np.eye(3)[TRUTH], np.eye(3)[(TRUTH + 1) % 3]
    found = _difference([perfect, worthless], [worthless], metrics.accuracy)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_standard_error_of_a_mean() -> None:
    """For the mean absolute error the interval is known: mean -+ 1.96 s / sqrt(n)."""
    error = np.random.default_rng(2).normal(5, 1, 200)
    found = draw_metric(np.zeros(200), error, [f"p{row}" for row in range(200)], metrics.mae).interval
    half = 1.96 * error.std() / np.sqrt(200)
    assert found.value == pytest.approx(error.mean())
    assert [found.low, found.high] == pytest.approx([error.mean() - half, error.mean() + half], abs=0.15 * half)


def test_intervals_cover_when_rows_of_a_patient_are_alike() -> None:
    """95 % intervals for an accuracy of .7 that is decided per patient; rows drawn singly would cover far less."""
    generator = np.random.default_rng(3)
    groups = [f"p{row // 4}" for row in range(320)]
    covered = 0
    for _ in range(200):
        right = np.repeat(generator.random(80) < 0.7, 4)
        score = np.stack([right, ~right], axis=1).astype(float)
        found = draw_metric(np.zeros(320, dtype=np.int64), score, groups, metrics.accuracy, draws=300).interval
        covered += found.low <= 0.7 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_r2_of_small_numbers() -> None:
    """Its threshold for a draw of equal values is relative: volumes in cubic metres are as good as in litres."""
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    guess, weights = np.array([1.1, 1.9, 3.2, 3.9]), np.array([[1.0, 1, 1, 1], [0, 4, 0, 0]])
    found = metrics.r2(truth * 1e-9, guess * 1e-9, weights)
    assert found[0] == pytest.approx(metrics.r2(truth, guess, weights)[0]) and np.isnan(found[1])
