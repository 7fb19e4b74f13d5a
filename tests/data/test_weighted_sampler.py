"""Batches hold all kinds equally often and no patient twice; with weights, studies count."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lejepa_med.config import PretrainConfig
from lejepa_med.data.dataset import Item, ListSource
from lejepa_med.data.sampler import StepSampler
from lejepa_med.data.training_source import build_sampler
from lejepa_med.data.weighted_sampler import WeightedSampler, systematic
from lejepa_med.randomness import generator

ITEM = Item(np.zeros((1, 2, 2), np.uint8), (1.0, 1.0), False, "key")


def source(patients: list[str], studies: list[str] | None = None, groups: list[str] | None = None) -> ListSource:
    made = ListSource([ITEM] * len(patients), patients)
    made.studies = studies or [str(number) for number in range(len(patients))]
    made.groups = groups or made.groups
    return made


def items(sampler: WeightedSampler, steps: int) -> list[int]:
    return [item for step in range(steps) for item in sampler.batch(step)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3)), min_size=1, max_size=50), st.integers(1, 12))
def test_no_patient_twice_where_there_are_enough(rows: list[tuple[int, int]], size: int) -> None:
    patients, kinds = [f"p{patient}" for patient, _ in rows], [kind for _, kind in rows]
    for by_study in (False, True):
        sampler = WeightedSampler(source(patients), size, 1, kinds, by_study)
        batch = sampler.batch(3)
        assert len(batch) == size
        assert batch == WeightedSampler(source(patients), size, 1, kinds, by_study).batch(3)
        met = Counter(patients[item] for item in batch)
        assert max(met.values()) - min(met.values() if len(met) == len(set(patients)) else [0]) <= 1
        if len(set(patients)) >= size:
            assert max(met.values()) == 1


def test_rare_kinds_are_in_every_batch() -> None:
    kinds = ["t1"] * 80 + ["flair"] * 12 + ["ct"] * 4
    sampler = WeightedSampler(source([f"p{number}" for number in range(96)]), 12, 0, kinds)
    for step in range(50):
        assert Counter(kinds[item] for item in sampler.batch(step)) == {"t1": 4, "flair": 4, "ct": 4}
    seen = Counter(items(sampler, 400))
    for first, last in ((0, 80), (80, 92), (92, 96)):
        counts = [seen[item] for item in range(first, last)]
        assert stats.chisquare(counts).pvalue > 1e-3 if last - first > 4 else set(counts) == {400}


def test_what_does_not_divide_goes_to_all_kinds_alike() -> None:
    kinds = ["a"] * 20 + ["b"] * 30 + ["c"] * 40
    sampler = WeightedSampler(source([f"p{number}" for number in range(90)]), 8, 0, kinds)
    counts = [Counter(kinds[item] for item in sampler.batch(step)) for step in range(600)]
    assert {number for count in counts for number in count.values()} <= {2, 3, 4}
    total = sum(counts, Counter[str]())
    assert stats.chisquare(list(total.values())).pvalue > 1e-3
    assert sum(total.values()) == 4800


def test_a_kind_with_few_patients_leaves_room_to_the_others() -> None:
    kinds = ["rare"] * 2 + ["often"] * 20
    sampler = WeightedSampler(source([f"p{number}" for number in range(22)]), 10, 0, kinds)
    assert all(Counter(kinds[item] for item in sampler.batch(step)) == {"rare": 2, "often": 8} for step in range(20))


def test_patients_with_all_kinds_are_drawn_alike() -> None:
    patients, kinds = [f"p{number // 2}" for number in range(48)], ["t1", "flair"] * 24
    sampler = WeightedSampler(source(patients), 8, 0, kinds)
    seen = items(sampler, 1200)
    assert Counter(kinds[item] for item in seen) == {"t1": 4800, "flair": 4800}
    assert stats.chisquare(list(Counter(patients[item] for item in seen).values())).pvalue > 1e-3
    assert stats.chisquare(list(Counter(seen).values())).pvalue > 1e-3


def test_positions_of_a_batch_see_all_kinds() -> None:
    """Micro-batches and the parts of ranks are parts of a batch in order."""
    kinds = ["a"] * 10 + ["b"] * 10
    sampler = WeightedSampler(source([f"p{number}" for number in range(20)]), 4, 0, kinds)
    first = Counter(kinds[sampler.batch(step)[0]] for step in range(1000))
    assert stats.chisquare(list(first.values())).pvalue > 1e-3


def test_patients_are_drawn_by_their_studies() -> None:
    """One patient has six studies, one of them with five series; the others have one."""
    patients = ["many"] * 10 + [f"p{number}" for number in range(18)]
    studies = ["s0"] * 5 + [f"s{number}" for number in range(1, 6)] + [f"x{number}" for number in range(18)]
    sampler = WeightedSampler(source(patients, studies), 2, 0, [0] * 28, by_study=True)
    seen = items(sampler, 3000)
    expected = [6000 * 6 / 24] + [6000 / 24] * 18
    counts = Counter(patients[item] for item in seen)
    assert stats.chisquare([counts[name] for name in dict.fromkeys(patients)], expected).pvalue > 1e-3
    of_many = Counter(studies[item] for item in seen if patients[item] == "many")
    assert stats.chisquare(list(of_many.values())).pvalue > 1e-3
    assert stats.chisquare([Counter(seen)[item] for item in range(5)]).pvalue > 1e-3


def test_by_default_many_studies_are_no_more() -> None:
    patients = ["many"] * 9 + [f"p{number}" for number in range(9)]
    for sampler in (StepSampler(patients, 2, 0), WeightedSampler(source(patients), 2, 0, [0] * 18)):
        counts = Counter(patients[item] for step in range(2000) for item in sampler.batch(step))
        assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_near_duplicates_count_once() -> None:
    sampler = WeightedSampler(source(["a"] * 7, ["s"] * 7, ["one"] * 6 + ["other"]), 1, 0, [0] * 7, by_study=True)
    seen = Counter(items(sampler, 3000))
    assert stats.binomtest(seen[6], 3000, 0.5).pvalue > 1e-3


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(0, 30), st.integers(0, 1000))
def test_systematic_sampling_takes_different_ones(weights: list[int], count: int, seed: int) -> None:
    count = min(count, len(weights))
    picked = systematic(torch.tensor(weights, dtype=torch.float64), count, generator("t", seed)).tolist()
    assert len(picked) == len(set(picked)) == count


def test_systematic_sampling_has_the_probabilities_it_says() -> None:
    weights = torch.tensor([1, 2, 3, 4, 30], dtype=torch.float64)  # the last is certain, the others share what is left
    seen = Counter(p for n in range(2000) for p in systematic(weights, 3, generator("t", n)).tolist())
    assert seen[4] == 2000
    for place, share in enumerate((0.2, 0.4, 0.6, 0.8)):
        assert stats.binomtest(seen[place], 2000, share).pvalue > 1e-3


@pytest.mark.parametrize(
    ("balance", "weight", "kinds"),
    [("none", "equal", None), ("modality", "equal", 2), ("sequence", "equal", 3), ("none", "studies", 1)],
)
def test_the_config_chooses(balance: str, weight: str, kinds: int | None) -> None:
    config = PretrainConfig.model_validate({"data": {"balance": balance, "patient_weight": weight}})
    made = source([f"p{number}" for number in range(6)])
    made.kinds = [("mri", "t1"), ("mri", "t1"), ("mri", "flair"), ("ct", ""), ("ct", ""), ("ct", "")]
    sampler = build_sampler(config, made)
    if kinds is None:
        assert isinstance(sampler, StepSampler)
    else:
        assert isinstance(sampler, WeightedSampler)
        assert len(sampler._members) == kinds


def of_kinds(rows: list[tuple[str, str]], size: int, steps: int = 50) -> dict[str, float]:
    """Mean number of each kind in a batch."""
    kinds = [kind for _, kind in rows]
    sampler = WeightedSampler(source([patient for patient, _ in rows]), size, 0, kinds)
    return {kind: count / steps for kind, count in Counter(kinds[item] for item in items(sampler, steps)).items()}


@pytest.mark.parametrize("patients", [10, 40, 60, 100])
def test_kinds_that_all_patients_have_share_a_batch_equally(patients: int) -> None:
    rows = [(f"p{number}", kind) for number in range(patients) for kind in "abcd"]
    assert of_kinds(rows, 64) == {"a": 16, "b": 16, "c": 16, "d": 16}


def test_kinds_of_the_same_few_patients_do_not_starve_each_other() -> None:
    few = [(f"p{number}", kind) for number in range(10) for kind in ("ct", "pet")]
    assert of_kinds([*few, *((f"m{number}", "mri") for number in range(100))], 30) == {"ct": 5, "pet": 5, "mri": 20}
