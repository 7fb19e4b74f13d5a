"""Labels find their rows, and a file that cannot says why in one sentence without naming anybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_factory import stack, write

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.index.archive import index as index_archive
from lejepa_med.data.privacy import keyed_hash, load_salt, patient_key
from lejepa_med.errors import DataError
from lejepa_med.evaluation.label_files import read_label_file, rows_named
from lejepa_med.evaluation.label_paths import series_of_paths
from lejepa_med.evaluation.labels import LabelledSet, load_labels


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index folder with a salt and the private table of files; the series UID of `s1` is 1.2.1, and so on."""
    salt = load_salt(tmp_path / "index")
    files = [("/pacs/sub-1/t1.nii.gz", "s1"), ("/pacs/sub-2/t1.nii.gz", "s2"), ("/pacs/sub-3/only.nii.gz", "s3")]
    files += [(f"/pacs/sub-4/ct/{number}.dcm", "s4") for number in range(3)]
    table = pd.DataFrame(files, columns=["path", "series_key"])
    table["series_hash"] = [keyed_hash(salt, "series", key.replace("s", "1.2.")) for key in table["series_key"]]
    table.to_parquet(tmp_path / "index" / "files.parquet")
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
        "path,y\n/pacs/sub-1,a\nsub-2,b\n/elsewhere/sub-4/,b\n",
        "series_uid,y\n1.2.1,a\n1.2.2,b\n1.2.4,b\n",
        "SeriesInstanceUID,patient_id,y\n1.2.1,x,a\n1.2.2,x,b\n1.2.4,x,b\n",
    ],
)
def test_every_kind_of_id_finds_the_same_rows(tmp_path: Path, index: Path, table: pd.DataFrame, rows: str) -> None:
    found = load_labels(labels(tmp_path, rows), table, index)
    assert found.table["series_key"].tolist() == ["s1", "s2", "s4"]
    assert found.target.tolist() == [0, 1, 1]
    assert (found.kind, found.classes) == ("classification", ("a", "b"))
    assert found.groups == tuple(table["patient_key"].iloc[[0, 1, 3]])


def test_a_study_uid_is_hashed_as_the_index_hashes_it(tmp_path: Path, index: Path, table: pd.DataFrame) -> None:
    salt = load_salt(index)
    table["study_key"] = [keyed_hash(salt, "study", uid) for uid in ("1.9.1", "1.9.1", "1.9.2", "1.9.3")]
    table["patient_key"] = table["patient_key"].iloc[[0, 0, 2, 3]].tolist()
    for column in ("study_uid", "StudyInstanceUID"):
        task = labels(tmp_path, f"{column},y\n1.9.1,a\n1.9.3,b\n1.9.9,b\n", unit="study")
        found = load_labels(task, table, index)
        assert found.members == (("s1", "s2"), ("s4",)) and found.target.tolist() == [0, 1]
        assert found.unmatched == 1


def test_a_series_uid_is_all_parts_that_the_index_made_of_it(tmp_path: Path, index: Path, table: pd.DataFrame) -> None:
    files = pd.read_parquet(index / "files.parquet")
    files.loc[files["series_key"] == "s2", "series_hash"] = keyed_hash(load_salt(index), "series", "1.2.1")
    files.to_parquet(index / "files.parquet")
    task = labels(tmp_path, "series_uid,y\n1.2.1,a\n1.2.4,b\n")
    with pytest.raises(DataError, match="1 series UIDs stand under several studies or patients"):
        load_labels(task, table, index)
    table.loc[1, ["study_key", "patient_key"]] = table.loc[0, ["study_key", "patient_key"]]
    assert load_labels(task, table, index).table["series_key"].tolist() == ["s1", "s2", "s4"]


def test_a_folder_of_files_without_uids_is_told_so(tmp_path: Path, index: Path, table: pd.DataFrame) -> None:
    pd.read_parquet(index / "files.parquet").drop(columns="series_hash").to_parquet(index / "files.parquet")
    with pytest.raises(DataError, match="has no series_hash, which labels by series_uid need"):
        load_labels(labels(tmp_path, "series_uid,y\n1.2.1,a\n"), table, index)


@pytest.mark.parametrize("column", ["patient_id", "study_uid", "series_uid"])
def test_a_mistyped_index_gets_no_salt(tmp_path: Path, index: Path, table: pd.DataFrame, column: str) -> None:
    (tmp_path / "idnex").mkdir()
    (tmp_path / "idnex" / "files.parquet").write_bytes((index / "files.parquet").read_bytes())
    with pytest.raises(DataError, match="`salt` is missing or damaged"):
        load_labels(labels(tmp_path, f"{column},y\n1.2.1,a\n"), table, tmp_path / "idnex")
    with pytest.raises(DataError, match="`salt` is missing or damaged"):
        grouped(tmp_path, table, tmp_path / "idnex")
    assert not (tmp_path / "idnex" / "salt").exists()


def test_a_folder_is_all_that_lies_below_it() -> None:
    names = ["p1/st1/ser1/0.dcm", "p1/st1/ser2/0.dcm", "p1/st2/ser1/0.dcm", "p2/st3/ser3/0.dcm"]
    files = pd.DataFrame({"path": [f"/pacs/{name}" for name in names], "series_key": ["a", "b", "c", "d"]})
    assert series_of_paths(["p1", "/mnt/pacs/p1/st1", "p1/st2", "ser1", "p3/ser3", "p2/st3/ser3"], files) == {
        "p1": ("a", "b", "c"),
        "/mnt/pacs/p1/st1": ("a", "b"),
        "p1/st2": ("c",),
        "p2/st3/ser3": ("d",),  # and not p3/ser3, which is another patient's folder of the same name
    }


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


@pytest.mark.parametrize("with_salt", [True, False])
def test_a_patient_with_one_empty_group_stays_one_person(
    tmp_path: Path, table: pd.DataFrame, index: Path, with_salt: bool
) -> None:
    """Else the scans that were filled in could train while the others test."""
    alike = table.assign(patient_key=["p", "p", "q", "q"])
    text = "series_key,y,who\ns1,a,ANNA\ns2,b,\ns3,a,BERT\ns4,b,EVE\n"
    file = labels(tmp_path, text, group_column="who")
    first, second, third, fourth = load_labels(file, alike, index if with_salt else None).groups
    assert first == second and len({first, third, fourth}) == 3
    several = labels(tmp_path, "series_key,y,who\ns1,a,\ns2,b,\ns3,a,BERT\ns4,b,EVE\n", group_column="who")
    mixed = alike.assign(patient_key=["p", "q", "q", "q"])
    with pytest.raises(DataError, match="1 samples have nothing in column `who`, where others of their patient"):
        load_labels(several, mixed, index if with_salt else None)


def test_group_column_without_a_salt_names_nobody(tmp_path: Path, table: pd.DataFrame) -> None:
    assert grouped(tmp_path, table, None).groups == ("s1", "s1", "s3", table["patient_key"][3])


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("patient_key,y\nANNA-1,a\nANNA-2,b\n", {}, "none of the 2 ids in column `patient_key` is in the cache"),
        ("patient_id,y\nEVE,a\n", {}, "none of the 1 ids in column `patient_id`.*expected patient ids"),
        ("path,y\nANNA.nii,a\n", {}, "expected paths of indexed files"),
        ("study_uid,y\n1.ANNA,a\n", {}, "expected StudyInstanceUIDs of indexed DICOM files"),
        ("series_uid,y\n1.ANNA,a\n", {}, "expected SeriesInstanceUIDs of indexed DICOM files"),
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


def test_uids_of_dicom_headers_name_what_the_index_made_of_them(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        slices = stack(6, StudyInstanceUID=f"1.9.{number // 2}", SeriesInstanceUID=f"1.8.{number}")
        for position, dataset in enumerate(slices):
            dataset.SOPInstanceUID = f"1.7.{number}.{position}"
            pixels = np.frombuffer(dataset.PixelData, dtype=np.uint16) + np.uint16(number)
            dataset.PixelData = pixels.tobytes()
        write(tmp_path / "pacs" / str(number), slices)
    settings = IndexSettings.model_validate({"compute": {"workers": 1}, "min_slices": 2})
    index_archive([tmp_path / "pacs"], tmp_path / "index", settings)
    table = pd.read_parquet(tmp_path / "index" / "series.parquet")
    key_of = {}
    for number in (1, 2, 3):
        only = labels(tmp_path, f"path,y\n{tmp_path / 'pacs' / str(number)},a\n")
        key_of[number] = rows_named(only, read_label_file(only), table, tmp_path / "index")["id"].item()
    by_series = load_labels(labels(tmp_path, "series_uid,y\n1.8.1,a\n1.8.3,b\n"), table, tmp_path / "index")
    assert set(by_series.table["series_key"]) == {key_of[1], key_of[3]}
    by_study = load_labels(
        labels(tmp_path, "StudyInstanceUID,y\n1.9.0,a\n1.9.1,b\n", unit="study"), table, tmp_path / "index"
    )
    assert {frozenset(keys) for keys in by_study.members} == {
        frozenset((key_of[1],)),
        frozenset((key_of[2], key_of[3])),
    }
