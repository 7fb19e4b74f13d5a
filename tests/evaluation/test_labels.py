"""Labels find their rows, and a file that cannot says why in one sentence without naming anybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.privacy import load_salt, patient_key
from lejepa_med.errors import DataError
from lejepa_med.evaluation.label_paths import series_of_paths
from lejepa_med.evaluation.labels import LabelledSet, load_labels


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index folder with a salt and the private table of files."""
    load_salt(tmp_path / "index")
    files = [("/pacs/sub-1/t1.nii.gz", "s1"), ("/pacs/sub-2/t1.nii.gz", "s2"), ("/pacs/sub-3/only.nii.gz", "s3")]
    files += [(f"/pacs/sub-4/ct/{number}.dcm", "s4") for number in range(3)]
    pd.DataFrame(files, columns=["path", "series_key"]).to_parquet(tmp_path / "index" / "files.parquet")
    return tmp_path / "index"


@pytest.fixture
def table(index: Path) -> pd.DataFrame:
    salt = load_salt(index)
    keys = [patient_key(salt, f"ANNA-{number}") for number in (1, 2, 3, 4)]
    studies = [f"study{number}" for number in (1, 2, 3, 4)]
    return pd.DataFrame({"series_key": ["s1", "s2", "s3", "s4"], "patient_key": keys, "study_key": studies})


def labels(folder: Path, text: str, column: str = "y", **settings: object) -> TaskConfig:
    (folder / "labels.csv").write_text(text)
    return TaskConfig.model_validate({"name": "t", "labels": folder / "labels.csv", "column": column, **settings})


@pytest.mark.parametrize(
    "rows",
    [
        "series_key,y\ns1,a\ns2,b\ns4,b\n",
        "study_key,y\nstudy1,a\nstudy2,b\nstudy4,b\n",
        "patient_id,y\nANNA-1,a\n ANNA-2 ,b\nANNA-4,b\n",
        "path,y\n/pacs/sub-1/t1.nii.gz,a\nsub-2/t1.nii.gz,b\n/elsewhere/sub-4/2.dcm,b\n",
        "path,y\n./sub-1/t1.nii.gz,a\nsub-2/t1.nii.gz,b\nsub-4/ct,b\n",
    ],
)
def test_every_kind_of_id_finds_the_same_rows(tmp_path: Path, index: Path, table: pd.DataFrame, rows: str) -> None:
    found = load_labels(labels(tmp_path, rows), table, index)
    assert found.table["series_key"].tolist() == ["s1", "s2", "s4"]
    assert found.target.tolist() == [0, 1, 1]
    assert (found.kind, found.classes) == ("classification", ("a", "b"))
    assert found.groups == tuple(table["patient_key"].iloc[[0, 1, 3]])


def test_paths_that_name_several_files_are_not_guessed() -> None:
    files = pd.DataFrame({"path": ["/a/1/t1.nii", "/a/2/t1.nii", "/a/3/x.nii"], "series_key": ["s1", "s2", "s3"]})
    assert series_of_paths(["t1.nii", "1/t1.nii", "x.nii", "9/x.nii"], files) == {
        "1/t1.nii": ("s1",),
        "x.nii": ("s3",),
        "9/x.nii": ("s3",),
    }


@pytest.mark.parametrize(
    ("values", "kind", "target"),
    [
        (("yes", "no", "no", "yes"), "classification", [1, 0, 0, 1]),
        (("1", "0", "0.0", "1"), "classification", [1, 0, 0, 1]),
        (("10", "9", "9", "2"), "classification", [2, 1, 1, 0]),
        (("1.5", "2", "3", "4"), "regression", [1.5, 2, 3, 4]),
    ],
)
def test_kind_is_found(
    tmp_path: Path, table: pd.DataFrame, values: tuple[str, ...], kind: str, target: list[float]
) -> None:
    text = "series_key,y\n" + "".join(f"s{row + 1},{value}\n" for row, value in enumerate(values))
    found = load_labels(labels(tmp_path, text), table, None)
    assert (found.kind, found.target.tolist()) == (kind, target)


def test_missing_values_and_unknown_ids_are_counted(tmp_path: Path, table: pd.DataFrame) -> None:
    found = load_labels(labels(tmp_path, "series_key,y\ns1,a\ns2,\ns3,b\ns4,NaN\nx,b\n"), table, None)
    assert (found.missing, found.unmatched, len(found)) == (2, 1, 2)


def grouped(tmp_path: Path, table: pd.DataFrame, index: Path | None) -> LabelledSet:
    text = "series_key,y,who\ns1,a,ANNA-1\ns2,b,ANNA-1\ns3,a,BERT\ns4,b,\n"
    return load_labels(labels(tmp_path, text, group_column="who"), table, index)


def test_group_column_is_hashed_as_patients_are(tmp_path: Path, table: pd.DataFrame, index: Path) -> None:
    anna, bert = table["patient_key"][0], patient_key(load_salt(index), "BERT")
    assert grouped(tmp_path, table, index).groups == (anna, anna, bert, table["patient_key"][3])


def test_group_column_without_a_salt_names_nobody(tmp_path: Path, table: pd.DataFrame) -> None:
    assert grouped(tmp_path, table, None).groups == ("s1", "s1", "s3", table["patient_key"][3])


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("patient_key,y\nANNA-1,a\nANNA-2,b\n", {}, "none of the 2 ids in column `patient_key` is in the cache"),
        ("patient_id,y\nEVE,a\n", {}, "none of the 1 ids in column `patient_id`.*expected patient ids"),
        ("path,y\nANNA.nii,a\n", {}, "expected paths of indexed files"),
        ("series_key,y\ns1,a\ns2,a\n", {}, "all 2 labels found in the cache are the same"),
        ("series_key,y\ns1,\ns2,\n", {}, "all 2 rows lack a value in column `y`"),
        ("series_key,y\ns1,a\ns1,b\n", {}, "1 samples carry two different labels"),
        ("patient_id,y\nANNA-1,a\nANNA-1 ,b\n", {}, "1 samples carry two different labels"),
        ("series_key,yy\ns1,a\n", {}, "no column `y`; did you mean `yy`"),
        ("name,y\ns1,a\n", {}, "no column of its label file names samples; expected one of series_key"),
        ("name,y\ns1,a\n", {"id_column": "name"}, "does not say what it holds; set `id_kind`"),
        ("series_key,y\ns1,a\ns2,1\n", {"kind": "regression"}, "1 of 2 labels are no numbers"),
        ("", {}, "no CSV table"),
    ],
)
def test_one_sentence(
    tmp_path: Path, index: Path, table: pd.DataFrame, text: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_labels(labels(tmp_path, text, **settings), table, index)
    said = str(caught.value)
    assert said.startswith("task t: ") and "ANNA" not in said and "EVE" not in said and str(tmp_path) not in said


def test_index_is_asked_for(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"need the index; set its folder \(`data\.index`, in pretraining"):
        load_labels(labels(tmp_path, "patient_id,y\nANNA-1,a\n"), table, None)


def test_id_column_of_another_name(tmp_path: Path, table: pd.DataFrame) -> None:
    task = labels(tmp_path, "name,y\ns1,1\ns2,0\n", id_column="name", id_kind="series_key")
    assert np.array_equal(load_labels(task, table, None).target, [1, 0])
