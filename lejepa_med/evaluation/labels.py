"""Label files joined to the cache: which rows carry a label, of which kind, and which belong to one patient.

Ids of patients and paths are read, hashed or looked up, and forgotten: no message and no result holds one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.privacy import load_salt, patient_key
from lejepa_med.errors import DataError
from lejepa_med.evaluation.label_paths import series_of_paths

Kind = Literal["classification", "regression"]
ID_KINDS = ("series_key", "study_key", "patient_key", "patient_id", "path")
MAX_INTEGER_CLASSES = 10
"""`kind: auto` takes up to this many different whole numbers for classes."""
_MISSING = ["", "NA", "N/A", "NaN", "nan", "<NA>", "null", "NULL"]
_EXPECTED = {
    "series_key": "series keys as in the index's series.csv",
    "study_key": "study keys as in the index's series.csv",
    "patient_key": "patient keys as in the index's series.csv",
    "patient_id": "patient ids as in the scans that were indexed",
    "path": "paths of indexed files or folders, absolute, relative to the archive, or unique file names",
}


@dataclass(frozen=True)
class LabelledSet:
    """Rows of the cache's table that have a label.

    `target` holds class numbers (positions in `classes`) or values, `groups` the patient of every row. `missing` rows
    of the label file had no value, `unmatched` ids are not in the cache.
    """

    task: str
    kind: Kind
    table: pd.DataFrame
    target: NDArray[np.int64] | NDArray[np.float64]
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    missing: int
    unmatched: int

    def __len__(self) -> int:
        return len(self.table)


def load_labels(task: TaskConfig, table: pd.DataFrame, index: Path | None) -> LabelledSet:
    """The rows of `table` (the cache's manifest) that the label file names, with their labels.

    Raises:
        DataError: nothing matches, labels contradict each other, or there is nothing to tell apart.
    """
    frame = _read(task)
    column, id_kind = _id_column(task, frame)
    _require_column(task, frame, task.column)
    labelled = frame[frame[task.column].notna() & frame[column].notna()]
    missing = len(frame) - len(labelled)
    if labelled.empty:
        raise DataError(f"task {task.name}: all {len(frame)} rows lack a value in column `{task.column}` or an id")
    names = _names(task, labelled, column, index)
    if id_kind == "path":
        names = _by_path(task, names, index)
    elif id_kind == "patient_id":
        salt = load_salt(_index(task, index, "patient_id"))
        names["id"] = [patient_key(salt, text) for text in names["id"]]
    _reject_contradictions(task, names)
    key = {"path": "series_key", "patient_id": "patient_key"}.get(id_kind, id_kind)
    names = names.drop_duplicates("id").set_index("id")
    rows = table[table[key].isin(names.index)].reset_index(drop=True)
    if rows.empty:
        raise DataError(
            f"task {task.name}: none of the {labelled[column].nunique()} ids in column `{column}` is in the cache; "
            f"expected {_EXPECTED[id_kind]}"
        )
    matched = names.loc[rows[key]]
    kind, target, classes = _targets(task, matched["label"])
    unmatched = int(labelled[column].nunique() - matched["original"].nunique())
    return LabelledSet(task.name, kind, rows, target, classes, _groups(rows, matched, index), missing, unmatched)


def _read(task: TaskConfig) -> pd.DataFrame:
    try:
        frame = pd.read_csv(
            task.labels,
            dtype=str,
            keep_default_na=False,
            na_values=_MISSING,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    except FileNotFoundError:
        raise DataError(f"task {task.name}: its label file does not exist; check `labels`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"task {task.name}: its label file is no CSV table ({type(error).__name__})") from None
    if frame.empty:
        raise DataError(f"task {task.name}: its label file has no rows")
    return pd.DataFrame({str(name): frame[name].str.strip() for name in frame.columns})


def _id_column(task: TaskConfig, frame: pd.DataFrame) -> tuple[str, str]:
    if task.id_column is not None:
        _require_column(task, frame, task.id_column)
        kind = task.id_kind or (task.id_column if task.id_column in ID_KINDS else None)
        if kind is None:
            raise DataError(
                f"task {task.name}: `id_column` {task.id_column} does not say what it holds; "
                f"set `id_kind` to one of {', '.join(ID_KINDS)}"
            )
        return task.id_column, kind
    for name in ID_KINDS:
        if name in frame.columns:
            return name, task.id_kind or name
    raise DataError(
        f"task {task.name}: no column of its label file names samples; expected one of {', '.join(ID_KINDS)}, "
        "or set `id_column` and `id_kind`"
    )


def _require_column(task: TaskConfig, frame: pd.DataFrame, column: str) -> None:
    if column not in frame.columns:
        near = difflib.get_close_matches(column, [str(name) for name in frame.columns], n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"it has: {', '.join(map(str, frame.columns))}"
        raise DataError(f"task {task.name}: its label file has no column `{column}`; {hint}")


def _index(task: TaskConfig, index: Path | None, reason: str) -> Path:
    if index is None:
        raise DataError(
            f"task {task.name}: labels by {reason} need the index; set its folder (`data.index`, in pretraining "
            f"`online_probe.index`)"
        )
    return index


def _names(task: TaskConfig, labelled: pd.DataFrame, column: str, index: Path | None) -> pd.DataFrame:
    """Columns id, label, original (the id as given) and group (a key already, or text without a salt)."""
    names = pd.DataFrame({"id": labelled[column], "label": labelled[task.column], "original": labelled[column]})
    names["group"] = None
    if task.group_column is not None:
        _require_column(task, labelled, task.group_column)
        group = labelled[task.group_column]
        if index is not None:
            salt = load_salt(index)
            group = group.map(lambda text: patient_key(salt, text), na_action="ignore")
        names["group"] = group
    return names.astype(object)


def _by_path(task: TaskConfig, names: pd.DataFrame, index: Path | None) -> pd.DataFrame:
    file = _index(task, index, "path") / "files.parquet"
    if not file.exists():
        raise DataError(f"task {task.name}: the index holds no files.parquet, which labels by path need")
    found = series_of_paths(names["id"].tolist(), pd.read_parquet(file, columns=["path", "series_key"]))
    names["id"] = names["id"].map(lambda text: found.get(text, ()))
    return names.explode("id").dropna(subset="id").reset_index(drop=True)


def _reject_contradictions(task: TaskConfig, names: pd.DataFrame) -> None:
    by_id = names.groupby("id")
    for what in ("label", "group"):
        count = int((by_id[what].nunique() > 1).sum())
        if count:
            raise DataError(
                f"task {task.name}: {count} samples carry two different {what}s; keep one row of each in the label file"
            )


def _targets(
    task: TaskConfig, labels: pd.Series
) -> tuple[Kind, NDArray[np.int64] | NDArray[np.float64], tuple[str, ...]]:
    numbers = pd.to_numeric(labels, errors="coerce").to_numpy(dtype=np.float64)
    numeric = bool(np.isfinite(numbers).all())
    distinct = labels.nunique()
    if distinct < 2:
        raise DataError(f"task {task.name}: all {len(labels)} labels found in the cache are the same; nothing to learn")
    kind = task.kind
    if kind == "auto":
        few = numeric and bool((numbers == np.round(numbers)).all()) and distinct <= MAX_INTEGER_CLASSES
        kind = "classification" if few or not numeric else "regression"
    if kind == "regression":
        if not numeric:
            count = int((~np.isfinite(numbers)).sum())
            raise DataError(f"task {task.name}: {count} of {len(labels)} labels are no numbers; expected a regression")
        return kind, numbers, ()
    texts = [f"{number:g}" for number in numbers] if numeric else [str(text) for text in labels]
    classes = sorted(set(texts), key=float if numeric else str)
    if len(classes) > max(MAX_INTEGER_CLASSES, len(texts) // 2):
        raise DataError(
            f"task {task.name}: {len(classes)} different labels in {len(texts)} rows are no classes; "
            "is column `" + task.column + "` the right one?"
        )
    position = {name: number for number, name in enumerate(classes)}
    return kind, np.array([position[text] for text in texts], dtype=np.int64), tuple(classes)


def _groups(rows: pd.DataFrame, matched: pd.DataFrame, index: Path | None) -> tuple[str, ...]:
    """The patient of every row. Without a salt, a group of the label file is named by its first series."""
    frame = pd.DataFrame({"series": rows["series_key"].to_numpy(), "patient": rows["patient_key"].to_numpy()})
    frame["given"] = matched["group"].to_numpy()
    if index is None:
        frame["given"] = frame.groupby("given")["series"].transform("min").where(frame["given"].notna())
    known = frame["patient"].where(frame["patient"].notna() & (frame["patient"] != ""), frame["series"])
    return tuple(str(key) for key in frame["given"].where(frame["given"].notna(), known))
