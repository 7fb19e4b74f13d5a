"""From an index to a cache: every used series is read, preprocessed and stored once; what fails is a row, not a crash.

CACHE/manifest.parquet   what is there (see `cache`)
CACHE/failures.csv       series_key, reason of what could not be prepared
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from lejepa_med.config import PrepareConfig
from lejepa_med.data import cache as cache_store
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.reading import Archive
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError

_BATCH = 16  # series handed to a process at a time


@dataclass(frozen=True)
class PrepareSummary:
    """The account of one `prepare`: series = prepared + failed + left out."""

    series: int
    prepared: int
    reused: int
    failed: dict[str, int]
    left_out: dict[str, int]


def prepare(
    index_dir: Path,
    out: Path,
    config: PrepareConfig,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> PrepareSummary:
    """Prepares every accepted and flagged series; run again after a kill, it goes on where it was.

    Raises:
        DataError: the cache was made with other settings, or no series is left (the modalities found are named).
    """
    archive = Archive.open(index_dir)
    rows, left_out = _chosen(archive.rows(), config)
    cache_store.write_settings(out, config.preprocess)
    checksums = _checksums(out)
    rows = rows.assign(known=[checksums.get(str(key), "") for key in rows["series_key"]])
    done: list[dict[str, Any]] = []
    batches = [rows.iloc[low : low + _BATCH] for low in range(0, len(rows), _BATCH)]
    jobs = (delayed(_prepare_batch)(archive, batch, out, config) for batch in batches)
    workers = config.compute.workers or -1
    for results in Parallel(n_jobs=workers, return_as="generator")(jobs):
        done += results
        progress("volumes", len(done), len(rows))
    table = pd.DataFrame(done)
    failed = table[table["reason"] != ""]
    table = table[table["reason"] == ""]
    if table.empty:
        raise DataError(
            f"prepare: none of {len(rows)} series could be prepared ({', '.join(sorted(set(failed.reason)))})"
        )
    failures = failed[["series_key", "reason"]].to_csv(index=False, lineterminator="\n")
    cache_store.write_atomically(out / "failures.csv", failures.encode())
    temporary = out / ".manifest.parquet.partial"
    table.sort_values("series_key")[list(cache_store.COLUMNS)].to_parquet(temporary, index=False)
    temporary.replace(out / "manifest.parquet")
    return PrepareSummary(
        len(rows) + sum(left_out.values()), len(table), int(table["reused"].sum()), _counts(failed["reason"]), left_out
    )


def _chosen(rows: pd.DataFrame, config: PrepareConfig) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows to prepare, with their modality settled, and how many were left out for which reason."""
    known = rows["modality"].where(rows["modality"] != "unknown", config.modality or "unknown")
    rows = rows.assign(modality=known)
    reason = pd.Series("", index=rows.index)
    reason[rows["modality"] == "unknown"] = "modality unknown"
    if config.modalities is not None:
        reason[(reason == "") & ~rows["modality"].isin(config.modalities)] = "another modality"
    if config.sequences is not None:
        reason[(reason == "") & ~rows["sequence"].isin(config.sequences)] = "another sequence"
    left_out = _counts(reason[reason != ""])
    if (reason != "").all():
        found = ", ".join(f"{count} {name}" for name, count in sorted(_counts(rows["modality"]).items()))
        raise DataError(
            f"prepare: no series to prepare (found: {found or 'no accepted series'}); "
            "set modality, modalities or sequences in the config"
        )
    return rows[reason == ""].reset_index(drop=True), left_out


def _checksums(out: Path) -> dict[str, str]:
    """Entry and SHA-256 of every series of an earlier `prepare` into the same cache."""
    manifest = out / "manifest.parquet"
    if not manifest.exists():
        return {}
    table = pd.read_parquet(manifest, columns=["series_key", "entry", "sha256"])
    return dict(zip(table["series_key"], table["entry"] + " " + table["sha256"], strict=True))


def _counts(words: pd.Series[Any]) -> dict[str, int]:
    return {str(word): int(count) for word, count in words.value_counts().items()}


def _prepare_batch(archive: Archive, rows: pd.DataFrame, out: Path, config: PrepareConfig) -> list[dict[str, Any]]:
    return [_prepare_one(archive, row, out, config) for row in rows.to_dict("records")]


def _is_whole(path: Path, entry: str, known: str) -> bool:
    """Whether an entry is there and, where its checksum is known, as it was written; else it is made again."""
    if not path.exists():
        return False
    known_entry, _, checksum = known.partition(" ")
    if known_entry == entry:
        return cache_store.file_digest(path) == checksum
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return True


def _prepare_one(archive: Archive, row: dict[Any, Any], out: Path, config: PrepareConfig) -> dict[str, Any]:
    """A manifest row; `reason` is empty unless it failed. No message of another library is passed on."""
    key = str(row["series_key"])
    entry = cache_store.entry_name(key, archive.fingerprint(key), config.preprocess)
    path = cache_store.entry_path(out, entry)
    result = {name: row.get(name, "") for name in cache_store.COLUMNS} | {"entry": entry, "reason": ""}
    reused = _is_whole(path, entry, row["known"])
    if not reused:
        try:
            volume = archive.read(key)
            prepared = prepare_volume(Volume(volume.array, volume.affine, row["modality"]), config.preprocess)
        except DataError as error:
            return result | {"reason": str(error).removeprefix(f"series {key}: "), "reused": False}
        except MemoryError:
            return result | {"reason": "too large for the memory of this machine", "reused": False}
        cache_store.write_entry(out, entry, prepared.array)
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    spacing = None if row["modality"] == "image" else list(config.preprocess.spacing_mm)
    digest = cache_store.file_digest(path)
    return result | {"shape": list(shape), "spacing_mm": spacing, "sha256": digest, "reused": reused}
