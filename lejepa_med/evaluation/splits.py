"""Who tests and who trains: patients, never rows, and label budgets that grow by adding labels."""

from __future__ import annotations

import hashlib
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
    """Sample numbers of a `LabelledSet`. `strata` [training sample, stratum] says what a budget counts a sample for:
    its class or quintile; multilabel: the value of each of its labels; segmentation: itself."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    strata: NDArray[np.bool_]

    @property
    def smallest_stratum(self) -> int:
        """Training samples of the rarest class."""
        return int(self.strata.sum(0).min())


def split_patients(labelled: LabelledSet, holdout: HoldoutConfig) -> Split:
    """Training and test samples of a task: the official split if it has one (`val` is left aside), else by the same
    rule that keeps test patients out of pretraining.

    Raises:
        DataError: a side is empty, or has one class only.
    """
    if labelled.sides is not None:
        sides = np.asarray(labelled.sides)
        train, test = np.flatnonzero(sides == "train"), np.flatnonzero(sides == "test")
        remedy = "check the split column, or add labels"
    else:
        held_out = is_held_out(labelled.groups, holdout.test_fraction, holdout.seed)
        trains = ~held_out
        if labelled.sites is not None:
            tested = _test_sites(labelled, holdout)
            held_out, trains = held_out & tested, ~tested
        train, test = np.flatnonzero(trains), np.flatnonzero(held_out)
        remedy = f"change holdout.test_fraction ({holdout.test_fraction}) or holdout.seed, or add labels" + (
            " of more sites" if labelled.sites is not None else ""
        )
    for name, rows in (("training", train), ("test", test)):
        if not _can_be_told_apart(labelled, rows):
            patients = len({labelled.groups[row] for row in rows})
            what = "of one class only" if len(rows) else "none"
            raise DataError(f"task {labelled.task}: {patients} {name} patients, {what}; {remedy}")
    return Split(train, test, membership(labelled, train))


def _can_be_told_apart(labelled: LabelledSet, rows: NDArray[np.int64]) -> bool:
    target = labelled.target[rows]
    if labelled.kind == "segmentation":
        return len(rows) > 0
    if labelled.kind == "multilabel":
        return bool(((target == 0).any(0) & (target == 1).any(0)).any())
    return len(np.unique(target)) > 1


def _test_sites(labelled: LabelledSet, holdout: HoldoutConfig) -> NDArray[np.bool_]:
    """Samples of the sites that test: sites in the order of a hash, until they hold `test_fraction` of the patients."""
    assert labelled.sites is not None
    site_of = dict(zip(labelled.groups, labelled.sites, strict=True))
    names, patients = np.unique(list(site_of.values()), return_counts=True)
    order = np.argsort([hashlib.sha256(f"{holdout.seed} {name}".encode()).hexdigest() for name in names])
    before = np.cumsum(patients[order]) - patients[order]
    chosen = set(names[order][before < holdout.test_fraction * patients.sum()])
    return np.array([site in chosen for site in labelled.sites], dtype=bool)


def strata_of(labelled: LabelledSet, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of every sample, or its quintile among these; numbered without gaps. Multilabel: its set of labels."""
    target = labelled.target[rows]
    if labelled.kind == "regression":
        edges = np.quantile(target, np.arange(1, BINS) / BINS)
        target = np.searchsorted(edges, target, side="left")
    if labelled.kind == "multilabel":
        return np.unique(np.nan_to_num(target, nan=2.0), axis=0, return_inverse=True)[1].ravel().astype(np.int64)
    return np.unique(target, return_inverse=True)[1].astype(np.int64)


def membership(labelled: LabelledSet, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """`[sample, stratum]`, see `Split.strata`. A label that has one value only among these samples is not counted."""
    if labelled.kind == "multilabel":
        target = labelled.target[rows]
        usable = (target == 0).any(0) & (target == 1).any(0)
        return np.concatenate([target[:, usable] == 0, target[:, usable] == 1], axis=1)
    strata = strata_of(labelled, rows)
    return np.asarray(strata[:, None] == np.unique(strata), dtype=bool)


def fitting_budgets(split: Split, budgets: Sequence[int]) -> list[Budget]:
    """The budgets that every class can serve and that leave something out, ascending; then "all"."""
    smallest, wanted = split.smallest_stratum, sorted(set(budgets))
    disjoint = split.strata.sum() == len(split.train)
    leaves_out = split.strata.shape[1] if disjoint else 1
    fitting: list[Budget] = [b for b in wanted if b <= smallest and b * leaves_out < len(split.train)]
    return [*fitting, "all"]


def labelled_subset(split: Split, groups: Sequence[str], budget: Budget, seed: int) -> NDArray[np.int64]:
    """Samples of the labelled subset: `budget` per stratum. With one seed, larger budgets contain smaller ones.

    Within a class every patient gives one sample before any gives a second one. Multilabel: in `budget` rounds, the
    rarest value of a label first, each that has fewer samples than rounds so far gets one more.
    """
    if budget == "all":
        return split.train
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(np.flatnonzero(member)) for member in split.strata.T]
    turns = [iter(_in_turn(order, split, groups)) for order in orders]
    counts, chosen = np.zeros(len(turns), dtype=np.int64), np.zeros(len(split.train), dtype=bool)
    by_rarity = np.argsort(split.strata.sum(0), kind="stable")
    for round_ in range(1, budget + 1):
        for stratum in by_rarity:
            if counts[stratum] < round_:
                added = next(row for row in turns[stratum] if not chosen[row])
                chosen[added] = True
                counts += split.strata[added]
    return split.train[chosen]


def _in_turn(rows: NDArray[np.int64], split: Split, groups: Sequence[str]) -> NDArray[np.int64]:
    """These positions of `split.train`, the first sample of every patient before any second one."""
    seen: dict[str, int] = {}
    turn = []
    for row in rows:
        group = groups[split.train[row]]
        turn.append(seen.get(group, 0))
        seen[group] = turn[-1] + 1
    return rows[np.argsort(turn, kind="stable")]


def leaked_patients(run_keys: Iterable[str], test_groups: Iterable[str]) -> set[str]:
    """Test patients (or series) that pretraining has seen."""
    return set(run_keys) & set(test_groups)
