"""Label files as tables of text: which column names samples, and which series or patients these names are.

Ids of patients, UIDs and paths are read, hashed or looked up, and forgotten: no message and no result holds one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lejepa_med.config.tasks import ID_KINDS, TaskConfig
from lejepa_med.data.index.pseudonyms import Pseudonyms
from lejepa_med.data.privacy import patient_key, read_salt
from lejepa_med.errors import DataError
from lejepa_med.evaluation.label_paths import series_of_paths

_BIDS = "participant_id"
_STANDARD = {
    "series_key": "series_key",
    "study_key": "study_key",
    "series_uid": "series_uid",
    "SeriesInstanceUID": "series_uid",
    "study_uid": "study_uid",
    "StudyInstanceUID": "study_uid",
    "patient_key": "patient_key",
    "patient_id": "patient_id",
    "path": "path",
    _BIDS: "patient_id",
}
"""What a column holds by its name; of several the first here is taken."""
_MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "<NA>", "null", "NULL"]
_KEY_OF = {"path": "series_key", "series_uid": "series_key", "study_uid": "study_key", "patient_id": "patient_key"}
_EXPECTED = {
    "series_key": "series keys as in the index's series.csv",
    "study_key": "study keys as in the index's series.csv",
    "patient_key": "patient keys as in the index's series.csv",
    "patient_id": "patient ids as in the scans that were indexed",
    "path": "paths of indexed files or folders, absolute, relative to the archive, or unique file names",
    "series_uid": "SeriesInstanceUIDs of indexed DICOM files",
    "study_uid": "StudyInstanceUIDs of indexed DICOM files",
}


def read_label_file(task: TaskConfig) -> pd.DataFrame:
    """All columns as stripped text, missing values as NaN; tabs between the columns of a `.tsv` file."""
    assert task.labels is not None
    try:
        frame = pd.read_csv(
            task.labels,
            sep="\t" if task.labels.suffix.lower() == ".tsv" else ",",
            dtype=str,
            keep_default_na=False,
            na_values=_MISSING,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    except FileNotFoundError:
        where = "check `labels` (relative paths start in the folder of the command)"
        raise DataError(f"task {task.name}: its label file does not exist; {where}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"task {task.name}: its label file is no CSV table ({type(error).__name__})") from None
    if frame.empty:
        raise DataError(f"task {task.name}: its label file has no rows")
    return pd.DataFrame({str(name): frame[name].str.strip() for name in frame.columns})


def rows_named(task: TaskConfig, labelled: pd.DataFrame, table: pd.DataFrame, index: Path | None) -> pd.DataFrame:
    """The rows of a label file under the key that they name: columns `id` (a key of `table`), `row`, and `key_column`.

    Raises:
        DataError: the ids need an index, or none of them is in `table`.
    """
    column, kind = id_column(task, labelled)
    named = pd.DataFrame({"id": labelled[column].to_numpy(dtype=object), "row": range(len(labelled))})
    if kind == "path":
        named = _by_path(task, named, index)
    elif kind == "series_uid":
        named = _by_series_uid(task, named, table, index)
    elif kind == "study_uid":
        names = Pseudonyms(read_salt(_index(task, index, kind)))
        named["id"] = [names.study(text) for text in named["id"]]
    elif kind == "patient_id":
        salt = read_salt(_index(task, index, kind))
        known = set(table["patient_key"])
        named["id"] = [_patient(text, salt, known, column == _BIDS) for text in named["id"]]
    key = _KEY_OF.get(kind, kind)
    found = named[named["id"].isin(set(table[key]) - {""})]
    if found.empty:
        raise DataError(
            f"task {task.name}: none of the {labelled[column].nunique()} ids in column `{column}` is in the cache; "
            f"expected {_EXPECTED[kind]}"
        )
    return found.assign(key_column=key).reset_index(drop=True)


def id_column(task: TaskConfig, frame: pd.DataFrame) -> tuple[str, str]:
    """The column that names samples, and what it holds."""
    if task.id_column is not None:
        require_column(task, frame, task.id_column)
        kind = task.id_kind or _STANDARD.get(task.id_column)
        if kind is None:
            raise DataError(
                f"task {task.name}: `id_column` {task.id_column} does not say what it holds; "
                f"set `id_kind` to one of {', '.join(ID_KINDS)}"
            )
        return task.id_column, kind
    for name, kind in _STANDARD.items():
        if name in frame.columns:
            return name, task.id_kind or kind
    raise DataError(
        f"task {task.name}: no column of its label file names samples; expected one of {', '.join(_STANDARD)}, "
        "or set `id_column` and `id_kind`"
    )


def require_column(task: TaskConfig, frame: pd.DataFrame, column: str) -> None:
    """Raises DataError with the nearest name if there is no such column."""
    if column not in frame.columns:
        near = difflib.get_close_matches(column, [str(name) for name in frame.columns], n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"it has: {', '.join(map(str, frame.columns))}"
        raise DataError(f"task {task.name}: its label file has no column `{column}`; {hint}")


def _patient(text: str, salt: bytes, known: set[str], bids: bool) -> str:
    """The key of a patient id; of a BIDS participant `sub-01` also under the id `01`, and the other way round."""
    names = [text, text.removeprefix("sub-"), f"sub-{text}"] if bids else [text]
    keys = [patient_key(salt, name) for name in names]
    return next((key for key in keys if key in known), keys[0])


def _index(task: TaskConfig, index: Path | None, reason: str) -> Path:
    if index is None:
        raise DataError(
            f"task {task.name}: labels by {reason} need the index; set its folder (`data.index`, in pretraining "
            f"`online_probe.index`)"
        )
    return index


def _by_path(task: TaskConfig, named: pd.DataFrame, index: Path | None) -> pd.DataFrame:
    found = series_of_paths(named["id"].tolist(), _files(task, index, "path", "path"))
    return _exploded(named, found)


def _by_series_uid(task: TaskConfig, named: pd.DataFrame, table: pd.DataFrame, index: Path | None) -> pd.DataFrame:
    """All prepared series of a UID: the index makes several of it where echoes, phases or b values share one."""
    files = _files(task, index, "series_uid", "series_hash").drop_duplicates()
    assert index is not None
    files = files[files["series_hash"] != ""].merge(table[["series_key", "study_key", "patient_key"]], on="series_key")
    names = Pseudonyms(read_salt(index))
    named["id"] = [names.series(text, "") for text in named["id"]]
    files = files[files["series_hash"].isin(set(named["id"]))]
    owners = files.drop_duplicates(["series_hash", "study_key", "patient_key"])["series_hash"].value_counts()
    shared = int((owners > 1).sum())
    if shared:
        raise DataError(
            f"task {task.name}: {shared} series UIDs stand under several studies or patients; name their scans by "
            "series_key or study_uid"
        )
    series_of = {str(uid): tuple(rows["series_key"]) for uid, rows in files.groupby("series_hash")}
    return _exploded(named, series_of)


def _files(task: TaskConfig, index: Path | None, kind: str, column: str) -> pd.DataFrame:
    """The index's table of files, `series_key` and one more column."""
    file = _index(task, index, kind) / "files.parquet"
    if not file.exists():
        raise DataError(f"task {task.name}: the index holds no files.parquet, which labels by {kind} need")
    try:
        return pd.read_parquet(file, columns=[column, "series_key"])
    except (OSError, ValueError):
        raise DataError(
            f"task {task.name}: the index's files.parquet has no {column}, which labels by {kind} need; use a folder "
            "that `index` wrote, and `index` again if it is damaged or old"
        ) from None


def _exploded(named: pd.DataFrame, series_of: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """A row per series that an id names; ids that name none are left out."""
    named["id"] = named["id"].map(lambda text: series_of.get(text, ()))
    return named.explode("id").dropna(subset="id").reset_index(drop=True)
