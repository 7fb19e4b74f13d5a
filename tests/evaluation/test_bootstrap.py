"""Repeats of a pretraining inside the interval, p values, Holm's correction, and areas under the budget curve."""

from __future__ import annotations

import numpy as np
import pytest

from lejepa_med.evaluation import metrics
from lejepa_med.evaluation.bootstrap import Drawn, bootstrap, draw_metric, holm, mean_of, over_repeats


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # by hand, as in Holm's paper
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, float("nan"), 0.01], [0.02, float("nan"), 0.02]),
        ([], []),
    ],
)
def test_holm(p: list[float], expected: list[float]) -> None:
    assert holm(p) == pytest.approx(expected, nan_ok=True)


def test_p_is_two_sided_and_never_zero() -> None:
    shifted = Drawn(1.0, np.linspace(-0.1, 1.9, 999))
    below = int((shifted.draws <= 0).sum())
    assert shifted.p == pytest.approx(2 * (below + 1) / 1000)
    assert Drawn(-1.0, -shifted.draws).p == pytest.approx(shifted.p)
    assert Drawn(1.0, np.ones(999)).p == pytest.approx(2 / 1000)
    assert Drawn(0.0, np.zeros(999)).p == 1.0
    assert np.isnan(Drawn(1.0, np.empty(0)).p)


def test_p_and_interval_of_a_mean_agree_with_the_normal_ones() -> None:
    error = np.random.default_rng(0).normal(0.2, 1, 400)
    drawn = draw_metric(np.zeros(400), error, [f"p{row}" for row in range(400)], _mean)
    z = error.mean() / (error.std() / 20)
    assert drawn.p == pytest.approx(2 * (1 - _phi(abs(z))), rel=0.6)  # 2,000 draws: a handful lie beyond 0


def _mean(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(weights @ score / weights.sum(1))


def _phi(z: float) -> float:
    from scipy.stats import norm

    return float(norm.cdf(z))


def test_one_repeat_is_the_interval_over_patients() -> None:
    error = np.random.default_rng(0).normal(5, 1, 60)
    groups = [f"p{row}" for row in range(60)]
    drawn = draw_metric(np.zeros(60), error, groups, metrics.mae)
    assert over_repeats([drawn], seed=1).interval == bootstrap(np.zeros(60), [error], groups, metrics.mae)
    same = over_repeats([drawn, drawn, drawn], seed=1)  # repeats that agree add nothing
    assert same.usable == pytest.approx(drawn.draws)


def test_a_difference_of_equal_arms_of_repeats_is_nothing() -> None:
    generator = np.random.default_rng(0)
    groups = [f"p{row}" for row in range(60)]
    drawn = [draw_metric(np.zeros(60), generator.normal(5, 1, 60), groups, metrics.mae) for _ in range(3)]
    arm = over_repeats(drawn, seed=1)
    area = mean_of([arm, arm], [0.5, 0.5])
    assert area.interval == arm.interval  # the same repeats at every budget
    assert ((arm - area).draws == 0).all()
    assert (arm - over_repeats(drawn, seed=2)).interval.high > 0  # other runs of the same kind would differ


def test_sums_are_draw_by_draw() -> None:
    first, second = Drawn(1.0, np.array([1.0, 2.0])), Drawn(3.0, np.array([5.0, 5.0]))
    assert mean_of([first, second], [0.25, 0.75]).draws == pytest.approx([4.0, 4.25])
    assert (second - first).draws == pytest.approx([4.0, 3.0])


@pytest.mark.parametrize(("repeats", "spread"), [(3, 0.1), (3, 0.5), (5, 0.2)])
def test_intervals_cover_patients_and_repeats(repeats: int, spread: float) -> None:
    """95 % intervals for a mean of which runs and patients both vary; those over patients alone cover far less."""
    generator = np.random.default_rng(repeats)
    covered = alone = 0
    patients = 60
    for trial in range(200):
        groups = [f"p{row}" for row in range(patients)]
        shared = generator.normal(0, 1, patients)
        errors = [shared + generator.normal(0, spread) + generator.normal(0, 0.3, patients) for _ in range(repeats)]
        drawn = [draw_metric(np.zeros(patients), error, groups, _mean, draws=300, seed=trial) for error in errors]
        found, narrow = over_repeats(drawn, seed=trial).interval, mean_of(drawn).interval
        covered += found.low <= 0 <= found.high
        alone += narrow.low <= 0 <= narrow.high
    assert 0.90 <= covered / 200 <= 0.99
    assert alone < covered
