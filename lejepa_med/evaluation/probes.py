"""Frozen probes: L2-logistic or ridge regression, and k-NN, on standardised features.

Features are standardised by the training patients (their labels are not used), the same for every encoder. A linear
probe's weights lie in the span of its rows, so rotating the rows onto that span changes nothing but the time it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from lejepa_med.config.evaluation import ProbeRecipe
from lejepa_med.evaluation.metrics import Array

CROSS_VALIDATED_FROM = 5
"""Labels per class (or quintile) from which on the penalty is chosen by cross-validation."""
FOLDS = 5


@dataclass(frozen=True)
class ProbeTask:
    """What is fitted: `target` [row] (class numbers or values), `strata` and `groups` of the labelled rows.

    `classes` is the number of classes, 0 for a regression.
    """

    target: NDArray[np.int64] | NDArray[np.float64]
    strata: NDArray[np.int64]
    groups: tuple[str, ...]
    classes: int


def standardise(features: NDArray[np.floating], train: NDArray[np.int64]) -> Array:
    """Mean 0 and variance 1 over the rows `train`; constant features become 0."""
    values = features.astype(np.float64)
    mean, std = values[train].mean(0), values[train].std(0)
    usable = std > 1e-8 * np.maximum(1, np.abs(mean))
    return np.asarray((values - mean) * np.where(usable, 1 / np.where(usable, std, 1), 0))


def rotate(train: Array, test: Array) -> tuple[Array, Array]:
    """Both in coordinates of the span of the training rows: at most as many dimensions as rows."""
    if train.shape[1] <= train.shape[0]:
        return train, test
    _, size, directions = np.linalg.svd(train, full_matrices=False)
    basis = directions[: max(1, int((size > 1e-10 * size[0]).sum()))].T
    return train @ basis, test @ basis


def linear_probe(train: Array, test: Array, task: ProbeTask, recipe: ProbeRecipe) -> tuple[Array, float]:
    """Scores of the test rows (`[row, class]` probabilities or `[row]` values) and the inverse penalty used."""
    train, test = rotate(train, test)
    penalty = choose_penalty(train, task, recipe)
    return fit_linear(train, task.target, test, penalty, task.classes), penalty


def choose_penalty(train: Array, task: ProbeTask, recipe: ProbeRecipe) -> float:
    """The inverse penalty with the smallest loss under patient-grouped cross-validation; preset for few labels."""
    if np.bincount(task.strata).min() < CROSS_VALIDATED_FROM or len(set(task.groups)) < 2:
        return recipe.preset_penalty
    fold = patient_folds(task.strata, task.groups)
    grid = sorted(recipe.penalties)
    losses = np.zeros(len(grid))
    for number in np.unique(fold):
        fit, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if task.classes:
            held = held[np.isin(task.target[held], task.target[fit])]
            if len(np.unique(task.target[fit])) < 2 or not len(held):
                continue
        rows, others = rotate(train[fit], train[held])
        for position, penalty in enumerate(grid):
            score = fit_linear(rows, task.target[fit], others, penalty, task.classes)
            losses[position] += _loss(score, task.target[held], task.classes)
    return grid[int(losses.argmin())]


def patient_folds(strata: NDArray[np.int64], groups: tuple[str, ...]) -> NDArray[np.int64]:
    """A fold for every row; all rows of a patient share it, and every stratum is spread over the folds."""
    fold_of: dict[str, int] = {}
    position = 0
    for row in np.lexsort((np.arange(len(strata)), strata)):
        if groups[row] not in fold_of:
            fold_of[groups[row]] = position % FOLDS
            position += 1
    return np.array([fold_of[group] for group in groups], dtype=np.int64)


def fit_linear(train: Array, target: NDArray[np.generic], test: Array, penalty: float, classes: int) -> Array:
    """scikit-learn's multinomial logistic regression (classes weighted equally), or ridge with alpha = 1 / penalty."""
    if not classes:
        return np.asarray(Ridge(alpha=1 / penalty).fit(train, target).predict(test))
    model = LogisticRegression(C=penalty, class_weight="balanced", tol=1e-5, max_iter=5000)
    model.fit(train, target)
    return _all_classes(model.predict_proba(test), model.classes_, classes)


def knn_probe(train: Array, test: Array, task: ProbeTask, recipe: ProbeRecipe) -> Array:
    """Votes of (or mean over) the nearest rows by cosine; never more neighbours than the rarest class has rows."""
    count = max(1, min(recipe.neighbours, int(np.bincount(task.strata).min())))
    kind = KNeighborsClassifier if task.classes else KNeighborsRegressor
    model = kind(count, metric="cosine", algorithm="brute").fit(train, task.target)
    if not task.classes:
        return np.asarray(model.predict(test))
    return _all_classes(model.predict_proba(test), model.classes_, task.classes)


def _all_classes(probabilities: Array, present: NDArray[np.generic], classes: int) -> Array:
    scores = np.zeros((len(probabilities), classes))
    scores[:, present.astype(np.int64)] = probabilities
    return scores


def _loss(score: Array, target: NDArray[np.generic], classes: int) -> float:
    """Cross-entropy with equal weight per class, or squared error."""
    if not classes:
        return float(((score - target.astype(np.float64)) ** 2).sum())
    numbers = target.astype(np.int64)
    share = np.bincount(numbers, minlength=classes)[numbers]
    return float((-np.log(np.clip(score[np.arange(len(score)), numbers], 1e-12, 1)) / share).sum())
