"""Batches are a function of (seed, step); patients meet once; crops come from where they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lejepa_med.data.cache import Cache, entry_name, entry_path, file_digest, write_entry, write_settings
from lejepa_med.data.dataset import (
    CacheSource,
    DatasetSource,
    Item,
    ListSource,
    StepDataset,
    Subset,
    base_crop,
    split_monitored,
)
from lejepa_med.data.pretraining_record import is_complete, record_of, require_same_series, write_record
from lejepa_med.data.sampler import StepSampler
from lejepa_med.errors import DataError
from lejepa_med.randomness import generator
from lejepa_med.spec import PreprocessSpec


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.integers(1, 12), st.integers(0, 50), st.integers(0, 9))
def test_batch_is_a_function_of_seed_and_step(groups: list[int], size: int, step: int, seed: int) -> None:
    patients = [f"p{group}" for group in groups]
    batch = StepSampler(patients, size, seed).batch(step)
    assert len(batch) == size
    assert batch == StepSampler(patients, size, seed).batch(step)
    met = Counter(patients[item] for item in batch)
    assert max(met.values()) - min(met.values() if len(met) == len(set(patients)) else [0]) <= 1
    if len(set(patients)) >= size:
        assert max(met.values()) == 1  # no patient twice where there are enough


@pytest.mark.parametrize(("patients", "size"), [(24, 4), (8, 8), (6, 2)])
def test_every_patient_is_seen_once_per_epoch(patients: int, size: int) -> None:
    names = [f"p{number}" for number in range(patients)] * 2
    sampler = StepSampler(names, size, seed=3)
    orders = []
    for epoch in range(3):
        steps = range(epoch * patients // size, (epoch + 1) * patients // size)
        seen = [names[item] for step in steps for item in sampler.batch(step)]
        assert sorted(seen) == sorted(set(names))
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]


def test_what_does_not_fill_a_batch_waits_for_another_epoch() -> None:
    sampler = StepSampler([f"p{number}" for number in range(10)], 4, seed=0)
    seen = Counter(item for step in range(200) for item in sampler.batch(step))
    assert len(seen) == 10
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_fewer_patients_than_the_batch_repeat_evenly() -> None:
    batch = StepSampler(["a", "b", "c"], 8, seed=0).batch(5)
    assert sorted(Counter(batch).values()) == [2, 3, 3]


def test_series_of_a_patient_are_drawn_evenly() -> None:
    sampler = StepSampler(["a", "a", "a", "b"], 2, seed=1)
    seen = Counter(item for step in range(600) for item in sampler.batch(step))
    assert seen[3] == 600
    assert stats.chisquare([seen[0], seen[1], seen[2]]).pvalue > 1e-3


def test_six_reconstructions_of_one_scan_count_once() -> None:
    groups = ["one"] * 6 + ["other"]
    sampler = StepSampler(["a"] * 7, 1, seed=0, groups=groups)
    seen = Counter(item for step in range(3000) for item in sampler.batch(step))
    assert stats.binomtest(seen[6], 3000, 0.5).pvalue > 1e-3
    assert stats.chisquare([seen[item] for item in range(6)]).pvalue > 1e-3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 50))
def test_items_that_are_their_own_groups_are_drawn_as_without_groups(owners: list[int], size: int, step: int) -> None:
    patients = [f"p{owner}" for owner in owners]
    plain = StepSampler(patients, size, 3)
    assert plain.batch(step) == StepSampler(patients, size, 3, [f"g{n}" for n in range(len(owners))]).batch(step)
    assert plain.batch(step) == StepSampler(patients, size, 3, patients).batch(step)  # one group: the same draw


def test_groups_follow_their_items_into_a_subset() -> None:
    source = ListSource([item(np.zeros((2, 2)))] * 4, ["a", "a", "b", "b"])
    source.groups = ["x", "x", "y", "z"]
    assert Subset(source, [1, 3]).groups == ["x", "z"]


def test_a_run_cannot_go_on_with_other_groups(tmp_path: Path) -> None:
    source = ListSource([item(np.zeros((2, 2)))] * 3, ["a", "a", "b"])
    source.keys = ["s0", "s1", "s2"]
    write_record(tmp_path, record_of(source, None))
    assert list(pd.read_csv(tmp_path / "pretraining_series.csv").columns) == ["series_key", "patient_key"]
    require_same_series(tmp_path, record_of(source, None))
    source.groups = ["g", "g", "h"]
    record = record_of(source, None)
    assert record["group_key"].tolist() == ["g", "g", "h"]
    with pytest.raises(DataError, match="other near duplicates"):
        require_same_series(tmp_path, record)


def test_who_vouches_for_first_weights_leaves_no_unknown_row(tmp_path: Path) -> None:
    """Only for weights that have no record: what a run says of its own patients stays."""
    source = ListSource([item(np.zeros((2, 2)))] * 2, ["a", "b"])
    source.keys = ["s0", "s1"]
    bare = tmp_path / "dinov2.pth"
    assert record_of(source, bare)["origin"].tolist() == ["run", "run", "unknown"]
    vouched = record_of(source, bare, "no_patients")
    assert vouched["origin"].tolist() == ["run", "run"] and is_complete(vouched)
    write_record(tmp_path, vouched)
    source.keys = ["s2", "s3"]
    later = record_of(source, tmp_path, "no_patients")
    assert sorted(later["series_key"]) == ["s0", "s1", "s2", "s3"]
    assert sorted(later["origin"]) == ["ancestor", "ancestor", "run", "run"]


def test_seed_and_step_matter() -> None:
    patients = [f"p{number}" for number in range(40)]
    first = StepSampler(patients, 8, seed=0)
    assert first.batch(0) != first.batch(1) != first.batch(5)
    assert first.batch(0) != StepSampler(patients, 8, seed=1).batch(0)


def item(array: np.ndarray, ct: bool = False) -> Item:
    return Item(array[None], (1.0,) * array.ndim, ct, "key")


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(1, 10)] * 3), st.integers(0, 99))
def test_crop_is_a_box_of_the_item_centred_in_air(shape: tuple[int, ...], size: tuple[int, ...], seed: int) -> None:
    array = np.arange(1, 1 + int(np.prod(shape)), dtype=np.int32).reshape(shape)
    crop = base_crop(item(array), size, generator("t", seed))[0]
    assert crop.shape == size
    inside = np.argwhere(crop)
    kept = tuple(min(a, b) for a, b in zip(shape, size, strict=True))
    assert len(inside) == np.prod(kept)
    low = inside.min(0)
    np.testing.assert_array_equal(low, [(want - keep) // 2 for want, keep in zip(size, kept, strict=True)])
    place = np.argwhere(array == crop[tuple(low)])[0]
    box = tuple(slice(p, p + keep) for p, keep in zip(place, kept, strict=True))
    target = tuple(slice(p, p + keep) for p, keep in zip(low, kept, strict=True))
    np.testing.assert_array_equal(crop[target], array[box])


def test_places_of_crops_are_uniform() -> None:
    line = item(np.arange(1, 25).reshape(24, 1, 1))
    starts = Counter(int(base_crop(line, (5, 1, 1), generator("t", n))[0, 0, 0, 0]) for n in range(2000))
    assert sorted(starts) == list(range(1, 21))
    assert stats.chisquare(list(starts.values())).pvalue > 1e-3


@pytest.mark.parametrize(("ct", "air"), [(False, 0), (True, -1024)])
def test_air_around_small_items(ct: bool, air: int) -> None:
    crop = base_crop(item(np.full((2, 2, 2), 77, np.int16), ct), (4, 4, 4), generator("t"))
    assert sorted(np.unique(crop)) == sorted([air, 77])


def test_dimensions_must_fit() -> None:
    with pytest.raises(DataError, match="series key: 3D, but the views are 2D; set views and model"):
        base_crop(item(np.zeros((4, 4, 4))), (2, 2), generator("t"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Six series of three patients; the value of a voxel is its position along the third axis."""
    preprocess = PreprocessSpec(spacing_mm=(2.0, 1.0, 0.5))
    write_settings(tmp_path, preprocess)
    rows = []
    for number in range(6):
        stored = np.int16 if number == 5 else np.uint8
        array = np.broadcast_to(np.arange(40, dtype=stored), (10, 12, 40)).copy()
        entry = entry_name(f"s{number}", "x", preprocess)
        write_entry(tmp_path, entry, array)
        row = {"series_key": f"s{number}", "patient_key": f"p{number % 3}", "study_key": "", "sequence": "t1"}
        row |= {"modality": "ct" if number == 5 else "mri", "shape": [10, 12, 40], "spacing_mm": [2.0, 1.0, 0.5]}
        rows.append(row | {"entry": entry, "sha256": file_digest(entry_path(tmp_path, entry))})
    pd.DataFrame(rows).to_parquet(tmp_path / "manifest.parquet")
    return Cache.open(tmp_path)


def test_volumes_of_a_cache(cache: Cache) -> None:
    source = CacheSource(cache, cache.table)
    read = source.read(5, generator("t"))
    assert (read.array.shape, read.spacing_mm, read.is_ct, read.key) == ((1, 10, 12, 40), (2.0, 1.0, 0.5), True, "s5")
    assert source.patients == ["p0", "p1", "p2"] * 2


@pytest.mark.parametrize(
    ("plane", "shape", "spacing"),
    [
        ("axial", (10, 12), (2.0, 1.0)),
        ("coronal", (10, 40), (2.0, 0.5)),
        ("sagittal", (12, 40), (1.0, 0.5)),
    ],
)
def test_slices_of_a_plane(cache: Cache, plane: str, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    read = CacheSource(cache, cache.table, plane).read(0, generator("t"))
    assert read.array.shape == (1, *shape)
    assert read.spacing_mm == spacing


def test_slices_are_drawn_from_the_inner_part(cache: Cache) -> None:
    source = CacheSource(cache, cache.table, "axial")
    drawn = Counter(int(source.read(0, generator("t", n)).array[0, 0, 0]) for n in range(1400))
    assert sorted(drawn) == list(range(6, 34))  # 15 % to 85 % of 40
    assert stats.chisquare(list(drawn.values())).pvalue > 1e-3


def test_step_dataset_is_a_function_of_the_step(cache: Cache) -> None:
    source = CacheSource(cache, cache.table)
    dataset = StepDataset(source, StepSampler(source.patients, 3, 0), (4, 4, 8), seed=0)
    torch.manual_seed(0)
    first = dataset[3]
    torch.manual_seed(1)
    again = dataset[3]
    assert torch.equal(first.images, again.images)
    assert (first.keys, first.patients) == (again.keys, again.patients)
    assert first.images.shape == (3, 1, 4, 4, 8)
    assert first.spacing_mm.tolist() == [[2.0, 1.0, 0.5]] * 3
    assert first.sequences == ["t1"] * 3
    assert len(set(first.patients)) == 3
    assert not torch.equal(first.images, dataset[4].images)
    assert first.is_ct.tolist() == [key == "s5" for key in first.keys]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"image": x}, lambda x: (x, 1), lambda x: x.numpy()])
def test_any_dataset_of_tensors(wrap) -> None:  # type: ignore[no-untyped-def]
    tensors = [torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    source = DatasetSource([wrap(x) for x in tensors], patients=["a", "a", "b"])
    read = source.read(1, generator("t"))
    np.testing.assert_allclose(read.array, tensors[1].numpy() * 255, rtol=1e-6)
    assert read.spacing_mm == (1.0, 1.0)
    assert source.keys == ["item 0", "item 1", "item 2"]
    assert source.patients == ["patient 0", "patient 0", "patient 1"], "ids stay outside"


def test_nobody_is_kept_aside_of_items_that_may_be_of_one_patient() -> None:
    tensors = [torch.zeros(1, 2, 2)] * 60
    assert split_monitored(DatasetSource(tensors), 0.5, 0)[1] is None
    ids = [number // 2 for number in range(60)]
    seen, aside = split_monitored(DatasetSource(tensors, ids), 0.5, 0)
    assert aside is not None and not set(seen.patients) & set(aside.patients)
    assert {aside.patients.count(patient) for patient in aside.patients} == {2}
    listed = [item(np.zeros((2, 2)))] * 60
    assert split_monitored(ListSource(listed), 0.5, 0)[1] is None
    assert split_monitored(ListSource(listed, [f"patient {number}" for number in range(60)]), 0.5, 0)[1] is not None


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a", "b"], "patients: 2 ids for 3 items; give one per item"),
        (["a", None, "b"], "patients: item 1 has no id"),
        (["a", "b", float("nan")], "patients: item 2 has no id"),
        ([" ", "a", "b"], "patients: item 0 has no id"),
    ],
)
def test_every_item_needs_an_id(ids: list[object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        DatasetSource([torch.zeros(1, 2, 2)] * 3, ids)


def test_empty_sources_are_refused() -> None:
    with pytest.raises(DataError, match="the dataset is empty"):
        DatasetSource([])
    with pytest.raises(DataError, match="the list of scans is empty"):
        ListSource([])


def test_list_knows_its_largest_extent() -> None:
    source = ListSource([item(np.zeros((3, 9, 4))), item(np.zeros((5, 2, 4)))])
    assert source.largest == (5, 9, 4)
