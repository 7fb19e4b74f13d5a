"""How well a score ranks runs: Spearman's rho against a probe result, alpha chosen on other runs.

A score with a free exponent, `total / lam^alpha`, fits itself to the runs it is tested on. Leave-one-out: for run i,
alpha_i maximises rho on the other runs. Scores under different alphas have different scales, so what is kept of run i
is its *position*, its average rank among all runs under alpha_i. rho of these positions with the results is reported.

Everything is computed from counts: `counts[draw, run]` says how often a run is in a draw of the bootstrap, and the
average rank of run j is sum_k counts_k ([x_k < x_j] + [x_k = x_j] / 2), the same as ranking the repeated values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lejepa_med.config.selection import PAPER_ALPHA

Array = NDArray[np.float64]
Groups = NDArray[np.int64]
Statistic = Callable[[Array, Groups, Groups], Array]
"""Of counts `[draw, run]`, the numbers of the runs and their groups: one value per draw."""
ALPHAS = tuple(round(0.05 * number, 2) for number in range(21))
"""Exponents that are tried: 0 to 1 by .05."""
MIN_RUNS = 6
"""Runs below which no interval is given."""
MIN_GROUP = 3
"""Runs of one length below which they say nothing about order within it."""
DRAWS = 2000
MIN_DEFINED = 0.95
"""Share of draws that must have a correlation: the others' ends would speak of a chosen part of all draws."""


@dataclass(frozen=True)
class Correlation:
    """rho, its 95 % interval over runs (NaN where none is given), how many runs, and why there is no interval."""

    value: float
    low: float
    high: float
    runs: int
    note: str = ""


def rank_matrix(values: Array, groups: Groups) -> Array:
    """`[run, run]`: times counts gives each run's average rank (less 1/2) among the runs of its group."""
    same = groups[:, None] == groups[None, :]
    below, equal = values[None, :] < values[:, None], values[None, :] == values[:, None]
    return np.asarray(same * (below + 0.5 * equal), dtype=np.float64)


def rank_correlation(first: Array, second: Array, counts: Array, groups: Groups) -> Array:
    """Pearson's r of ranks `[draw, run]` within each group, averaged over groups by their runs: `[draw]`.

    With one group and ranks of values it is Spearman's rho. NaN where no group has two different ranks on both sides.
    """
    total, weight = np.zeros(len(counts)), np.zeros(len(counts))
    for group in np.unique(groups):
        inside = groups == group
        rho, number = _weighted_pearson(first[:, inside], second[:, inside], counts[:, inside])
        usable = np.isfinite(rho)
        total += np.where(usable, number * np.nan_to_num(rho), 0.0)
        weight += np.where(usable, number, 0.0)
    return np.asarray(np.divide(total, weight, out=np.full(len(counts), np.nan), where=weight > 0))


def _weighted_pearson(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    number = weights.sum(1)
    safe = np.maximum(number, 1.0)[:, None]
    x = x - (weights * x).sum(1, keepdims=True) / safe
    y = y - (weights * y).sum(1, keepdims=True) / safe
    product, spread = (weights * x * y).sum(1), np.sqrt((weights * x * x).sum(1) * (weights * y * y).sum(1))
    return np.divide(product, spread, out=np.full(len(x), np.nan), where=spread > 1e-9), number


def spearman(values: Array, results: Array, counts: Array, groups: Groups) -> Array:
    """rho of one value per run with the results, for every row of counts."""
    first, second = (counts @ rank_matrix(side, groups).T for side in (values, results))
    return rank_correlation(first, second, counts, groups)


def agreement(scores: Array, results: Array, counts: Array, groups: Groups) -> Array:
    """rho of each row of `scores` `[alpha, run]`, lowest first, with the results: `[alpha, draw]`."""
    return np.stack([spearman(-row, results, counts, groups) for row in scores])


def best_alphas(rho: Array) -> NDArray[np.int64]:
    """Row of the highest rho in each column; of equals the alpha nearest to the paper's.

    Where alpha changes nothing, nothing is thus chosen.
    """
    order = np.argsort([abs(alpha - PAPER_ALPHA) for alpha in ALPHAS], kind="stable")
    rounded = np.round(np.where(np.isfinite(rho), rho, -np.inf), 9)[order]
    return np.asarray(order[rounded.argmax(0)])


def left_out_positions(scores: Array, results: Array, counts: Array, groups: Groups) -> tuple[Array, NDArray[np.int64]]:
    """Rank of each run (high = low score) under the alpha that the others chose, and that alpha's row: `[draw, run]`.

    All copies of a run leave together: else a draw with repeats would choose alpha on the run that it ranks.
    """
    matrices, of_results = np.stack([rank_matrix(-row, groups) for row in scores]), rank_matrix(results, groups)
    rho = np.stack([_rho_without_each(matrix, of_results, counts, groups) for matrix in matrices])
    positions, chosen = np.zeros(counts.shape), np.zeros(counts.shape, dtype=np.int64)
    for run in range(counts.shape[1]):
        chosen[:, run] = best_alphas(rho[:, :, run])
        positions[:, run] = (matrices[chosen[:, run], run] * counts).sum(1)
    return positions, chosen


def _rho_without_each(first: Array, second: Array, counts: Array, groups: Groups) -> Array:
    """`rank_correlation` when all copies of a run have left, `[draw, run]`; rank matrices instead of ranks."""
    weighted, weight = np.zeros((2, *counts.shape))
    for group in np.unique(groups):
        inside = groups == group
        a, b, inner = first[np.ix_(inside, inside)], second[np.ix_(inside, inside)], counts[:, inside]
        everyone = rank_correlation(inner @ a.T, inner @ b.T, inner, groups[inside])[:, None]
        of_all, number = np.nan_to_num(everyone), inner.sum(1, keepdims=True)
        without, fewer = _pearson_without_each(a, b, inner), number - inner
        weighted[:, ~inside] += number * of_all
        weight[:, ~inside] += number * np.isfinite(everyone)
        weighted[:, inside] += fewer * np.nan_to_num(without)
        weight[:, inside] += fewer * np.isfinite(without)
    return np.asarray(np.divide(weighted, weight, out=np.full(counts.shape, np.nan), where=weight > 0))


def _pearson_without_each(first: Array, second: Array, counts: Array) -> Array:
    """Within one group. The ranks (less 1/2) of n values have the mean n / 2, ties or not, so of n runs that stay
    cov = sum x y - n^3 / 4, and all of it is sums of quarters: exact."""
    number = counts.sum(1, keepdims=True) - counts
    x, y, centre = counts @ first.T, counts @ second.T, number**3 / 4
    product = _products_without_each(first, x, second, y, counts) - centre
    spreads = [_products_without_each(m, ranks, m, ranks, counts) - centre for m, ranks in ((first, x), (second, y))]
    spread = np.sqrt(spreads[0] * spreads[1])
    return np.asarray(np.divide(product, spread, out=np.full(counts.shape, np.nan), where=spread > 1e-9))


def _products_without_each(first: Array, x: Array, second: Array, y: Array, counts: Array) -> Array:
    """sum_k c_k x'_k y'_k over the runs k that stay when run i leaves, for every i at once: `[draw, run]`.

    x'_k = x_k - c_i first_ki is the rank among those that stay; i itself has first_ii = 1/2.
    """
    mixed = (counts * x) @ second + (counts * y) @ first
    own = (x - counts / 2) * (y - counts / 2)
    return np.asarray(
        (counts * x * y).sum(1, keepdims=True) - counts * mixed + counts**2 * (counts @ (first * second)) - counts * own
    )


def correlate(values: Array, results: Array, lengths: Sequence[int] | None = None) -> Correlation:
    """rho of a value per run (higher = better) with the results; with `lengths`, among runs of equal length only."""

    def statistic(counts: Array, kept: Groups, groups: Groups) -> Array:
        return spearman(values[kept], results[kept], counts, groups)

    return _with_interval(statistic, len(results), lengths)


def correlate_left_out(scores: Array, results: Array, lengths: Sequence[int] | None = None) -> Correlation:
    """rho of the left-out positions with the results; alpha is chosen anew in every draw of the bootstrap.

    With `lengths` alpha is chosen, positions are counted and runs are drawn within equal lengths.
    """

    def statistic(counts: Array, kept: Groups, groups: Groups) -> Array:
        positions, _ = left_out_positions(scores[:, kept], results[kept], counts, groups)
        inner = _ranks_of_draws(positions, counts, groups)
        return rank_correlation(inner, counts @ rank_matrix(results[kept], groups).T, counts, groups)

    return _with_interval(statistic, len(results), lengths)


def _ranks_of_draws(values: Array, counts: Array, groups: Groups) -> Array:
    """Average ranks within groups of values that differ from draw to draw, `[draw, run]`."""
    return np.stack([rank_matrix(row, groups) @ count for row, count in zip(values, counts, strict=True)])


def _with_interval(statistic: Statistic, number: int, lengths: Sequence[int] | None) -> Correlation:
    """The statistic of all runs, and its percentile interval over draws of runs (inside their groups)."""
    groups = np.zeros(number, dtype=np.int64) if lengths is None else np.asarray(lengths, dtype=np.int64)
    sizes = {group: int((groups == group).sum()) for group in set(groups.tolist())}
    kept = np.flatnonzero([sizes[group] >= MIN_GROUP for group in groups.tolist()])
    nothing = float("nan")
    if not len(kept):
        where = "" if lengths is None else " of one length"
        return Correlation(nothing, nothing, nothing, 0, f"fewer than {MIN_GROUP} runs{where}")
    groups = groups[kept]
    value = float(statistic(np.ones((1, len(kept))), kept, groups)[0])
    if not np.isfinite(value):
        return Correlation(value, nothing, nothing, len(kept), "does not differ between these runs")
    if len(kept) < MIN_RUNS:
        note = f"no interval: {len(kept)} runs are too few to stand for others ({MIN_RUNS} are needed)"
        return Correlation(value, nothing, nothing, len(kept), note)
    with threadpool_limits(limits=1, user_api="blas"):  # products this small only wait for each other
        sample = statistic(_draws_of_runs(groups), kept, groups)
    usable = sample[np.isfinite(sample)]
    if len(usable) < MIN_DEFINED * DRAWS:
        note = "no interval: so few of these runs differ that many draws of them have no correlation"
        return Correlation(value, nothing, nothing, len(kept), note)
    low, high = np.quantile(usable, [0.025, 0.975])
    if high - low < 1e-9:
        note = "no interval: these runs are in perfect order, and so is every draw of them"
        return Correlation(value, nothing, nothing, len(kept), note)
    return Correlation(value, float(low), float(high), len(kept))


def _draws_of_runs(groups: Groups, seed: int = 0) -> Array:
    """How often each run is drawn, with replacement inside its group: `[draw, run]`."""
    generator = np.random.default_rng(seed)
    counts = np.zeros((DRAWS, len(groups)))
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        counts[:, inside] = generator.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=DRAWS)
    return counts
