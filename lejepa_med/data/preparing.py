"""From an index to a cache: every used series is read, preprocessed and stored once; what fails is a row, not a crash.

CACHE/manifest.parquet   what is there (see `cache`)
CACHE/failures.csv       series_key, reason of what could not be prepared
CACHE/filled/ENTRY       how many slices of this entry are interpolated; only where there are any, written before it

It runs in processes or on a cluster, is run again after a kill, and may run twice at once into one cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lejepa_med.compute import spread
from lejepa_med.config import PrepareConfig
from lejepa_med.data import cache as cache_store
from lejepa_med.data.files.own_output import check_out
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.reading import Archive
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec
from lejepa_med.whole_files import DiskError, remove_abandoned, write_atomically

_BATCH = 4  # series handed to a process at a time
_VOLUME_S = 1800.0  # a decoder that takes longer hangs
_CLEARLY_WIDER = 1.5  # a voxel side that says which way the slices were cut
_DIED = "the process that prepared it died: too little memory, or a decoder that crashed or never ended"
_DEFECT = "it could not be prepared, by a defect of lejepa-med; please report it"

Progress = Callable[[str, int, int], None]
"""Called with a stage, the number of things done and their total."""


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
    progress: Progress = lambda stage, done, total: None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> PrepareSummary:
    """Prepares every accepted and flagged series; run again after a kill, it goes on where it was.

    Raises:
        DataError: `out` holds other files, the cache was made with other settings, no series is left (the modalities
            found are named), or the disk is full.
    """
    rows, left_out = _chosen(Archive.open(index_dir).rows(), config)
    check_out("prepare", out, "cache")
    cache_store.write_settings(out, config.preprocess)
    remove_abandoned([out, out / "filled", *(out / "volumes").glob("??")])
    checksums = _checksums(out)
    rows["known"] = [checksums.get(str(key), "") for key in rows["series_key"]]
    _warn_of_little_space(rows[rows["known"] == ""], out, config.preprocess, warn)
    work = partial(_prepare_batch, index_dir.resolve(), out.resolve(), config.preprocess)
    done: list[dict[str, Any]] = []
    for _, results in spread(work, rows.to_dict("records"), config.compute, _lost, _BATCH, _VOLUME_S):
        if disk := next((result["disk"] for result in results if "disk" in result), ""):
            raise DataError(f"cache {out}: {disk}")
        done += results
        progress("volumes", len(done), len(rows))
    table = pd.DataFrame(done)
    failed = table[table["reason"] != ""]
    table = table[table["reason"] == ""]
    failures = failed[["series_key", "reason"]].sort_values("series_key").to_csv(index=False, lineterminator="\n")
    write_atomically(out / "failures.csv", failures.encode())
    counts = _counts(failed["reason"].str.split(":").str[0])  # numbers of single series come after a colon
    if table.empty:
        raise DataError(f"prepare: none of {len(rows)} series could be prepared ({', '.join(sorted(counts))})")
    cache_store.publish_manifest(out, table.sort_values("series_key"))
    return PrepareSummary(len(done) + sum(left_out.values()), len(table), int(table["reused"].sum()), counts, left_out)


def _chosen(rows: pd.DataFrame, config: PrepareConfig) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows to prepare, with their modality and group settled, and how many were left out for which reason."""
    known = rows["modality"].where(rows["modality"] != "unknown", config.modality or "unknown")
    rows = rows.assign(modality=known, group_key=_groups(rows))
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


def _groups(rows: pd.DataFrame) -> pd.Series[Any]:
    """Near duplicates share a key; a series that the index puts in no group is one of its own."""
    if "group_key" not in rows:
        return rows["series_key"]
    return rows["group_key"].where(rows["group_key"].fillna("") != "", rows["series_key"])


def _checksums(out: Path) -> dict[str, str]:
    """Entry and SHA-256 of every series of an earlier `prepare` into the same cache."""
    if not (out / "manifest.parquet").exists():
        return {}
    try:
        table = cache_store.read_manifest(out)
    except DataError:
        return {}
    return dict(zip(table["series_key"], table["entry"] + " " + table["sha256"], strict=True))


def _counts(words: pd.Series[Any]) -> dict[str, int]:
    return {str(word): int(count) for word, count in words.value_counts().items()}


def _warn_of_little_space(rows: pd.DataFrame, out: Path, spec: PreprocessSpec, warn: Callable[[str], None]) -> None:
    needed = sum(_stored_bytes(row, spec) for row in rows.to_dict("records"))
    free = shutil.disk_usage(out).free
    if needed > free:
        warn(
            f"prepare: {needed / 1e9:,.1f} GB may be needed (before air is cropped away) and {free / 1e9:,.1f} GB are "
            f"free where {out} is; a full disk stops the work, and it can go on after making room"
        )


def _stored_bytes(row: dict[Any, Any], spec: PreprocessSpec) -> float:
    """The most that a series can take in the cache, by the shape and spacing that the index knows."""
    if row["modality"] == "image":
        return float(spec.image_size**2)
    sides, spacing = (np.array(str(row[name]).split(";"), dtype=float) for name in ("shape", "spacing_mm"))
    voxels = float(np.prod(sides) * np.prod(spacing) / np.prod(spec.spacing_mm))
    return voxels * (2 if row["modality"] == "ct" else 1)


def _slice_axis(row: dict[Any, Any]) -> int:
    """The axis (R, A or S) along which the slices of a scan lie; -1 where its voxels do not tell."""
    spacing = [float(side) for side in str(row["spacing_mm"]).split(";") if side]
    if len(spacing) != 3 or len(str(row["orientation"])) != 3:
        return -1
    widest = max(range(3), key=spacing.__getitem__)
    if spacing[widest] < _CLEARLY_WIDER * sorted(spacing)[1]:
        return -1
    return next(axis for axis, ends in enumerate(("RL", "AP", "SI")) if str(row["orientation"])[widest] in ends)


def _lost(row: dict[Any, Any]) -> dict[str, Any]:
    return _result(row) | {"entry": "", "reason": _DIED, "reused": False}


def _result(row: dict[Any, Any]) -> dict[str, Any]:
    return {name: row.get(name, "") for name in cache_store.ALL_COLUMNS} | {"reason": ""}


@lru_cache(maxsize=1)
def _archive(index_dir: Path, stamp: int) -> Archive:
    """The index, opened once per process and version."""
    return Archive.open(index_dir)


def _prepare_batch(
    index_dir: Path, out: Path, preprocess: PreprocessSpec, rows: list[dict[Any, Any]]
) -> list[dict[str, Any]]:
    archive = _archive(index_dir, (index_dir / "series.parquet").stat().st_mtime_ns)
    return [_prepare_one(archive, row, out, preprocess) for row in rows]


def _prepare_one(archive: Archive, row: dict[Any, Any], out: Path, preprocess: PreprocessSpec) -> dict[str, Any]:
    """A manifest row; `reason` is empty unless it failed. No message of another library is passed on."""
    key = str(row["series_key"])
    result = _result(row) | {"entry": "", "reused": False}
    try:
        entry = cache_store.entry_name(key, archive.fingerprint(key), preprocess)
        shape, written = _known(out, entry, row["known"]), None
        if shape is None:
            volume = archive.read(key)
            prepared = prepare_volume(Volume(volume.array, volume.affine, row["modality"]), preprocess)
            _write_filled(out, entry, volume.filled_slices)
            del volume
            shape, written = prepared.array.shape, cache_store.write_entry(out, entry, prepared.array)
        else:
            result["reused"] = True
        result["filled_slices"] = _filled(out, entry)
        path = cache_store.entry_path(out, entry)
        digest, size = written or (cache_store.file_digest(path), path.stat().st_size)
    except DiskError as error:
        return result | {"reason": "disk", "disk": error.reason}
    except DataError as error:
        return result | {"reason": str(error).removeprefix(f"series {key}: ")}
    except MemoryError:
        return result | {"reason": "too large for the memory of this machine"}
    except Exception:
        return result | {"reason": _DEFECT}
    spacing = None if row["modality"] == "image" else list(preprocess.spacing_mm)
    result["slice_axis"] = _slice_axis(row)
    return result | {"entry": entry, "shape": list(shape), "spacing_mm": spacing, "sha256": digest, "bytes": size}


def _write_filled(out: Path, entry: str, slices: int) -> None:
    """A trace that a kill leaves too: the manifest comes only at the end."""
    file = out / "filled" / entry
    if slices:
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, str(slices).encode())
    else:
        file.unlink(missing_ok=True)


def _filled(out: Path, entry: str) -> int:
    try:
        return int((out / "filled" / entry).read_bytes())
    except (OSError, ValueError):
        return 0


def _known(out: Path, entry: str, known: str) -> tuple[int, ...] | None:
    """The shape of an entry that is there and, where its checksum is known, as it was written; else None."""
    path = cache_store.entry_path(out, entry)
    known_entry, _, checksum = known.partition(" ")
    try:
        if known_entry == entry and cache_store.file_digest(path) != checksum:
            return None
        return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape)
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError):
        return None
