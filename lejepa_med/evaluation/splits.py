"""Who tests and who trains: patients, never rows, and label budgets that grow by adding labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lejepa_med.config.pretraining import HoldoutConfig
from lejepa_med.data.splits import is_held_out
from lejepa_med.errors import DataError
from lejepa_med.evaluation.labels import LabelledSet

Budget = int | Literal["all"]
BINS = 5
"""Regression: budgets count per quintile of the training targets."""


@dataclass(frozen=True)
class Split:
    """Row numbers of a `LabelledSet`; `strata` are the classes, or the quintiles, of the training rows."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    strata: NDArray[np.int64]

    @property
    def smallest_stratum(self) -> int:
        """Training rows of the rarest class."""
        return int(np.unique(self.strata, return_counts=True)[1].min())


def split_patients(labelled: LabelledSet, holdout: HoldoutConfig) -> Split:
    """Training and test rows of a task, by the same rule that keeps test patients out of pretraining.

    Raises:
        DataError: a side is empty, or has one class only.
    """
    held_out = is_held_out(labelled.groups, holdout.test_fraction, holdout.seed)
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    for name, rows in (("training", train), ("test", test)):
        if len(np.unique(labelled.target[rows])) < 2:
            patients = len({labelled.groups[row] for row in rows})
            what = "of one class only" if len(rows) else "none"
            raise DataError(
                f"task {labelled.task}: {patients} {name} patients, {what}; "
                f"change holdout.test_fraction ({holdout.test_fraction}) or holdout.seed, or add labels"
            )
    return Split(train, test, strata_of(labelled, train))


def strata_of(labelled: LabelledSet, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of every row, or the quintile among these rows; numbered without gaps."""
    target = labelled.target[rows]
    if labelled.kind == "regression":
        edges = np.quantile(target, np.arange(1, BINS) / BINS)
        target = np.searchsorted(edges, target, side="left")
    return np.unique(target, return_inverse=True)[1].astype(np.int64)


def fitting_budgets(split: Split, budgets: Sequence[int]) -> list[Budget]:
    """The budgets that every class can serve and that leave something out, ascending; then "all"."""
    sizes = np.unique(split.strata, return_counts=True)[1]
    fitting: list[Budget] = [b for b in sorted(set(budgets)) if b <= sizes.min() and b * len(sizes) < len(split.train)]
    return [*fitting, "all"]


def labelled_subset(split: Split, groups: Sequence[str], budget: Budget, seed: int) -> NDArray[np.int64]:
    """Rows of the labelled subset: `budget` per stratum. With one seed, larger budgets contain smaller ones.

    Within a class every patient gives one row before any gives a second one.
    """
    if budget == "all":
        return split.train
    generator = np.random.default_rng(seed)
    chosen = []
    for stratum in np.unique(split.strata):
        rows = generator.permutation(split.train[split.strata == stratum])
        seen: dict[str, int] = {}
        turn = []
        for row in rows:
            turn.append(seen.get(groups[row], 0))
            seen[groups[row]] = turn[-1] + 1
        chosen.append(rows[np.argsort(turn, kind="stable")][:budget])
    return np.sort(np.concatenate(chosen))


def leaked_patients(run_keys: Iterable[str], test_groups: Iterable[str]) -> set[str]:
    """Test patients (or series) that pretraining has seen."""
    return set(run_keys) & set(test_groups)
