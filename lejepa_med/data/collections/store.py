"""The items of a published layout by key, as `prepare` and its workers read them.

    CACHE/private/salt             (mode 600) as of an index: ids and paths of label files find their series with it
    CACHE/private/files.parquet    (mode 600) path, mask, part and array of every series; only its keys go elsewhere
    CACHE/labels.csv               (mode 600) series_key, patient_key, split, site, labels; only where there are any

`data.index: CACHE/private` makes label files by patient id or path work, as they do with an index.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lejepa_med.data.collections.item import PICTURES, Collection, CollectionItem
from lejepa_med.data.collections.medmnist import RowReader
from lejepa_med.data.files import images, nifti, storage
from lejepa_med.data.files.file_volume import BadFile
from lejepa_med.data.index.entry import geometry_of
from lejepa_med.data.privacy import keyed_hash, load_salt, patient_key, read_salt, write_private
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.whole_files import alone


class CollectionStore:
    """Opened for reading, by series key."""

    def __init__(self, rows: Mapping[str, Mapping[str, Any]], mask_labels: Mapping[int, str]) -> None:
        self._rows, self.mask_labels = rows, mask_labels
        self._reader: tuple[tuple[str, str], RowReader] | None = None

    @classmethod
    def open(cls, folder: Path) -> CollectionStore:
        table = pd.read_parquet(folder / "files.parquet")
        labels = pd.read_parquet(folder / "mask_labels.parquet")
        rows = {str(row["series_key"]): {str(k): v for k, v in row.items()} for row in table.to_dict("records")}
        return cls(rows, {int(value): str(name) for value, name in zip(labels["value"], labels["name"], strict=True)})

    def fingerprint(self, series_key: str) -> str:
        """Identity of the image: its file's size and modification time, and which part of it."""
        row = self._rows[series_key]
        return _identity(row["path"], f"series {series_key}: image missing", f"{row['part']} {row['array']}")

    def mask_fingerprint(self, series_key: str) -> str:
        """Empty where there is no mask."""
        mask = self._rows[series_key]["mask"]
        return _identity(mask, f"series {series_key}: mask missing", "") if mask else ""

    def read(self, series_key: str) -> Volume:
        """The voxels of one image. Raises DataError that names the series."""
        row = self._rows[series_key]
        if row["array"]:
            return Volume(self._arrays(row["path"], row["array"]).row(int(row["part"])), np.eye(4), "image")
        try:
            if row["path"].lower().endswith(PICTURES):
                return images.read(Path(row["path"]), int(row["part"]))
            return nifti.read(Path(row["path"]), int(row["part"]), str(row["modality"]))
        except (BadFile, OSError) as error:
            raise DataError(f"series {series_key}: image {_reason(error)}") from None

    def read_mask(self, series_key: str) -> Volume:
        """Its mask, as stored. Raises DataError that names the series."""
        mask = Path(self._rows[series_key]["mask"])
        try:
            if mask.name.lower().endswith(PICTURES):
                return images.read_labels(mask)
            return nifti.read(mask, 0, "mask")
        except (BadFile, OSError) as error:
            raise DataError(f"series {series_key}: mask {_reason(error)}") from None

    def geometry(self, series_key: str) -> dict[str, str]:
        """`spacing_mm` and `orientation` of a NIfTI file, as an index has them."""
        try:
            spacing, orientation = geometry_of(nifti.read_affine(Path(self._rows[series_key]["path"])), 3)
        except (BadFile, OSError) as error:
            raise DataError(f"series {series_key}: image {_reason(error)}") from None
        return {"spacing_mm": ";".join(f"{length:.6g}" for length in spacing), "orientation": orientation}

    def _arrays(self, path: str, array: str) -> RowReader:
        if self._reader is None or self._reader[0] != (path, array):
            self._reader = (path, array), RowReader(Path(path), array)
        return self._reader[1]


def _identity(path: str, missing: str, which: str) -> str:
    try:
        size, time = storage.identity(path)
    except OSError:
        raise DataError(missing) from None
    return hashlib.sha256(f"{size} {time} {which}".encode()).hexdigest()[:16]


def _reason(error: Exception) -> str:
    return f"cannot be read ({error.reason})" if isinstance(error, BadFile) else "cannot be read (unreadable)"


def rows_of(collection: Collection) -> pd.DataFrame:
    """What `prepare` asks of a series, without keys; `item` is the place among the items."""
    rows = [
        {"item": place, "modality": item.modality, "sequence": item.sequence, "as_is": bool(item.array)}
        for place, item in enumerate(collection.items)
        if not item.problem
    ]
    table = pd.DataFrame(rows, columns=["item", "modality", "sequence", "as_is"])
    return table.assign(series_key="", shape="", spacing_mm="", orientation="")


class Keys:
    """The keys that a cache gives to items. `private` is made where there is none yet, with the salt of `like`."""

    def __init__(self, out: Path, like: Path | None) -> None:
        private = out / "private"
        with alone(out):
            private.mkdir(mode=0o700, exist_ok=True)
            if like is not None and not (private / "salt").exists():
                write_private(private / "salt", read_salt(like))
            self._salt = load_salt(private)
        if like is not None and read_salt(like) != self._salt:
            raise DataError(f"source.salt: the cache {out} was made with another salt; choose another --out")

    def of(self, item: CollectionItem) -> dict[str, str]:
        """The keys of series, patient and study."""
        return {
            "series_key": self.series(item),
            "patient_key": patient_key(self._salt, item.patient),
            "study_key": keyed_hash(self._salt, "study", item.study),
        }

    def series(self, item: CollectionItem) -> str:
        return keyed_hash(self._salt, "collection", item.name)

    def site(self, item: CollectionItem) -> str:
        return keyed_hash(self._salt, "site", item.site) if item.site else ""


def write_private_tables(private: Path, collection: Collection, rows: Sequence[Mapping[Any, Any]]) -> None:
    """What workers read: the files of the series in `rows`. Unchanged, it is left as it is."""
    found = []
    for row in rows:
        item = collection.items[int(row["item"])]
        mask = str(item.mask.absolute()) if item.mask else ""
        paths = {"path": str(item.image.absolute()), "mask": mask, "part": item.part, "array": item.array}
        found.append({"series_key": row["series_key"], "modality": row["modality"]} | paths)
    labels = sorted(collection.mask_labels.items())
    _write(private / "files.parquet", pd.DataFrame(found))
    _write(private / "mask_labels.parquet", pd.DataFrame(labels, columns=["value", "name"]))


def _write(file: Path, table: pd.DataFrame) -> None:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    if not file.exists() or file.read_bytes() != buffer.getvalue():
        write_private(file, buffer.getvalue())


def write_labels(out: Path, collection: Collection, keys: Keys, prepared: Mapping[str, str]) -> None:
    """`labels.csv` of what was prepared (series key -> patient key), if the layout has labels, splits or sites."""
    rows = []
    for item in collection.items:
        key = keys.series(item)
        if key in prepared:
            known = {"series_key": key, "patient_key": prepared[key], "split": item.split, "site": keys.site(item)}
            rows.append(known | dict(item.labels))
    table = pd.DataFrame(rows).sort_values("series_key").fillna("")
    table = table.drop(columns=[name for name in ("split", "site") if not table[name].any()])
    if len(table.columns) > 2:
        write_private(out / "labels.csv", table.to_csv(index=False, lineterminator="\n").encode())
