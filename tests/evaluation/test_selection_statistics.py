"""Spearman over runs: scipy's numbers, an alpha that never saw the run it ranks, and no credit for length alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lejepa_med.evaluation import selection_statistics as statistics
from lejepa_med.evaluation.selection_statistics import (
    ALPHAS,
    DRAWS,
    agreement,
    best_alphas,
    correlate,
    correlate_left_out,
    left_out_positions,
    rank_matrix,
    spearman,
)


def one(number: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((1, number)), np.zeros(number, dtype=np.int64)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3)), min_size=3, max_size=12))
def test_counts_are_repeated_values_ties_and_all(rows: list[tuple[int, int, int]]) -> None:
    x, y, counts = np.array(rows, dtype=float).T
    repeated = np.repeat(x, counts.astype(int)), np.repeat(y, counts.astype(int))
    found = spearman(x, y, counts[None], np.zeros(len(x), dtype=np.int64))[0]
    if all(len(set(side.tolist())) > 1 for side in repeated):
        assert found == pytest.approx(spearmanr(*repeated).statistic, abs=1e-12)
    else:
        assert math.isnan(found)


def test_known_value() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)) with d = (0, 1, 1, 0, 0, 0): 1 - 12 / 210."""
    found = correlate(np.array([1.0, 2, 3, 4, 5, 6]), np.array([10.0, 30, 20, 40, 50, 60]))
    assert found.value == pytest.approx(1 - 12 / 210)
    assert found.low < found.value <= found.high <= 1
    assert found.runs == 6


def test_rank_matrix_stays_within_groups() -> None:
    ranks = rank_matrix(np.array([3.0, 1.0, 2.0, 9.0]), np.array([0, 0, 1, 1])) @ np.ones(4) + 0.5
    assert ranks.tolist() == [2.0, 1.0, 1.0, 2.0]


def test_few_runs_have_no_interval_and_say_why() -> None:
    five = correlate(np.arange(5.0), np.arange(5.0))
    assert five.value == 1 and math.isnan(five.low) and math.isnan(five.high)
    assert "5 runs are too few" in five.note and "6 are needed" in five.note
    two = correlate(np.arange(2.0), np.arange(2.0))
    assert math.isnan(two.value) and "fewer than 3 runs" in two.note
    lonely = correlate(np.array([0.0] * 6 + [1.0]), np.arange(7.0))  # 34 % of the draws miss the only other run
    assert lonely.value > 0.6 and math.isnan(lonely.low) and "so few of these runs differ" in lonely.note
    same = correlate(np.ones(8), np.arange(8.0))
    assert math.isnan(same.value) and "does not differ" in same.note


def overfitted_case() -> np.ndarray:
    """Scores by alpha of five runs at lambda .2 that any alpha orders, and of one at .02 that needs alpha > .745.

    The last run's loss is lowest and its result worst, so only 0.9 / .02^alpha > 5 / .2^alpha puts it last.
    """
    lam = np.array([0.2, 0.2, 0.2, 0.2, 0.2, 0.02])
    total = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 0.9])
    return np.stack([total / lam**alpha for alpha in ALPHAS])


def test_same_runs_alpha_is_perfect_where_left_out_alpha_is_not() -> None:
    scores = overfitted_case()
    results = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    counts, groups = one(6)
    rho = agreement(scores, results, counts, groups)
    assert rho.max() == pytest.approx(1.0)
    assert ALPHAS[best_alphas(rho)[0]] == 0.75
    positions, chosen = left_out_positions(scores, results, counts, groups)
    # Without the last run all alphas are equally good, and the nearest to the paper's is taken.
    assert ALPHAS[chosen[0, 5]] == 0.4
    assert [ALPHAS[number] for number in chosen[0, :5]] != [0.4] * 5
    left_out = correlate_left_out(scores, results)
    assert left_out.value < 0.9
    assert left_out.value == pytest.approx(spearmanr(positions[0], results).statistic)


def test_a_run_never_votes_for_the_alpha_that_ranks_it() -> None:
    generator = np.random.default_rng(0)
    lam, total, results = generator.choice([0.02, 0.1, 0.3], 9), generator.uniform(1, 2, 9), generator.normal(size=9)
    scores = np.stack([total / lam**alpha for alpha in ALPHAS])
    counts = generator.multinomial(9, np.full(9, 1 / 9), size=50).astype(float)  # with repeats: all copies are left out
    groups = np.zeros(9, dtype=np.int64)
    _, before = left_out_positions(scores, results, counts, groups)
    for run in range(9):
        changed = results.copy()
        changed[run] += 100 * (-1) ** run
        _, after = left_out_positions(scores, changed, counts, groups)
        assert (before[:, run] == after[:, run]).all()


@pytest.mark.parametrize("lengths", [1, 3])
def test_leaving_out_is_counting_without(monkeypatch: pytest.MonkeyPatch, lengths: int) -> None:
    """The sums of all runs at once are those of one run after another, ties, repeats and absent runs included."""
    calls: list[int] = []
    literal = statistics.rank_correlation
    monkeypatch.setattr(statistics, "rank_correlation", lambda *args: calls.append(0) or literal(*args))
    generator = np.random.default_rng(1)
    lam, total = generator.choice([0.02, 0.1, 0.3], 14), generator.integers(2, 7, 14)
    results, groups = generator.integers(0, 6, 14).astype(float), generator.integers(0, lengths, 14)
    scores = np.stack([total / lam**alpha for alpha in ALPHAS])
    counts = generator.multinomial(14, np.full(14, 1 / 14), size=60).astype(float)
    counts[0] = 0
    positions, chosen = left_out_positions(scores, results, counts, groups)
    assert len(calls) <= len(ALPHAS) * lengths, "not once for every run"
    for run in range(14):
        others = counts.copy()
        others[:, run] = 0
        expected = best_alphas(agreement(scores, results, others, groups))
        assert (chosen[:, run] == expected).all()
        rows = [rank_matrix(-scores[alpha], groups)[run] @ count for alpha, count in zip(expected, counts, strict=True)]
        assert positions[:, run] == pytest.approx(rows)


def test_alpha_changes_nothing_at_one_lambda() -> None:
    total, results = np.arange(1.0, 8), -np.arange(1.0, 8)
    scores = np.stack([total / 0.05**alpha for alpha in ALPHAS])
    counts, groups = one(7)
    assert (left_out_positions(scores, results, counts, groups)[1] == ALPHAS.index(0.4)).all()
    assert correlate_left_out(scores, results).value == pytest.approx(1.0)


def test_length_alone_is_no_correlation_within_equal_lengths() -> None:
    generator = np.random.default_rng(3)
    lengths = np.repeat([100, 1000, 10000], 40)
    total = 1 / np.log10(lengths) + 1e-3 * generator.normal(size=120)
    results = np.log10(lengths) + 1e-3 * generator.normal(size=120)
    overall, within = correlate(-total, results), correlate(-total, results, lengths.tolist())
    assert overall.low > 0.85
    assert within.low < 0 < within.high
    assert abs(within.value) < 0.2
    per_length = [spearmanr(-total[lengths == n], results[lengths == n]).statistic for n in (100, 1000, 10000)]
    assert within.value == pytest.approx(np.mean(per_length))


def test_lengths_with_few_runs_are_left_out() -> None:
    values, results = np.arange(8.0), np.arange(8.0)
    within = correlate(values, results, [1, 1, 1, 2, 2, 2, 3, 3])
    assert (within.value, within.runs) == (1.0, 6)
    none = correlate(values, results, list(range(8)))
    assert math.isnan(none.value) and none.runs == 0 and "of one length" in none.note


@pytest.mark.parametrize("lengths", [None, [1, 1, 1, 2, 2, 2]])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_order_has_no_interval(lengths: list[int] | None, sign: int) -> None:
    """Every draw repeats it: the interval would be 1 to 1, whatever the correlation of other runs."""
    found = correlate(np.arange(6.0), sign * np.arange(6.0) ** 2, lengths)
    assert found.value == pytest.approx(sign) and math.isnan(found.low) and math.isnan(found.high)
    assert "perfect order" in found.note


@pytest.mark.parametrize("lengths", [None, [1, 1, 1, 2, 2, 2]])
def test_few_runs_claim_too_much_as_rarely_as_it_says(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int] | None
) -> None:
    """Of 200 samples of 6 runs, few have a lower end above the correlation of the population, here about .92."""
    monkeypatch.setattr(statistics, "DRAWS", 200)
    generator = np.random.default_rng(5)
    above = 0
    for _ in range(200):
        values = generator.normal(size=6)
        above += correlate(values, values + 0.4 * generator.normal(size=6), lengths).low > 0.92
    assert above <= 0.05 * 200


def test_interval_holds_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 samples of 12 runs, about 95 % of the intervals hold the correlation of the population, here .786."""
    monkeypatch.setattr(statistics, "DRAWS", 300)
    generator = np.random.default_rng(5)
    x = generator.normal(size=400_000)
    truth = spearmanr(x, x + 0.75 * generator.normal(size=400_000)).statistic
    held = lower = 0
    for _ in range(200):
        values = generator.normal(size=12)
        found = correlate(values, values + 0.75 * generator.normal(size=12))
        held += found.low <= truth <= found.high
        lower += found.low <= truth
    assert held >= 0.91 * 200
    assert lower >= 0.95 * 200


def test_draws_stay_in_their_groups() -> None:
    counts = statistics._draws_of_runs(np.array([0, 0, 0, 7, 7]))
    assert counts.shape == (DRAWS, 5)
    assert (counts[:, :3].sum(1) == 3).all() and (counts[:, 3:].sum(1) == 2).all()
