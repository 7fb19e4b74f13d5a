"""Frozen probes: L2-logistic or ridge regression, and k-NN, on standardised features.

Ordered levels: one logistic per threshold, P(y > k), made to fall with k (Frank & Hall 2001). Several labels: one probe
each, where it is known. Features are standardised by the training patients (their labels are not used), the same for
every encoder. A linear probe's weights lie in the span of its rows, so rotating the rows onto that span changes nothing
but the time it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from lejepa_med.config.evaluation import ProbeRecipe
from lejepa_med.evaluation.labels import LabelledSet
from lejepa_med.evaluation.metrics import Array
from lejepa_med.evaluation.splits import strata_of
from lejepa_med.evaluation.targets import Kind, Target

CROSS_VALIDATED_FROM = 5
"""Labels per class (or quintile) from which on the penalty is chosen by cross-validation."""
FOLDS = 5


def enough_to_choose(
    kind: Kind, target: NDArray[np.generic], strata: NDArray[np.int64], groups: tuple[str, ...]
) -> bool:
    """Whether settings can be chosen on these labels: five of every class and two patients.

    Several labels: five of both values of every label that has both; the sets of labels (`strata`) may be rarer.
    """
    if len(set(groups)) < 2:
        return False
    if kind == "multilabel":
        counts = np.stack([(target == 0).sum(0), (target == 1).sum(0)])
        both = counts[:, counts.min(0) > 0]
        return bool(both.size) and int(both.min()) >= CROSS_VALIDATED_FROM
    return int(np.bincount(strata).min()) >= CROSS_VALIDATED_FROM


@dataclass(frozen=True)
class ProbeTask:
    """What is fitted: `target` of `Targets` and the `strata` and `groups` of the labelled samples.

    `classes` is the number of classes, levels or labels; 0 for a regression.
    """

    target: Target
    strata: NDArray[np.int64]
    groups: tuple[str, ...]
    classes: int
    kind: Kind

    @property
    def is_tuned(self) -> bool:
        """Whether settings are chosen by cross-validation, see `enough_to_choose`."""
        return enough_to_choose(self.kind, self.target, self.strata, self.groups)

    @property
    def has_tuned_penalty(self) -> bool:
        """The same of the penalty, which several labels choose for themselves."""
        if self.kind != "multilabel":
            return self.is_tuned
        return any(part.is_tuned for part in (self.label(number)[0] for number in range(self.classes)))

    @classmethod
    def of(cls, labelled: LabelledSet, rows: NDArray[np.int64]) -> ProbeTask:
        """These samples of a labelled set."""
        groups = tuple(labelled.groups[row] for row in rows)
        strata = strata_of(labelled, rows)
        return cls(labelled.target[rows], strata, groups, len(labelled.classes), labelled.kind)

    def part(self, rows: NDArray[np.int64]) -> ProbeTask:
        """Some of the samples, as a task of their own."""
        strata = np.unique(self.strata[rows], return_inverse=True)[1].astype(np.int64)
        groups = tuple(self.groups[row] for row in rows)
        return ProbeTask(self.target[rows], strata, groups, self.classes, self.kind)

    def label(self, number: int) -> tuple[ProbeTask, NDArray[np.int64]]:
        """One label of several as a task of two classes, and the samples where it is known."""
        known = np.flatnonzero(np.isfinite(self.target[:, number]))
        target = self.target[known, number].astype(np.int64)
        strata = np.unique(target, return_inverse=True)[1].astype(np.int64)
        return ProbeTask(target, strata, tuple(self.groups[row] for row in known), 2, "classification"), known


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
    """Scores of the test rows (`[row, class]` probabilities or `[row]` values) and the inverse penalty used.

    Several labels: the geometric mean of their penalties, each of which was chosen for itself.
    """
    if task.kind == "multilabel":
        return _linear_per_label(train, test, task, recipe)
    train, test = rotate(train, test)
    penalty = choose_penalty(train, task, recipe)
    return fit_linear(train, task, test, penalty), penalty


def choose_penalty(train: Array, task: ProbeTask, recipe: ProbeRecipe) -> float:
    """The inverse penalty with the smallest loss under patient-grouped cross-validation; preset for few labels."""
    if not task.is_tuned:
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
            score = fit_linear(rows, task.part(fit), others, penalty)
            losses[position] += _loss(score, task.target[held], task)
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


def fit_linear(train: Array, task: ProbeTask, test: Array, penalty: float) -> Array:
    """Scores by scikit-learn's multinomial logistic regression (classes weighted equally), or by ridge (see
    `ridge_alpha`); ordered levels and several labels: by one logistic regression each."""
    match task.kind:
        case "regression":
            return np.asarray(Ridge(alpha=ridge_alpha(train, penalty)).fit(train, task.target).predict(test))
        case "ordinal":
            above = [_fit_binary(train, task.target > level, test, penalty) for level in range(task.classes - 1)]
            return level_probabilities(np.stack(above, axis=1))
        case "multilabel":
            parts = [task.label(number) for number in range(task.classes)]
            return np.stack([_fit_binary(train[known], one.target == 1, test, penalty) for one, known in parts], axis=1)
    model = LogisticRegression(C=penalty, class_weight="balanced", tol=1e-5, max_iter=5000)
    model.fit(train, task.target)
    return _all_classes(model.predict_proba(test), model.classes_, task.classes)


def ridge_alpha(train: Array, penalty: float) -> float:
    """Ridge's alpha: the features' total variance over the rows, divided by 10 C.

    Relative, so that one C shrinks the predictions of 300 features as much as those of 9,000: at C = .1 alpha is the
    mean squared length of the centred rows. (Logistic regression is left as it is; it bounds its own predictions.)
    """
    total = float(train.var(axis=0).sum())
    return (total or 1.0) / (10 * penalty)


def level_probabilities(above: Array) -> Array:
    """`[row, level]` from P(y > k) `[row, threshold]`, which is first made to fall with k."""
    falling = np.minimum.accumulate(above, axis=1)
    edges = np.concatenate([np.ones((len(above), 1)), falling, np.zeros((len(above), 1))], axis=1)
    return np.asarray(edges[:, :-1] - edges[:, 1:])


def knn_probe(train: Array, test: Array, task: ProbeTask, recipe: ProbeRecipe) -> Array:
    """Votes of (or mean over) the nearest rows by cosine; never more neighbours than the rarest class has rows."""
    if task.kind == "multilabel":
        return _knn_per_label(train, test, task, recipe)
    count = max(1, min(recipe.neighbours, int(np.bincount(task.strata).min())))
    kind = KNeighborsClassifier if task.classes else KNeighborsRegressor
    model = kind(count, metric="cosine", algorithm="brute").fit(train, task.target)
    if not task.classes:
        return np.asarray(model.predict(test))
    return _all_classes(model.predict_proba(test), model.classes_, task.classes)


def _linear_per_label(train: Array, test: Array, task: ProbeTask, recipe: ProbeRecipe) -> tuple[Array, float]:
    scores, penalties = np.zeros((len(test), task.classes)), []
    for number in range(task.classes):
        one, known = task.label(number)
        if len(np.unique(one.target)) < 2:
            scores[:, number] = one.target.mean() if len(known) else 0.5
            continue
        probabilities, penalty = linear_probe(train[known], test, one, recipe)
        scores[:, number] = probabilities[:, 1]
        penalties.append(penalty)
    return scores, float(np.exp(np.mean(np.log(penalties)))) if penalties else recipe.preset_penalty


def _knn_per_label(train: Array, test: Array, task: ProbeTask, recipe: ProbeRecipe) -> Array:
    scores = np.full((len(test), task.classes), 0.5)
    for number in range(task.classes):
        one, known = task.label(number)
        if len(np.unique(one.target)) == 1:
            scores[:, number] = one.target[0]
        elif len(known):
            scores[:, number] = knn_probe(train[known], test, one, recipe)[:, 1]
    return scores


def _fit_binary(train: Array, positive: NDArray[np.bool_], test: Array, penalty: float) -> Array:
    """Probability of the positive class; where training rows are all alike, theirs (1/2 without any)."""
    if len(np.unique(positive)) < 2:
        return np.full(len(test), positive.mean() if len(positive) else 0.5)
    model = LogisticRegression(C=penalty, class_weight="balanced", tol=1e-5, max_iter=5000).fit(train, positive)
    return np.asarray(model.predict_proba(test)[:, 1])


def _all_classes(probabilities: Array, present: NDArray[np.generic], classes: int) -> Array:
    scores = np.zeros((len(probabilities), classes))
    scores[:, present.astype(np.int64)] = probabilities
    return scores


def _loss(score: Array, target: NDArray[np.generic], task: ProbeTask) -> float:
    """Cross-entropy with equal weight per class, over thresholds for ordered levels; or squared error."""
    if task.kind == "regression":
        return float(((score - target.astype(np.float64)) ** 2).sum())
    numbers = target.astype(np.int64)
    if task.kind == "ordinal":
        below = np.cumsum(score, axis=1)[:, :-1]
        pairs = [np.stack([below[:, level], 1 - below[:, level]], axis=1) for level in range(task.classes - 1)]
        return sum(_cross_entropy(pair, (numbers > level).astype(np.int64)) for level, pair in enumerate(pairs))
    return _cross_entropy(score, numbers)


def _cross_entropy(score: Array, numbers: NDArray[np.int64]) -> float:
    share = np.bincount(numbers, minlength=score.shape[1])[numbers]
    return float((-np.log(np.clip(score[np.arange(len(score)), numbers], 1e-12, 1)) / share).sum())
