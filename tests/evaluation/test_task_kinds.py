"""Multilabel, ordinal and segmentation tasks; samples of several series; official splits and sites."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from lejepa_med.config.pretraining import HoldoutConfig
from lejepa_med.config.tasks import OnlineProbeConfig, TaskConfig
from lejepa_med.data.cache import Cache
from lejepa_med.data.privacy import load_salt, patient_key
from lejepa_med.data.splits import is_held_out
from lejepa_med.errors import DataError
from lejepa_med.evaluation.grid import applies
from lejepa_med.evaluation.labels import LabelledSet, load_labels, with_masks
from lejepa_med.evaluation.splits import fitting_budgets, labelled_subset, split_patients
from lejepa_med.spec import PreprocessSpec

TABLE = pd.DataFrame(
    {
        "series_key": [f"s{row}" for row in range(12)],
        "study_key": [f"study{row // 2}" for row in range(12)],
        "patient_key": [f"p{row // 4}" for row in range(12)],
    }
)


def task(folder: Path, text: str, name: str = "labels.csv", **settings: object) -> TaskConfig:
    (folder / name).write_text(text)
    given = {"name": "t", "labels": folder / name} | settings
    if "columns" not in given and given.get("kind") != "multilabel":
        given.setdefault("column", "y")
    return TaskConfig.model_validate(given)


def table_of(patients: int) -> pd.DataFrame:
    keys = [f"p{row}" for row in range(patients)]
    return pd.DataFrame({"series_key": [f"s{row}" for row in range(patients)], "study_key": keys, "patient_key": keys})


def test_multilabel_keeps_unknown_cells_and_drops_empty_rows(tmp_path: Path) -> None:
    text = "series_key,a,b\ns0,1,0\ns1,,1\ns2,0.0,\ns3,,\n"
    found = load_labels(task(tmp_path, text, kind="multilabel", columns=("a", "b")), TABLE, None)
    assert (found.kind, found.classes, found.missing, len(found)) == ("multilabel", ("a", "b"), 1, 3)
    np.testing.assert_array_equal(found.target, [[1, 0], [np.nan, 1], [0, np.nan]])


def test_ordinal_levels_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    found = load_labels(task(tmp_path, "series_key,y\ns0,10\ns1,2\ns2,1\ns3,2\n", kind="ordinal"), TABLE, None)
    assert (found.kind, found.classes, found.target.tolist()) == ("ordinal", ("1", "2", "10"), [2, 1, 0, 1])


@pytest.mark.parametrize(
    ("unit", "groups", "target"),
    [("study", ("p0", "p0", "p1", "p2"), [1, 1, 0, 0]), ("patient", ("p0", "p1", "p2"), [1, 0, 0])],
)
def test_one_sample_is_all_labelled_series_of_its_unit(
    tmp_path: Path, unit: str, groups: tuple[str, ...], target: list[int]
) -> None:
    text = "series_key,y\n" + "".join(f"s{row},{'yes' if row < 4 else 'no'}\n" for row in (0, 1, 2, 4, 8, 9))
    found = load_labels(task(tmp_path, text, unit=unit), TABLE, None)
    assert (found.groups, found.target.tolist(), found.unit) == (groups, target, unit)
    assert [key for keys in found.members for key in keys] == found.table["series_key"].tolist()
    features = np.arange(12.0).reshape(6, 2)
    keys = found.table["series_key"].tolist()
    expected = [features[[keys.index(key) for key in members]].mean(0) for members in found.members]
    assert found.mean_over_members(features) == pytest.approx(np.array(expected))


def test_series_of_one_study_that_disagree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 samples carry two different labels"):
        load_labels(task(tmp_path, "series_key,y\ns0,a\ns1,b\ns2,a\n", unit="study"), TABLE, None)


@pytest.mark.parametrize("in_scans", ["01", "sub-01"])
def test_bids_participants_with_and_without_their_prefix(tmp_path: Path, in_scans: str) -> None:
    salt = load_salt(tmp_path / "index")
    keys = [patient_key(salt, in_scans), patient_key(salt, in_scans.replace("01", "02"))]
    table = pd.DataFrame({"series_key": ["s0", "s1"], "study_key": ["x", "y"], "patient_key": keys})
    text = "participant_id\tage\tsex\nsub-01\t60.5\tF\n02\t41\tM\nsub-03\tn/a\tM\n"
    found = load_labels(task(tmp_path, text, "participants.tsv", column="age"), table, tmp_path / "index")
    assert (found.target.tolist(), found.missing, found.unmatched) == ([60.5, 41.0], 1, 0)


def test_an_official_split_is_taken_as_it_is(tmp_path: Path) -> None:
    sides = ["train", "Training", "val", "test", "test", "train"]
    rows = [f"s{row},{row % 2},{side}" for row, side in enumerate(sides)]
    text = "series_key,y,split\n" + "\n".join(rows)
    split = split_patients(
        load_labels(task(tmp_path, text, split_column="split"), table_of(6), None), HoldoutConfig(test_fraction=0.5)
    )
    assert (split.train.tolist(), split.test.tolist()) == ([0, 1, 5], [3, 4])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s0,0,train\ns1,1,test\ns4,1,train\n", r"1 patients are in test and also in train or val.*\(keys p0\)"),
        ("s0,0,train\ns4,1,Anna\n", "1 of 2 samples have something else than train, val or test in column `split`"),
        ("s0,0,train\ns4,1,\n", "1 of 2 samples have something else than train"),
    ],
)
def test_a_wrong_official_split_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_labels(task(tmp_path, "series_key,y,split\n" + text, split_column="split"), TABLE, None)
    assert "Anna" not in str(caught.value)


def sited(tmp_path: Path, sites: int) -> LabelledSet:
    rows = [f"s{row},{row // sites % 2},{'Mercy' if row % sites == 0 else row % sites}" for row in range(240)]
    text = "series_key,y,where\n" + "\n".join(rows)
    return load_labels(task(tmp_path, text, site_column="where"), table_of(240), None)


@pytest.mark.parametrize("seed", range(4))
def test_a_site_is_tested_on_or_trained_on(tmp_path: Path, seed: int) -> None:
    labelled, holdout = sited(tmp_path, 4), HoldoutConfig(test_fraction=0.4, seed=seed)
    assert labelled.sites is not None and not any("Mercy" in name for name in labelled.sites)
    split = split_patients(labelled, holdout)
    trained, tested = ({labelled.sites[row] for row in rows} for rows in (split.train, split.test))
    assert not trained & tested and len(trained) == len(tested) == 2
    assert is_held_out([labelled.groups[row] for row in split.test], 0.4, seed).all()


def test_a_patient_of_two_sites_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 patients have scans of two sites in column `where` \(keys p0\)"):
        load_labels(task(tmp_path, "series_key,y,where\ns0,0,A\ns1,1,B\n", site_column="where"), TABLE, None)


def test_multilabel_budgets_hold_both_values_of_every_label(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    values = np.where(draw.random((200, 3)) < 0.2, np.nan, draw.random((200, 3)) < (0.08, 0.5, 0.9))
    frame = pd.DataFrame(values, columns=["a", "b", "c"]).assign(series_key=[f"s{row}" for row in range(200)])
    settings = {"kind": "multilabel", "columns": ("a", "b", "c")}
    labelled = load_labels(task(tmp_path, frame.to_csv(index=False), **settings), table_of(200), None)
    split = split_patients(labelled, HoldoutConfig(test_fraction=0.4))
    target = labelled.target[split.train]
    rarest = min(int((target == value).sum(0).min()) for value in (0, 1))
    assert fitting_budgets(split, (1, 2, rarest, rarest + 1)) == [1, 2, rarest, "all"]
    smaller: set[int] = set()
    for budget in (1, 2, rarest):
        rows = labelled_subset(split, labelled.groups, budget, seed=1)
        found = labelled.target[rows]
        assert min((found == 0).sum(0).min(), (found == 1).sum(0).min()) == budget
        assert len(rows) <= 6 * budget and smaller < set(rows.tolist()) <= set(split.train.tolist())
        smaller = set(rows.tolist())


def test_masks_make_a_task_without_a_label_file(tmp_path: Path) -> None:
    settings = TaskConfig(name="organs", kind="segmentation")
    table = table_of(40).assign(mask_entry=["", *(f"m{row}" for row in range(1, 40))])
    cache = Cache(tmp_path, PreprocessSpec(), table.assign(entry="", sha256=""))
    with pytest.raises(DataError, match=r"no mask_labels\.json that names a class"):
        with_masks(settings, table, cache)
    (tmp_path / "mask_labels.json").write_text(json.dumps({"2": "spleen", "1": "liver"}))
    labelled = with_masks(settings, table, cache)
    assert (labelled.classes, len(labelled), labelled.missing) == (("liver", "spleen"), 39, 1)
    split = split_patients(labelled, HoldoutConfig(test_fraction=0.4))
    assert fitting_budgets(split, (1, 10, 1000)) == [1, 10, "all"]
    assert len(labelled_subset(split, labelled.groups, 10, 0)) == 10  # a budget counts volumes
    used = [m for m in ("linear", "knn", "finetune", "segment_linear", "segment_decoder") if applies(m, labelled)]
    assert used == ["segment_linear", "segment_decoder"]
    with pytest.raises(DataError, match="none of the 40 series in the cache has a mask"):
        with_masks(settings, table.drop(columns="mask_entry"), cache)
    (tmp_path / "mask_labels.json").write_text('{"0": "background"}')
    with pytest.raises(DataError, match=r"no mask_labels\.json that names a class"):
        with_masks(settings, table, cache)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("series_key,a,b\ns0,1,2\ns1,0,1\n", {"kind": "multilabel", "columns": ("a", "b")}, "1 cells of column `b`"),
        ("series_key,a,b\ns0,1,1\ns1,1,\n", {"kind": "multilabel", "columns": ("a", "b")}, "none of the 2 labels has"),
        ("series_key,y\ns0,1.5\ns1,2\n", {"kind": "ordinal"}, "ordinal expects up to 10 different whole numbers"),
        ("series_key,y\ns0,low\ns1,2\n", {"kind": "ordinal"}, "1 that are no numbers among 2 labels"),
        ("series_key,y\ns0,inf\ns1,2\n", {}, "1 of 2 labels are infinite; expected finite numbers"),
        ("series_key,y\ns0,1\ns1,1.0\n", {"kind": "ordinal"}, "all 2 labels found in the cache are the same"),
    ],
)
def test_one_sentence(tmp_path: Path, text: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_labels(task(tmp_path, text, **settings), TABLE, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "multilabel", "labels": "l.csv", "column": "a"}, "multilabel needs `columns"),
        ({"kind": "ordinal", "labels": "l.csv", "columns": ("a", "b")}, "`columns` are for kind multilabel"),
        ({"column": "a"}, "a label file is needed"),
        ({"kind": "segmentation", "column": "a", "unit": "study"}, "leave out column, unit"),
        ({"labels": "l.csv", "column": "a", "split_column": "x", "site_column": "y"}, "give one"),
    ],
)
def test_settings_that_do_not_fit_the_kind(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TaskConfig.model_validate({"name": "t", **settings})


def test_segmentation_is_not_probed_online() -> None:
    with pytest.raises(ValidationError, match="evaluated by `benchmark` only"):
        OnlineProbeConfig(tasks=(TaskConfig(name="t", kind="segmentation"),))
