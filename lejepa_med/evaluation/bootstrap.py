"""Intervals by drawing patients with replacement (Efron 1979), the same draws for both sides of a comparison.

The predictions of several label seeds on the same test patients are scored per seed and averaged within each draw.
The interval speaks about test patients; the seeds' spread is inside the mean and is shown on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lejepa_med.evaluation.metrics import Array, Metric

_VALUES_PER_CHUNK = 4_000_000


MIN_PATIENTS = 10
"""Test patients below which no interval is given."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(
    truth: NDArray[np.generic],
    prediction: Sequence[Array],
    groups: Sequence[str],
    metric: Metric,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean metric over label seeds (`prediction`: one score array per seed) with its interval over patients.

    With fewer than `MIN_PATIENTS` patients the ends are NaN: so few cannot stand for others.
    """
    value = _mean_over_seeds(truth, prediction, metric, np.ones((1, len(truth))))[0]
    if len(set(groups)) < MIN_PATIENTS:
        return Interval(float(value), float("nan"), float("nan"))
    sample = [_mean_over_seeds(truth, prediction, metric, w) for w in patient_draws(groups, draws, seed)]
    return _interval(float(value), np.concatenate(sample))


def paired_bootstrap(
    truth: NDArray[np.generic],
    prediction_a: Sequence[Array],
    prediction_b: Sequence[Array],
    groups: Sequence[str],
    metric: Metric,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Metric of a minus metric of b, on the same draws of patients; as `bootstrap` below `MIN_PATIENTS`."""
    ones = np.ones((1, len(truth)))
    value = _mean_over_seeds(truth, prediction_a, metric, ones) - _mean_over_seeds(truth, prediction_b, metric, ones)
    if len(set(groups)) < MIN_PATIENTS:
        return Interval(float(value[0]), float("nan"), float("nan"))
    sample = [
        _mean_over_seeds(truth, prediction_a, metric, w) - _mean_over_seeds(truth, prediction_b, metric, w)
        for w in patient_draws(groups, draws, seed)
    ]
    return _interval(float(value[0]), np.concatenate(sample))


def patient_draws(groups: Sequence[str], draws: int, seed: int) -> Iterator[Array]:
    """How often each row counts when patients are drawn with replacement: pieces of `[draw, row]`."""
    patients, member = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    even = np.full(len(patients), 1 / len(patients))
    piece = max(1, min(draws, _VALUES_PER_CHUNK // len(member)))
    for start in range(0, draws, piece):
        counts = generator.multinomial(len(patients), even, size=min(piece, draws - start))
        yield counts[:, member].astype(np.float64)


def _mean_over_seeds(truth: NDArray[np.generic], predictions: Sequence[Array], metric: Metric, weights: Array) -> Array:
    return np.asarray(np.mean([metric(truth, prediction, weights) for prediction in predictions], axis=0))


def _interval(value: float, sample: Array) -> Interval:
    usable = sample[np.isfinite(sample)]
    if not len(usable):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(usable, [0.025, 0.975])
    return Interval(value, float(low), float(high))
