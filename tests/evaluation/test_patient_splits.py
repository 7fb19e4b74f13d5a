"""Splits: patients stay whole, budgets grow by adding labels, and nothing crosses to the test side."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lejepa_med.config.pretraining import HoldoutConfig
from lejepa_med.errors import DataError
from lejepa_med.evaluation.labels import LabelledSet
from lejepa_med.evaluation.splits import (
    fitting_budgets,
    labelled_subset,
    leaked_patients,
    split_patients,
)


def labelled_set(patients: int, per_patient: int, classes: int, seed: int = 0) -> LabelledSet:
    generator = np.random.default_rng(seed)
    groups = tuple(f"p{number}" for number in np.repeat(np.arange(patients), per_patient))
    table = pd.DataFrame({"series_key": [f"s{row}" for row in range(len(groups))]})
    if classes:
        target = np.repeat(np.arange(patients) % classes, per_patient).astype(np.int64)
        return LabelledSet(
            "t", "classification", table, target, tuple("abcdef"[:classes]), groups, 0, 0, np.arange(len(groups))
        )
    return LabelledSet(
        "t", "regression", table, generator.normal(size=len(groups)), (), groups, 0, 0, np.arange(len(groups))
    )


@settings(max_examples=25, deadline=None)
@given(per_patient=st.integers(1, 3), classes=st.sampled_from([0, 2, 3]), seed=st.integers(0, 100))
def test_patients_are_never_split_and_budgets_are_nested(per_patient: int, classes: int, seed: int) -> None:
    labelled = labelled_set(80, per_patient, classes)
    split = split_patients(labelled, HoldoutConfig(test_fraction=0.4, seed=seed))
    sides = [{labelled.groups[row] for row in rows} for rows in (split.train, split.test)]
    assert not sides[0] & sides[1]
    assert sorted([*split.train, *split.test]) == list(range(len(labelled)))
    strata = dict(zip(split.train.tolist(), split.strata.argmax(1).tolist(), strict=True))
    smaller: set[int] = set()
    for budget in fitting_budgets(split, (5, 1, 2, 10**6)):
        subset = labelled_subset(split, labelled.groups, budget, seed)
        assert smaller < set(subset.tolist()) <= set(split.train.tolist())
        smaller = set(subset.tolist())
        if budget != "all":
            assert set(np.bincount([strata[row] for row in subset])) == {budget}
    assert smaller == set(split.train.tolist())


def test_budgets_that_do_not_fit_are_left_out() -> None:
    labelled = labelled_set(60, 1, 2)
    split = split_patients(labelled, HoldoutConfig(test_fraction=0.3, seed=0))
    smallest = split.smallest_stratum
    assert fitting_budgets(split, (1, smallest, smallest + 1, 1000))[-1] == "all"
    assert smallest + 1 not in fitting_budgets(split, (1, smallest, smallest + 1))


def test_a_budget_prefers_new_patients() -> None:
    labelled = labelled_set(40, 3, 2)
    split = split_patients(labelled, HoldoutConfig(test_fraction=0.3, seed=0))
    chosen = labelled_subset(split, labelled.groups, 5, seed=0)
    assert len({labelled.groups[row] for row in chosen}) == 10


def test_seeds_draw_different_subsets() -> None:
    labelled = labelled_set(60, 1, 2)
    split = split_patients(labelled, HoldoutConfig(test_fraction=0.3, seed=0))
    drawn = {tuple(labelled_subset(split, labelled.groups, 2, seed)) for seed in range(5)}
    assert len(drawn) == 5


def test_a_side_without_patients_is_an_error() -> None:
    with pytest.raises(DataError, match=r"task t: 0 test patients, none; change holdout\.test_fraction"):
        split_patients(labelled_set(20, 1, 2), HoldoutConfig(test_fraction=0.0))


def test_leaked_patients() -> None:
    assert leaked_patients(["a", "b", "c"], ["c", "d"]) == {"c"}
