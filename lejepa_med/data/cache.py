"""Prepared volumes on disk, addressed by what they were made from.

    CACHE/cache.json                    format version and the PreprocessSpec of every entry
    CACHE/manifest.parquet              one row per volume: keys, modality, sequence, shape, spacing, entry, sha256
    CACHE/volumes/ab/ab12....npy        one array; written under a temporary name and renamed

The entry's name is a hash of (series key, sizes and times of its files, settings, code version): a changed scan or
setting is another entry, and a killed `prepare` leaves nothing half-written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.data.preprocess import CODE_VERSION
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec

FORMAT_VERSION = 1
COLUMNS = ("series_key", "patient_key", "study_key", "modality", "sequence", "shape", "spacing_mm", "entry", "sha256")


@dataclass(frozen=True)
class CachedVolume:
    """A prepared volume: `array` is a read-only memory map, `[R, A, S]` or `[row, column]`."""

    series_key: str
    patient_key: str
    modality: str
    array: NDArray[np.generic]
    spacing_mm: tuple[float, ...] | None


class Cache:
    """A cache folder, opened for reading."""

    def __init__(self, folder: Path, preprocess: PreprocessSpec, table: pd.DataFrame) -> None:
        self.folder, self.preprocess, self.table = folder, preprocess, table
        self._rows = {key: position for position, key in enumerate(table["series_key"])}

    @classmethod
    def open(cls, folder: Path) -> Cache:
        """Raises DataError where there is no complete cache of this format."""
        preprocess = read_settings(folder)
        manifest = folder / "manifest.parquet"
        if preprocess is None or not manifest.exists():
            raise DataError(
                f"cache {folder}: not a finished cache; make it with `lejepa-med prepare INDEX --out {folder}`"
            )
        return cls(folder, preprocess, pd.read_parquet(manifest))

    def __len__(self) -> int:
        return len(self.table)

    def read(self, series_key: str) -> CachedVolume:
        """One volume; nothing is read from disk until its voxels are used. Raises DataError if it is damaged."""
        row = self.table.iloc[self._rows[series_key]]
        try:
            array = np.load(entry_path(self.folder, row["entry"]), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise DataError(
                f"cache {self.folder}: series {series_key} is missing or damaged; run `prepare` again to rebuild it"
            ) from None
        spacing = None if row["spacing_mm"] is None else tuple(float(side) for side in row["spacing_mm"])
        return CachedVolume(series_key, row["patient_key"], row["modality"], array, spacing)

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

    def verify(self) -> Iterator[str]:
        """Series keys whose bytes are missing or not those that were written."""
        for series_key, entry, digest in zip(self.table.series_key, self.table.entry, self.table.sha256, strict=True):
            path = entry_path(self.folder, entry)
            if not path.exists() or file_digest(path) != digest:
                yield series_key

    def stats(self) -> dict[str, object]:
        """Counts, bytes and the distribution of shapes."""
        sizes = [entry_path(self.folder, entry).stat().st_size for entry in self.table.entry]
        return {
            "volumes": len(self.table),
            "patients": int(self.table.patient_key.nunique()),
            "modalities": self.table.modality.value_counts().to_dict(),
            "bytes": int(sum(sizes)),
            "median_shape": np.median(np.array(self.table["shape"].tolist()), axis=0).tolist(),
            "spacing_mm": list(self.preprocess.spacing_mm),
        }


def read_settings(folder: Path) -> PreprocessSpec | None:
    """The settings that a cache was made with; None where there is no cache yet."""
    file = folder / "cache.json"
    if not file.exists():
        return None
    header = json.loads(file.read_text())
    if header["version"] > FORMAT_VERSION:
        raise DataError(f"cache {folder}: format {header['version']} is newer than this lejepa-med reads; upgrade it")
    return PreprocessSpec.model_validate(header["preprocess"])


def write_settings(folder: Path, preprocess: PreprocessSpec) -> None:
    """Starts a cache, or checks that it was started with the same settings."""
    existing = read_settings(folder)
    if existing is None:
        (folder / "volumes").mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": FORMAT_VERSION, "preprocess": preprocess.model_dump()}, indent=1)
        write_atomically(folder / "cache.json", text.encode())
    elif existing != preprocess:
        old, new = existing.model_dump(), preprocess.model_dump()
        changed = "; ".join(f"{key} {old[key]} there, {new[key]} asked for" for key in old if old[key] != new[key])
        raise DataError(f"cache {folder}: made with other settings ({changed}); choose another --out")


def entry_name(series_key: str, fingerprint: str, preprocess: PreprocessSpec) -> str:
    """Address of one prepared volume."""
    text = "\n".join((series_key, fingerprint, preprocess.key(), str(CODE_VERSION)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def entry_path(folder: Path, entry: str) -> Path:
    return folder / "volumes" / entry[:2] / f"{entry}.npy"


def write_entry(folder: Path, entry: str, array: NDArray[np.generic]) -> None:
    """Stores one array atomically; several processes may write the same entry."""
    path = entry_path(folder, entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
    temporary.replace(path)


def write_atomically(path: Path, content: bytes) -> None:
    """A whole file or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
