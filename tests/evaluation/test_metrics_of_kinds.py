"""Metrics of several labels, of ordered levels and of masks against scikit-learn's, also weighted; ties and gaps."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from lejepa_med.evaluation import metrics

GENERATOR = np.random.default_rng(0)
ROWS = 80
LABELS = (GENERATOR.random((ROWS, 3)) < (0.2, 0.5, 0.7)).astype(float)
GUESS = (0.3 * LABELS + 0.7 * GENERATOR.random((ROWS, 3))).round(1)  # with ties
LEVELS = GENERATOR.integers(0, 4, ROWS)
CHANCES = GENERATOR.dirichlet(np.ones(4), ROWS)
WEIGHTS = np.stack([np.ones(ROWS), *GENERATOR.integers(0, 4, (5, ROWS))]).astype(float)


def unknown() -> np.ndarray:
    truth = LABELS.copy()
    truth[GENERATOR.random((ROWS, 3)) < 0.2] = np.nan
    return truth


def binary(name: str, truth: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    answer = score > 0.5
    match name:
        case "auroc":
            return float(sk.roc_auc_score(truth, score, sample_weight=weight))
        case "auprc":
            return float(sk.average_precision_score(truth, score, sample_weight=weight))
        case "balanced_accuracy":
            return float(sk.balanced_accuracy_score(truth, answer, sample_weight=weight))
        case "brier":
            return float(sk.brier_score_loss(truth, score, sample_weight=weight))
        case "ece":
            sure = np.maximum(score, 1 - score)
            bins = np.clip(np.ceil(sure * 15), 1, 15)
            gap = weight * ((answer == truth) - sure)
            return float(sum(abs(gap[bins == number].sum()) for number in np.unique(bins)) / weight.sum())
    raise AssertionError(name)


@pytest.mark.parametrize("name", list(metrics.MULTILABEL))
def test_labels_are_scored_where_they_are_known(name: str) -> None:
    truth = unknown()
    known = np.isfinite(truth)
    expected = [
        np.mean([binary(name, truth[k, c], GUESS[k, c], weight[k]) for c, k in enumerate(known.T)])
        for weight in WEIGHTS
    ]
    assert metrics.MULTILABEL[name](truth, GUESS, WEIGHTS) == pytest.approx(expected)


def test_a_label_of_one_value_does_not_count() -> None:
    truth = np.column_stack([LABELS[:, :2], np.zeros(ROWS)])
    found = metrics.scores("multilabel", truth, GUESS)
    alone = metrics.scores("multilabel", LABELS[:, :2], GUESS[:, :2])
    assert found == pytest.approx(alone)
    assert np.isnan(metrics.scores("multilabel", np.ones((4, 2)), np.ones((4, 2)))["auroc"])


def test_levels_against_scikit_learn() -> None:
    answer = np.array([next(k for k in range(4) if row[: k + 1].sum() >= 0.5) for row in CHANCES])
    assert np.array_equal(metrics.median_level(CHANCES), answer)
    found = {name: metric(LEVELS, CHANCES, WEIGHTS) for name, metric in metrics.ORDINAL.items()}
    for draw, weight in enumerate(WEIGHTS):
        settings = {"sample_weight": weight}
        kappa = sk.cohen_kappa_score(LEVELS, answer, weights="quadratic", labels=range(4), **settings)
        assert found["kappa"][draw] == pytest.approx(kappa)
        assert found["level_mae"][draw] == pytest.approx(sk.mean_absolute_error(LEVELS, answer, **settings))
        accuracy = sk.balanced_accuracy_score(LEVELS, answer, **settings)
        assert found["balanced_accuracy"][draw] == pytest.approx(accuracy)
        areas = [sk.roc_auc_score(k < LEVELS, CHANCES[:, k + 1 :].sum(1), **settings) for k in range(3)]
        assert found["auroc"][draw] == pytest.approx(np.mean(areas))


def test_weighted_average_precision_and_brier_of_two_classes() -> None:
    truth, score = LABELS[:, 1].astype(int), np.column_stack([1 - GUESS[:, 1], GUESS[:, 1]])
    for weight in WEIGHTS:
        area = metrics.auprc(truth.astype(float), GUESS[:, 1], weight[None])
        assert area == pytest.approx(sk.average_precision_score(truth, GUESS[:, 1], sample_weight=weight))
        found = metrics.brier(truth, score, weight[None])
        assert found == pytest.approx(sk.brier_score_loss(truth, GUESS[:, 1], sample_weight=weight))


def test_masks_leave_out_what_is_undefined() -> None:
    nan = np.nan
    score = np.array([[0.8, 0.6, 2.0, 4.0], [0.5, nan, 6.0, nan], [nan, nan, nan, nan]])
    zeros = np.zeros(3, dtype=np.int64)
    found = metrics.scores("segmentation", zeros, score, ("liver", "spleen"))
    expected = {"dice": 0.6, "hd95": 4.5, "dice liver": 0.65, "dice spleen": 0.6}
    assert found == pytest.approx(expected)
    weighted = metrics.metrics_of("segmentation", ("liver", "spleen"))["dice"](zeros, score, np.array([[3.0, 1, 1]]))
    assert weighted == pytest.approx((3 * 0.7 + 0.5) / 4)
