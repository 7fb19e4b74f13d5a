"""Prepared volumes on disk, addressed by what they were made from and checked when they are read.

    CACHE/cache.json                    format version, the PreprocessSpec of every entry, and a checksum of both
    CACHE/manifest.parquet  .sha256     one row per volume: keys, modality, sequence, shape, spacing, entry, sha256
    CACHE/volumes/ab/ab12....npy        one array or its mask; written under a temporary name and renamed
    CACHE/mask_labels.json              what the values of masks stand for; only where there are masks

The entry's name is a hash of (series key, sizes and times of its files, settings, code version): a changed scan or
setting is another entry, and a killed `prepare` leaves nothing half-written. Opening reads the manifest and no volume
(100,000 looks at a network disk take minutes); a volume is checked when a process first reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError

from lejepa_med.compute import spread
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data.cache_entry import entry_name as entry_name
from lejepa_med.data.cache_entry import entry_path as entry_path
from lejepa_med.data.cache_entry import write_entry as write_entry
from lejepa_med.data.stored_array import StoredArray
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec
from lejepa_med.whole_files import alone, is_partial
from lejepa_med.whole_files import file_digest as file_digest
from lejepa_med.whole_files import write_atomically as write_atomically

FORMAT_VERSION = 2
COLUMNS = ("series_key", "patient_key", "study_key", "modality", "sequence", "shape", "spacing_mm", "entry", "sha256")
"""Of every manifest. Those of format 1 have no more: each of their series is a group of its own."""
ALL_COLUMNS = (*COLUMNS, "group_key", "bytes", "filled_slices", "slice_axis", "mask_entry", "mask_sha256")
"""`mask_entry` and `mask_sha256` are empty where a volume has no mask."""
_AGAIN = "run `prepare` again to rebuild it (`lejepa-med prepare INDEX --out CACHE`)"


@dataclass(frozen=True)
class CachedVolume:
    """A prepared volume, `[R, A, S]` or `[row, column]`; one of a cache is read where its `array` is first used."""

    series_key: str
    patient_key: str
    modality: str
    stored: StoredArray | NDArray[np.generic]
    spacing_mm: tuple[float, ...] | None

    @cached_property
    def array(self) -> NDArray[np.generic]:
        """All voxels. Raises DataError if the file was cut since the volume was opened."""
        return self.stored.whole() if isinstance(self.stored, StoredArray) else self.stored


class Cache:
    """A cache folder, opened for reading; `verify=False` leaves the bytes of volumes unchecked."""

    def __init__(self, folder: Path, preprocess: PreprocessSpec, table: pd.DataFrame, verify: bool = True) -> None:
        self.folder, self.preprocess, self.table, self.verifies = folder, preprocess, table, verify
        self._rows = {key: position for position, key in enumerate(table["series_key"])}
        self._entries, self._digests = table["entry"].tolist(), table["sha256"].tolist()
        self._checked: set[str] = set()

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Cache:
        """Raises DataError where there is no complete cache of this format, or its description is damaged."""
        preprocess = read_settings(folder)
        manifest = folder / "manifest.parquet"
        if preprocess is None or not manifest.exists():
            raise DataError(
                f"cache {folder}: not a finished cache; make it with `lejepa-med prepare INDEX --out {folder}`"
            )
        return cls(folder, preprocess, read_manifest(folder), verify)

    def __len__(self) -> int:
        return len(self.table)

    def read(self, series_key: str) -> CachedVolume:
        """One volume; its voxels are read from disk where they are used. Raises DataError if it is damaged."""
        row = self.table.iloc[self._rows[series_key]]
        spacing = None if row["spacing_mm"] is None else tuple(float(side) for side in row["spacing_mm"])
        return CachedVolume(series_key, row["patient_key"], row["modality"], self.stored(series_key), spacing)

    def stored(self, series_key: str) -> StoredArray:
        """The voxels of one volume, checked when a process first asks for them. Raises DataError if damaged."""
        position = self._rows[series_key]
        damaged = f"cache {self.folder}: series {series_key} is missing or damaged; {_AGAIN}"
        return self._opened(self._entries[position], self._digests[position], damaged)

    def has_mask(self, series_key: str) -> bool:
        return bool(self.table["mask_entry"].iat[self._rows[series_key]])

    def read_mask(self, series_key: str) -> NDArray[np.uint8]:
        """Class numbers of the voxels of one volume, of its shape. Raises DataError if there are none, or damaged."""
        if not self.has_mask(series_key):
            raise DataError(f"cache {self.folder}: series {series_key} has no mask; `mask_entry` says which have one")
        row = self.table.iloc[self._rows[series_key]]
        damaged = f"cache {self.folder}: the mask of series {series_key} is missing or damaged; {_AGAIN}"
        stored = self._opened(str(row["mask_entry"]), str(row["mask_sha256"]), damaged)
        if stored.dtype != np.uint8 or list(stored.shape) != list(row["shape"]):
            raise DataError(damaged)
        return stored.whole().view(np.uint8)

    def mask_labels(self) -> dict[int, str]:
        """What the values of masks stand for, 0 first; empty if there are no masks. Raises DataError if damaged."""
        file = self.folder / "mask_labels.json"
        if not file.exists():
            return {}
        try:
            return {int(value): str(name) for value, name in json.loads(file.read_bytes()).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            raise DataError(f"cache {self.folder}: mask_labels.json is damaged; {_AGAIN}") from None

    def _opened(self, entry: str, digest: str, damaged: str) -> StoredArray:
        file = entry_path(self.folder, entry)
        if self.verifies and entry not in self._checked:
            if not _is_whole(file, digest):
                raise DataError(damaged)
            self._checked.add(entry)
        return StoredArray.open(file, damaged)

    def select(self, modalities: tuple[str, ...] | None, sequences: tuple[str, ...] | None) -> pd.DataFrame:
        """Rows of some modalities and sequences. Raises DataError if none is left."""
        table = self.table
        for column, wanted in (("modality", modalities), ("sequence", sequences)):
            if wanted is not None:
                table = table[table[column].isin(wanted)]
        if table.empty:
            kinds = self.table[["modality", "sequence"]].drop_duplicates().itertuples(index=False)
            found = ", ".join(sorted(f"{kind.modality} {kind.sequence}".strip() for kind in kinds))
            raise DataError(f"cache {self.folder}: no volume is of the kind asked for; found: {found}")
        return table.reset_index(drop=True)

    def verify(self, compute: ComputeConfig | None = None) -> Iterator[str]:
        """Series keys whose bytes are missing or not those that were written; in one process unless told otherwise."""
        compute = compute or ComputeConfig(workers=1)
        names = ("entry", "sha256", "mask_entry", "mask_sha256")
        rows = zip(self.table.series_key, *(self.table[name] for name in names), strict=True)
        for batch, whole in spread(partial(_are_whole, self.folder.resolve()), rows, compute, lambda row: False):
            yield from (row[0] for row, good in zip(batch, whole, strict=True) if not good)

    def strays(self) -> dict[str, list[str]]:
        """Files that the manifest does not name: `unlisted` (entries made earlier), `partial`, `other`."""
        listed = {entry_path(self.folder, entry).name for entry in (*self.table.entry, *self.table.mask_entry)}
        found: dict[str, list[str]] = {"unlisted": [], "partial": [], "other": []}
        for file in sorted((self.folder / "volumes").rglob("*")):
            if file.is_file() and file.name not in listed:
                is_entry = file.suffix == ".npy" and len(file.stem) == 32 and set(file.stem) <= set("0123456789abcdef")
                kind = "partial" if is_partial(file.name) else "unlisted" if is_entry else "other"
                found[kind].append(str(file.relative_to(self.folder)))
        return found

    def stats(self) -> dict[str, object]:
        """Counts, bytes and the distribution of shapes."""
        table = self.table
        members = table.group_key.value_counts()
        return {
            "volumes": len(table),
            "patients": int(table.patient_key.nunique()),
            "studies": int(table.study_key.nunique()),
            "groups": len(members),
            "groups_of_near_duplicates": int((members > 1).sum()),
            "modalities": table.modality.value_counts().to_dict(),
            "sequences": table.sequence.replace("", "unknown").value_counts().to_dict(),
            "bytes": self._bytes(),
            "masks": int((table.mask_entry != "").sum()),
            "shapes": _quantiles(table["shape"].tolist()),
            "spacing_mm": list(self.preprocess.spacing_mm),
        }

    def _bytes(self) -> int:
        if (self.table["bytes"] >= 0).all():
            return int(self.table["bytes"].sum())
        files = (entry_path(self.folder, entry) for entry in self.table.entry)
        return sum(file.stat().st_size for file in files if file.exists())


def _are_whole(folder: Path, rows: list[tuple[str, str, str, str, str]]) -> list[bool]:
    """Of rows (series key, entry, its checksum, mask's entry, its checksum)."""
    return [
        _is_whole(entry_path(folder, entry), digest) and (not mask or _is_whole(entry_path(folder, mask), mask_digest))
        for _, entry, digest, mask, mask_digest in rows
    ]


def _is_whole(file: Path, digest: str) -> bool:
    try:
        return file_digest(file) == digest
    except OSError:
        return False


_SHARES = {"smallest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "largest": 1.0}


def _quantiles(shapes: list[Any]) -> dict[str, list[float]]:
    """Quantiles of each side, for volumes and pictures apart."""
    found = {}
    for sides in sorted({len(shape) for shape in shapes}, reverse=True):
        table = np.array([list(shape) for shape in shapes if len(shape) == sides])
        for name, share in _SHARES.items():
            found[f"{sides}d {name}"] = np.quantile(table, share, axis=0).round(1).tolist()
    return found


def read_manifest(folder: Path) -> pd.DataFrame:
    """The rows of a cache, those of earlier formats with what they did not know. Raises DataError if it is damaged."""
    damaged = DataError(f"cache {folder}: manifest.parquet is damaged; {_AGAIN}")
    try:
        content, digests = (folder / "manifest.parquet").read_bytes(), _manifest_digests(folder)
    except OSError:
        raise damaged from None
    if digests and hashlib.sha256(content).hexdigest() not in digests:
        raise damaged
    try:
        table = pd.read_parquet(io.BytesIO(content))
    except Exception:
        raise damaged from None
    if not set(COLUMNS) <= set(table.columns):
        raise damaged
    return _with_unknowns(table)


def _with_unknowns(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns that earlier versions did not know: each volume its own group, numbers -1."""
    unknowns: dict[str, Any] = {"group_key": table["series_key"], "bytes": -1, "filled_slices": -1, "slice_axis": -1}
    unknowns |= {"mask_entry": "", "mask_sha256": ""}
    table = table.copy()
    for name, unknown in unknowns.items():
        table[name] = table.get(name, unknown)
    return table


def publish_manifest(folder: Path, table: pd.DataFrame) -> None:
    """Replaces the manifest. At every moment, also after a kill, its checksum file knows the one that is there."""
    buffer = io.BytesIO()
    _with_unknowns(table)[list(ALL_COLUMNS)].to_parquet(buffer, index=False)
    manifest, checksum = folder / "manifest.parquet", folder / "manifest.parquet.sha256"
    new = hashlib.sha256(buffer.getvalue()).hexdigest()
    with alone(folder):
        before = [file_digest(manifest)] if manifest.exists() else []
        write_atomically(checksum, "".join(f"{digest}\n" for digest in [*before, new]).encode())
        write_atomically(manifest, buffer.getvalue())
        write_atomically(checksum, f"{new}\n".encode())


def _manifest_digests(folder: Path) -> list[str]:
    file = folder / "manifest.parquet.sha256"
    return file.read_text(errors="replace").split() or ["none"] if file.exists() else []


def read_settings(folder: Path) -> PreprocessSpec | None:
    """The settings that a cache was made with; None where there is no cache yet."""
    file = folder / "cache.json"
    if not file.exists():
        return None
    try:
        content = file.read_bytes()
        header = json.loads(content)
        version, preprocess = header["version"], header["preprocess"]
        if version > FORMAT_VERSION:
            raise DataError(
                f"cache {folder}: format {version} is newer than this lejepa-med reads; upgrade it, or the file "
                "cache.json is damaged"
            )
        spec = PreprocessSpec.model_validate(preprocess)
        if (version != 1 or "sha256" in header) and content != _header(preprocess):
            raise ValueError("changed")
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        raise DataError(
            f"cache {folder}: cache.json is damaged; restore it, or remove it and run `prepare` with the same settings"
        ) from None
    return spec


def _header(preprocess: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, preprocess]).encode()).hexdigest()
    return json.dumps({"version": FORMAT_VERSION, "preprocess": preprocess, "sha256": digest}, indent=1).encode()


def write_settings(folder: Path, preprocess: PreprocessSpec) -> None:
    """Starts a cache, or checks that it was started with the same settings."""
    existing = read_settings(folder)
    if existing is not None and existing != preprocess:
        old, new = existing.model_dump(), preprocess.model_dump()
        changed = "; ".join(f"{key} {old[key]} there, {new[key]} asked for" for key in old if old[key] != new[key])
        raise DataError(f"cache {folder}: made with other settings ({changed}); choose another --out")
    content = _header(preprocess.model_dump(mode="json"))
    (folder / "volumes").mkdir(parents=True, exist_ok=True)
    if existing is None or (folder / "cache.json").read_bytes() != content:
        write_atomically(folder / "cache.json", content)
