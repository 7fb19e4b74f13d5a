"""Probes equal scikit-learn's; patients stay whole inside cross-validation; without signal there is chance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from lejepa_med.config.evaluation import ProbeRecipe
from lejepa_med.evaluation.bootstrap import draw_metric, mean_of
from lejepa_med.evaluation.criteria import TrainedTask, validation_share
from lejepa_med.evaluation.metrics import balanced_accuracy
from lejepa_med.evaluation.probes import (
    ProbeTask,
    choose_penalty,
    fit_linear,
    knn_probe,
    level_probabilities,
    linear_probe,
    patient_folds,
    rotate,
    standardise,
)

ROWS, TEST, DIM = 40, 30, 200
RECIPE = ProbeRecipe()


def data(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, ProbeTask]:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(ROWS + TEST, DIM))
    latent = features[:, 0] + features[:, 1]
    strata = np.argsort(np.argsort(latent[:ROWS])) * (classes or 5) // ROWS
    target = strata if classes else latent[:ROWS]
    groups = tuple(f"p{row // 2}" for row in range(ROWS))
    standard = standardise(features, np.arange(ROWS))
    return (
        standard[:ROWS],
        standard[ROWS:],
        ProbeTask(target, strata, groups, classes, "classification" if classes else "regression"),
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [0.001, 0.1])
def test_rotated_logistic_equals_the_full_one(classes: int, penalty: float) -> None:
    train, test, task = data(classes)
    rows, others = rotate(train, test)
    assert rows.shape[1] <= ROWS < DIM
    full = LogisticRegression(C=penalty, class_weight="balanced", tol=1e-8, max_iter=10_000).fit(train, task.target)
    found = fit_linear(rows, task, others, penalty)
    assert found == pytest.approx(full.predict_proba(test), abs=2e-3)


def test_rotated_ridge_equals_the_full_one() -> None:
    train, test, task = data(0)
    rows, others = rotate(train, test)
    length = ((train - train.mean(0)) ** 2).sum(1).mean()
    full = Ridge(alpha=length / (10 * 0.01)).fit(train, task.target).predict(test)
    assert fit_linear(rows, task, others, 0.01) == pytest.approx(full, abs=1e-8)


def test_ridge_is_as_strict_with_wide_features_as_with_narrow_ones() -> None:
    """The same 20 directions written out 1 and 50 times give the same predictions; rows that are alike, the mean."""
    rng = np.random.default_rng(0)
    rows, others, values = rng.normal(size=(10, 20)), rng.normal(size=(5, 20)), rng.normal(size=10)
    task = ProbeTask(values, np.arange(10) // 2, tuple(f"p{row}" for row in range(10)), 0, "regression")
    narrow = fit_linear(rows, task, others, 0.1)
    assert fit_linear(np.tile(rows, 50), task, np.tile(others, 50), 0.1) == pytest.approx(narrow, abs=1e-8)
    assert np.std(narrow) < 0.7 * np.std(values), "half a dozen labels do not say much"
    assert fit_linear(np.ones((10, 3)), task, np.ones((5, 3)), 0.1) == pytest.approx(values.mean())


def test_rotation_keeps_distances_and_is_left_out_where_it_gains_nothing() -> None:
    train, test, _ = data(2)
    rows, _ = rotate(train, test)
    assert rows @ rows.T == pytest.approx(train @ train.T, abs=1e-8)
    assert rotate(train[:, :5], test[:, :5])[0] is not None
    assert np.array_equal(rotate(train[:, :5], test[:, :5])[0], train[:, :5])


@pytest.mark.parametrize("classes", [0, 3])
def test_knn_equals_scikit_learn(classes: int) -> None:
    train, test, task = data(classes)
    found = knn_probe(train, test, task, RECIPE)
    if classes:
        model = KNeighborsClassifier(5, metric="cosine").fit(train, task.target)
        assert np.array_equal(found.argmax(1), model.predict(test))
    else:
        assert found == pytest.approx(KNeighborsRegressor(5, metric="cosine").fit(train, task.target).predict(test))


def test_one_label_per_class_gives_the_nearest_neighbour() -> None:
    train, test, _ = data(2)
    few = ProbeTask(np.array([0, 1]), np.array([0, 1]), ("a", "b"), 2, "classification")
    nearest = KNeighborsClassifier(1, metric="cosine").fit(train[:2], few.target)
    assert np.array_equal(knn_probe(train[:2], test, few, RECIPE).argmax(1), nearest.predict(test))


def test_a_class_without_training_rows_scores_zero() -> None:
    train, test, _ = data(2)
    task = ProbeTask(np.array([0, 2, 0, 2]), np.array([0, 1, 0, 1]), tuple("abcd"), 3, "classification")
    scores, _ = linear_probe(train[:4], test, task, RECIPE)
    assert scores.shape == (TEST, 3) and not scores[:, 1].any()
    assert scores.sum(1) == pytest.approx(1)


def test_folds_keep_patients_whole_and_spread_classes() -> None:
    _, _, task = data(2)
    fold = patient_folds(task.strata, task.groups)
    for group in set(task.groups):
        assert len({fold[row] for row in range(ROWS) if task.groups[row] == group}) == 1
    assert set(fold) == set(range(5))


def test_penalty_is_preset_below_five_labels_and_chosen_above() -> None:
    train, _, task = data(2)
    few = np.concatenate([np.flatnonzero(task.strata == stratum)[:4] for stratum in (0, 1)])
    small = ProbeTask(task.target[few], task.strata[few], tuple(task.groups[row] for row in few), 2, "classification")
    assert choose_penalty(train[few], small, RECIPE) == RECIPE.preset_penalty
    noise, strata = np.random.default_rng(0).normal(size=(400, 20)), np.arange(400) % 2
    many = ProbeTask(strata, strata, tuple(f"p{row}" for row in range(400)), 2, "classification")
    assert choose_penalty(noise, many, RECIPE) in sorted(RECIPE.penalties)[:2]  # nothing to learn: strong penalties
    told = np.concatenate([noise[:, :3] * 0.1, np.eye(2)[strata]], axis=1)
    assert choose_penalty(told, many, RECIPE) == max(RECIPE.penalties)


def test_permuted_labels_score_chance() -> None:
    train, test, task = data(2)
    generator = np.random.default_rng(1)
    truth = generator.permutation(np.arange(TEST) % 2)
    runs = []
    for _ in range(5):
        order = generator.permutation(ROWS)
        permuted = ProbeTask(task.target[order], task.strata[order], task.groups, 2, "classification")
        runs.append(linear_probe(train, test, permuted, RECIPE)[0])
    found = mean_of(
        [draw_metric(truth, run, [f"p{row}" for row in range(TEST)], balanced_accuracy) for run in runs]
    ).interval
    assert found.low <= 0.5 <= found.high and found.high < 0.75


def test_constant_features_become_zero() -> None:
    values = standardise(np.array([[1e6, 1.0], [1e6, 2.0], [1e6, 3.0], [1e6, 4.0]]), np.arange(4))
    assert not values[:, 0].any() and values[:, 1].std() == pytest.approx(1)


def several_labels(unknown: float) -> tuple[np.ndarray, np.ndarray, ProbeTask]:
    train, test, _ = data(2)
    target = np.column_stack([train[:, 0] + train[:, 1] > 0, train[:, 2] > 0.5]).astype(float)
    target[np.random.default_rng(1).random(target.shape) < unknown] = np.nan
    strata = np.unique(np.nan_to_num(target, nan=2.0), axis=0, return_inverse=True)[1].ravel()
    return train, test, ProbeTask(target, strata, tuple(f"p{row // 2}" for row in range(ROWS)), 2, "multilabel")


@pytest.mark.parametrize("unknown", [0.0, 0.2])
def test_every_label_has_the_probe_that_it_would_have_alone(unknown: float) -> None:
    train, test, task = several_labels(unknown)
    found, penalty = linear_probe(train, test, task, RECIPE)
    nearest = knn_probe(train, test, task, RECIPE)
    penalties = []
    for number in range(2):
        known = np.flatnonzero(np.isfinite(task.target[:, number]))
        target = task.target[known, number].astype(int)
        groups = tuple(task.groups[row] for row in known)
        alone = ProbeTask(target, target, groups, 2, "classification")
        expected, chosen = linear_probe(train[known], test, alone, RECIPE)
        model = LogisticRegression(C=chosen, class_weight="balanced", tol=1e-8, max_iter=10_000)
        oracle = model.fit(train[known], target).predict_proba(test)[:, 1]
        assert found[:, number] == pytest.approx(expected[:, 1])
        assert found[:, number] == pytest.approx(oracle, abs=5e-3)
        voters = KNeighborsClassifier(5, metric="cosine").fit(train[known], target).predict_proba(test)[:, 1]
        assert nearest[:, number] == pytest.approx(voters)
        penalties.append(chosen)
    assert penalty == pytest.approx(np.sqrt(penalties[0] * penalties[1]))


def test_several_labels_choose_when_every_label_has_five() -> None:
    """Sets of labels are rarer than labels; a label that has one value only does not count."""
    _, _, task = several_labels(0.0)
    assert task.is_tuned and task.has_tuned_penalty
    target = np.zeros((40, 4))
    for number, positives in enumerate((20, 10, 5, 0)):
        target[np.random.default_rng(number).permutation(40)[:positives], number] = 1
    strata = np.unique(target, axis=0, return_inverse=True)[1].ravel()
    assert np.bincount(strata).min() < 5
    groups = tuple(f"p{row}" for row in range(40))
    rare = ProbeTask(target, strata, groups, 4, "multilabel")
    assert rare.is_tuned
    assert not ProbeTask(target, strata, ("p0",) * 40, 4, "multilabel").is_tuned
    target[np.flatnonzero(target[:, 2])[0], 2] = np.nan
    assert not rare.is_tuned and rare.has_tuned_penalty
    trained = TrainedTask("multilabel", tuple((name,) for name in groups), target[:, :2], 2, strata, groups, 0)
    share = validation_share(trained)
    assert share is not None and len(share[1]) > 0
    assert (target[share[0], :2].sum(0) > 0).all()


def test_ordered_levels_are_cumulative_logistics() -> None:
    train, test, task = data(4)
    levels = ProbeTask(task.target, task.strata, task.groups, 4, "ordinal")
    rows, others = rotate(train, test)
    found = fit_linear(rows, levels, others, 0.1)
    models = [LogisticRegression(C=0.1, class_weight="balanced", tol=1e-8, max_iter=10_000) for _ in range(3)]
    above = np.column_stack([one.fit(train, task.target > k).predict_proba(test)[:, 1] for k, one in enumerate(models)])
    falling = np.minimum.accumulate(above, axis=1)
    assert 1 - np.cumsum(found, axis=1)[:, :-1] == pytest.approx(falling, abs=5e-3)
    assert found.min() >= 0 and found.sum(1) == pytest.approx(1)
    assert linear_probe(train, test, levels, RECIPE)[1] in RECIPE.penalties


def test_levels_that_cross_are_made_monotone() -> None:
    found = level_probabilities(np.array([[0.6, 0.8, 0.1], [0.2, 0.1, 0.1]]))
    assert found == pytest.approx(np.array([[0.4, 0.0, 0.5, 0.1], [0.8, 0.1, 0.0, 0.1]]))


def test_a_label_without_two_values_is_answered_by_its_own() -> None:
    train, test, task = several_labels(0.0)
    target = task.target.copy()
    target[:, 0], target[:, 1] = 1.0, np.nan
    lone = ProbeTask(target, np.zeros(ROWS, dtype=np.int64), task.groups, 2, "multilabel")
    assert (linear_probe(train, test, lone, RECIPE)[0] == [1.0, 0.5]).all()
    assert (knn_probe(train, test, lone, RECIPE) == [1.0, 0.5]).all()
