"""Intervals by drawing patients with replacement (Efron 1979), the same draws for both sides of a comparison.

The predictions of several label seeds on the same test patients are scored per seed and averaged within each draw. An
interval speaks about other test patients, other draws of the labels and, where an arm has several pretrainings, other
runs: what drawing these adds is kept beside the draws of patients (`Repeats`).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lejepa_med.evaluation.metrics import Array, Metric

_VALUES_PER_CHUNK = 4_000_000
DRAWS = 2000
LABEL_DRAWS = "draws of the labels"
"""Repeats that are the same in every arm: with one seed all train on the same labels."""
MIN_PATIENTS = 10
"""Test patients below which no interval is given."""
_UNDEFINED = 0.01
"""Share of draws without a value from which on none is given: some class has a handful of patients."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def within(self, low: float, high: float) -> Interval:
        """Its ends cut where no value can be, beyond which the normal part that stands for repeats may reach."""
        return Interval(self.value, float(np.clip(self.low, low, high)), float(np.clip(self.high, low, high)))


@dataclass(frozen=True)
class Repeats:
    """What drawing repeats adds to each draw of patients, and its degrees of freedom.

    `of` names what was repeated: an arm's pretraining, or `LABEL_DRAWS`, which all arms share.
    """

    deviation: Array
    freedom: int
    of: str = ""


@dataclass(frozen=True)
class Drawn:
    """A statistic: its value, and what it is on every draw of patients (nothing with too few patients).

    Statistics of the same patients and seed share their draws: sums and differences are those of paired values.
    `repeats`: one for each thing in it that was repeated.
    """

    value: float
    draws: Array
    repeats: tuple[Repeats, ...] = ()

    def __sub__(self, other: Drawn) -> Drawn:
        return mean_of((self, other), (1.0, -1.0))

    @cached_property
    def _finite(self) -> tuple[Array, list[Array]]:
        """Draws of patients that have a value, and what each kind of repeats adds to them."""
        finite = np.isfinite(self.draws)
        for one in self.repeats:
            finite &= np.isfinite(one.deviation)
        return self.draws[finite], [one.deviation[finite] for one in self.repeats]

    def usable(self, level: float = 0.05) -> Array:
        """Draws of patients and repeats that have a value, for an interval that misses with probability `level`.

        Few repeats know their own spread badly: with variances V of patients and V_i of repeats of d_i degrees of
        freedom, the whole has (V + sum V_i)^2 / sum(V_i^2 / d_i) of them (Satterthwaite 1946), and deviations of
        repeats are stretched until it is as wide as Student's t asks for.
        """
        patients, parts = self._finite
        spreads = np.array([part.var() for part in parts]) if len(patients) else np.zeros(0)
        own = float(spreads.sum())
        if own <= 1e-18:
            return patients
        total = own + float(patients.var())
        freedom = total**2 / float((spreads**2 / [one.freedom for one in self.repeats]).sum())
        ratio = stats.t.ppf(1 - level / 2, freedom) / stats.norm.ppf(1 - level / 2)
        stretch = math.sqrt((ratio**2 * total - (total - own)) / own)
        return np.asarray(patients + stretch * np.sum(parts, axis=0))

    @property
    def centred(self) -> Drawn:
        """The same spread around the value, for a statistic that drawing with replacement biases."""
        if not np.isfinite(self.draws).any():
            return self
        return replace(self, draws=self.draws + (self.value - np.nanmean(self.draws)))

    @property
    def interval(self) -> Interval:
        """From the 2.5th to the 97.5th percentile of the draws that have a value."""
        return _interval(self.value, self.usable())

    @property
    def p(self) -> float:
        """Two-sided: twice the share of draws on the rarer side of 0, of B + 1 with the data themselves; at most 1.

        Of few repeats: the level whose interval just reaches 0, since the tails of Student's t are longer than those
        of draws that were stretched for another level. NaN where there are no draws.
        """
        if not len(self._finite[0]):
            return float("nan")
        if not self.repeats:
            return _tails(self.usable())
        low, high = 2 / (len(self._finite[0]) + 1), 1 - 1e-6
        if _tails(self.usable(low)) <= low:
            return low
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if _tails(self.usable(middle)) > middle else (low, middle)
        return min(1.0, high)


def draw_metric(
    truth: NDArray[np.generic],
    prediction: Array,
    groups: Sequence[str],
    metric: Metric,
    draws: int = DRAWS,
    seed: int = 0,
) -> Drawn:
    """A metric of one prediction; no draws with fewer than `MIN_PATIENTS` patients."""
    value = float(metric(truth, prediction, np.ones((1, len(truth))))[0])
    if len(set(groups)) < MIN_PATIENTS:
        return Drawn(value, np.empty(0))
    few = draws * len(groups) <= _VALUES_PER_CHUNK
    weights = (_kept_draws(tuple(groups), draws, seed),) if few else patient_draws(groups, draws, seed)
    found = np.concatenate([metric(truth, prediction, w) for w in weights])
    if np.isnan(found).mean() > _UNDEFINED:
        found = np.full_like(found, np.nan)
    return Drawn(value, found)


@lru_cache(maxsize=2)
def _kept_draws(groups: tuple[str, ...], draws: int, seed: int) -> Array:
    """The single piece of `patient_draws`: the next cell of a task asks for it again."""
    (piece,) = patient_draws(groups, draws, seed)
    piece.setflags(write=False)
    return piece


def mean_of(parts: Sequence[Drawn], weights: Sequence[float] | None = None) -> Drawn:
    """Their mean, or their sum with these weights, draw by draw; what they repeat in common is drawn once."""
    share = np.full(len(parts), 1 / len(parts)) if weights is None else np.asarray(weights)
    draws = np.stack([part.draws for part in parts])
    by_name: dict[str, list[tuple[float, Repeats]]] = defaultdict(list)
    for weight, part in zip(share.tolist(), parts, strict=True):
        for one in part.repeats:
            by_name[one.of].append((weight, one))
    repeats = tuple(
        Repeats(np.sum([weight * one.deviation for weight, one in same], 0), min(one.freedom for _, one in same), name)
        for name, same in by_name.items()
    )
    return Drawn(float(share @ [part.value for part in parts]), np.asarray(share @ draws), repeats)


def over_repeats(repeats: Mapping[str, Drawn], of: str) -> Drawn:
    """Mean over independent repeats (pretraining seeds, draws of labels) by name, drawing them as well as the patients.

    R repeats drawn from themselves give few different means, which vary too little. Instead each repeat's deviation is
    multiplied by a normal number (multiplier bootstrap), and their sum has the variance of a mean of R. The numbers
    belong to the repeat and to what is repeated (`of`): they are the same wherever both occur.
    """
    mean, count = mean_of(list(repeats.values())), len(repeats)
    if count == 1 or not len(mean.draws):
        return mean
    deviation = np.zeros_like(mean.draws)
    for name, repeat in repeats.items():
        seed = int(hashlib.sha256(f"{of}\n{name}".encode()).hexdigest()[:8], 16)
        deviation += np.random.default_rng(seed).normal(size=len(mean.draws)) * (repeat.draws - mean.draws)
    own = Repeats(deviation / math.sqrt(count * (count - 1)), count - 1, of)
    return Drawn(mean.value, mean.draws, (*mean.repeats, own))


def over_runs_and_labels(cells: Mapping[str, Mapping[int, Drawn]], arm: str) -> Drawn:
    """Mean over an arm's runs and the label seeds that all of them have, drawing both: `cells[run][seed]`.

    What a run and a seed do together counts in both, on the wide side.
    """
    seeds = next(iter(cells.values()))
    runs = {run: mean_of(list(of_seed.values())) for run, of_seed in cells.items()}
    labels = {str(seed): mean_of([of_seed[seed] for of_seed in cells.values()]) for seed in seeds}
    over_runs, over_labels = over_repeats(runs, arm), over_repeats(labels, LABEL_DRAWS)
    return replace(over_runs, repeats=over_runs.repeats + over_labels.repeats)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for being looked at together (Holm 1979); NaN stay, and do not count."""
    values = np.asarray(p, dtype=np.float64)
    adjusted, known = np.full(len(values), np.nan), np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * (len(order) - np.arange(len(order)))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return [float(value) for value in adjusted]


def patient_draws(groups: Sequence[str], draws: int, seed: int) -> Iterator[Array]:
    """How often each row counts when patients are drawn with replacement: pieces of `[draw, row]`."""
    patients, member = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    even = np.full(len(patients), 1 / len(patients))
    piece = max(1, min(draws, _VALUES_PER_CHUNK // len(member)))
    for start in range(0, draws, piece):
        counts = generator.multinomial(len(patients), even, size=min(piece, draws - start))
        yield counts[:, member].astype(np.float64)


def _tails(usable: Array) -> float:
    rarer = min((usable <= 0).sum(), (usable >= 0).sum())
    return min(1.0, 2 * float(rarer + 1) / (len(usable) + 1))


def _interval(value: float, usable: Array) -> Interval:
    if not len(usable):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(usable, [0.025, 0.975])
    return Interval(value, float(low), float(high))
