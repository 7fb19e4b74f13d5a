"""Repeats of a pretraining inside the interval, p values, Holm's correction, and areas under the budget curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lejepa_med.evaluation import metrics
from lejepa_med.evaluation.bootstrap import (
    Drawn,
    draw_metric,
    holm,
    mean_of,
    over_repeats,
    over_runs_and_labels,
)


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
    assert over_repeats({"a": drawn}, "arm").interval == drawn.interval
    same = over_repeats({"a": drawn, "b": drawn, "c": drawn}, "arm")  # repeats that agree add nothing
    assert same.usable() == pytest.approx(drawn.draws)


def test_a_difference_of_equal_arms_of_repeats_is_nothing() -> None:
    generator = np.random.default_rng(0)
    groups = [f"p{row}" for row in range(60)]
    drawn = {name: draw_metric(np.zeros(60), generator.normal(5, 1, 60), groups, metrics.mae) for name in "abc"}
    arm = over_repeats(drawn, "arm")
    area = mean_of([arm, arm], [0.5, 0.5])
    assert area.interval == arm.interval  # the same repeats at every budget
    assert ((arm - area).draws == 0).all()
    assert (arm - over_repeats(drawn, "other")).interval.high > 0  # other runs of the same kind would differ


def test_a_lost_repeat_leaves_the_others_their_draws() -> None:
    """One of three runs without a result at one budget: the area is of what there is, run by run."""
    generator, groups = np.random.default_rng(0), [f"p{row}" for row in range(60)]
    drawn = {name: draw_metric(np.zeros(60), generator.normal(5, 1, 60), groups, metrics.mae) for name in "abc"}
    whole, two = over_repeats(drawn, "arm"), over_repeats({name: drawn[name] for name in "bc"}, "arm")
    one = over_repeats({"c": drawn["c"]}, "arm")
    for parts in ([whole, two], [whole, one], [one, two]):
        area = mean_of(parts, [0.5, 0.5])
        assert area.value == pytest.approx((parts[0].value + parts[1].value) / 2)
        assert area.interval.low < area.value < area.interval.high
        assert len(area.repeats) == 1
    alone = over_repeats({"b": drawn["b"], "c": drawn["b"]}, "arm")
    moved = over_repeats({"a": drawn["b"], "b": drawn["b"], "c": drawn["c"]}, "arm")
    same = over_repeats({"b": drawn["b"], "c": drawn["c"]}, "arm")
    assert np.abs(alone.repeats[0].deviation).max() < 1e-12
    assert np.corrcoef(moved.repeats[0].deviation, same.repeats[0].deviation)[0, 1] > 0.5  # c's own numbers in both


@pytest.mark.parametrize("p", [0.05, 0.02, 0.01])
def test_p_of_three_repeats_is_student_s(p: float) -> None:
    """Runs that differ much and patients that do not: the t test with two degrees of freedom."""
    values = np.array([-1.0, 0.0, 1.0])
    shift = stats.t.ppf(1 - p / 2, 2) * values.std(ddof=1) / math.sqrt(3)
    noise = np.random.default_rng(0).normal(0, 1e-6, 2000)
    repeats = {str(one): Drawn(one + shift, one + shift + noise) for one in values}
    found = np.median([over_repeats(repeats, f"arm {number}").p for number in range(20)])
    assert found == pytest.approx(p, rel=0.25)


def test_nothing_is_said_of_a_class_of_three_patients() -> None:
    """A draw without any of them has no AUROC; the rest of the draws would say nothing of how few they are."""
    generator, groups = np.random.default_rng(0), [f"p{row}" for row in range(60)]
    for positives, known in ((3, False), (12, True)):
        truth = (np.arange(60) < positives).astype(np.float64)
        drawn = draw_metric(truth, generator.uniform(size=60), groups, metrics.auroc)
        assert np.isfinite(drawn.value) and np.isfinite(drawn.interval.low) == known == np.isfinite(drawn.p)
        assert np.isfinite(mean_of([drawn, drawn]).interval.low) == known
        assert np.isfinite((drawn - drawn).centred.interval.high) == known


def test_the_interval_of_a_calibration_error_holds_it() -> None:
    """Drawing with replacement makes any calibration error larger."""
    generator, groups = np.random.default_rng(0), [f"p{row}" for row in range(97)]
    drawn = []
    for _ in range(5):
        score = generator.dirichlet(np.ones(4), 97)
        truth = np.array([generator.choice(4, p=row) for row in score])
        drawn.append(draw_metric(truth, score, groups, metrics.top_label_ece))
    mean = mean_of(drawn)
    assert mean.interval.low > mean.value, "or there is nothing to correct"
    centred = mean_of([one.centred for one in drawn])
    assert centred.interval.low < centred.value < centred.interval.high
    assert centred.draws.std() == pytest.approx(mean.draws.std())


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
        by_name = {str(number): one for number, one in enumerate(drawn)}
        found, narrow = over_repeats(by_name, f"arm {trial}").interval, mean_of(drawn).interval
        covered += found.low <= 0 <= found.high
        alone += narrow.low <= 0 <= narrow.high
    assert 0.90 <= covered / 200 <= 0.99
    assert alone < covered


@pytest.mark.parametrize(("draws", "runs"), [(5, 1), (5, 3), (3, 1)])
def test_intervals_cover_draws_of_the_labels(draws: int, runs: int) -> None:
    """Every interval is of the mean over patients, runs and label draws, which all vary."""
    generator = np.random.default_rng(draws + runs)
    patients, trials, covered, fixed = 60, 200, 0, 0
    groups = [f"p{row}" for row in range(patients)]
    for trial in range(trials):
        shared, of_draw = generator.normal(0, 1, patients), generator.normal(0, 0.3, draws)
        of_run = generator.normal(0, 0.2, runs) if runs > 1 else np.zeros(1)
        cells = {
            f"run {run}": {
                seed: draw_metric(
                    np.zeros(patients),
                    shared + of_draw[seed] + of_run[run] + generator.normal(0, 0.1, patients),
                    groups,
                    _mean,
                    draws=300,
                    seed=trial,
                )
                for seed in range(draws)
            }
            for run in range(runs)
        }
        found = over_runs_and_labels(cells, f"arm {trial}").interval
        narrow = mean_of([cell for of_seed in cells.values() for cell in of_seed.values()]).interval
        covered += found.low <= 0 <= found.high
        fixed += narrow.low <= 0 <= narrow.high
    assert 0.91 <= covered / trials <= 0.99
    assert fixed < covered - 0.05 * trials


def test_a_lucky_draw_that_both_arms_have_cancels() -> None:
    """Arms that differ by the same at every draw of the labels: their difference knows nothing of the draws."""
    generator, groups = np.random.default_rng(0), [f"p{row}" for row in range(60)]
    luck, patients = np.array([-6.0, 0, 2, 4]), generator.normal(0, 1, 60)
    first, second = (
        {name: {seed: draw_metric(np.zeros(60), patients + luck[seed] + gain, groups, _mean) for seed in range(4)}}
        for name, gain in (("a", 1.0), ("b", 0.0))
    )
    arms = over_runs_and_labels(first, "ours"), over_runs_and_labels(second, "theirs")
    assert arms[0].interval.high - arms[0].interval.low > 10
    difference = arms[0] - arms[1]
    assert difference.interval.low == pytest.approx(1) == difference.interval.high
    both = mean_of(arms)  # as of two budgets, of which the larger contains the smaller
    assert both.interval.high - both.interval.low > 10 and len(both.repeats) == 1
