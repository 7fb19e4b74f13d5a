"""Label files as tables of text: which column names samples, and which series or patients these names are.

Ids of patients and paths are read, hashed or looked up, and forgotten: no message and no result holds one.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pandas as pd

from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.privacy import load_salt, patient_key
from lejepa_med.errors import DataError
from lejepa_med.evaluation.label_paths import series_of_paths

ID_KINDS = ("series_key", "study_key", "patient_key", "patient_id", "path")
_BIDS = "participant_id"
_STANDARD = {**{kind: kind for kind in ID_KINDS}, _BIDS: "patient_id"}
_MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "<NA>", "null", "NULL"]
_KEY_OF = {"path": "series_key", "patient_id": "patient_key"}
_EXPECTED = {
    "series_key": "series keys as in the index's series.csv",
    "study_key": "study keys as in the index's series.csv",
    "patient_key": "patient keys as in the index's series.csv",
    "patient_id": "patient ids as in the scans that were indexed",
    "path": "paths of indexed files or folders, absolute, relative to the archive, or unique file names",
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
    elif kind == "patient_id":
        salt = load_salt(_index(task, index, "patient_id"))
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
    file = _index(task, index, "path") / "files.parquet"
    if not file.exists():
        raise DataError(f"task {task.name}: the index holds no files.parquet, which labels by path need")
    found = series_of_paths(named["id"].tolist(), pd.read_parquet(file, columns=["path", "series_key"]))
    named["id"] = named["id"].map(lambda text: found.get(text, ()))
    return named.explode("id").dropna(subset="id").reset_index(drop=True)
