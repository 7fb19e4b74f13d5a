"""From an index or a published layout to a cache: every used series is read, preprocessed and stored once.

What fails is a row, not a crash.

CACHE/manifest.parquet   what is there (see `cache`)
CACHE/failures.csv       series_key, reason of what could not be prepared
CACHE/filled/ENTRY       how many slices of this entry are interpolated; only where there are any, written before it
CACHE/private            of a layout that is no index: paths and salt (see `collections.store`)

It runs in processes or on a cluster, is run again after a kill, and may run twice at once into one cache.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from lejepa_med.compute import spread
from lejepa_med.config import PrepareConfig
from lejepa_med.config.preparing import CollectionKind, SourceConfig
from lejepa_med.data import cache as cache_store
from lejepa_med.data.collections import recognise, store
from lejepa_med.data.collections.item import Collection
from lejepa_med.data.files.own_output import check_out
from lejepa_med.data.preparing_series import SourcePlace, manifest_row, prepare_batch
from lejepa_med.data.reading import Archive
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec
from lejepa_med.whole_files import remove_abandoned, write_atomically

_BATCH, _BATCH_OF_ARRAYS = 4, 256  # series handed to a process at a time
_VOLUME_S = 1800.0  # a decoder that takes longer hangs
_DIED = "the process that prepared it died: too little memory, or a decoder that crashed or never ended"

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
    source: Path,
    out: Path,
    config: PrepareConfig,
    progress: Progress = lambda stage, done, total: None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> PrepareSummary:
    """Prepares every accepted and flagged series of an index, or every image of a published layout.

    Run again after a kill, it goes on where it was.

    Raises:
        DataError: `source` is neither or not as it should be, `out` holds other files, the cache was made with other
            settings, no series is left (the modalities found are named), or the disk is full.
    """
    collection = _collection(source, config.source)
    found = Archive.open(source).rows() if collection is None else store.rows_of(collection)
    rows, left_out = _chosen(found, config)
    check_out("prepare", out, "cache")
    cache_store.write_settings(out, config.preprocess)
    remove_abandoned([out, out / "filled", *(out / "volumes").glob("??")])
    unusable: list[dict[str, Any]] = []
    if collection is None:
        place, keys = SourcePlace.of(source, is_collection=False), None
    else:
        left_out = {**collection.left_out, **left_out}
        keys = store.Keys(out, config.source.salt)
        rows, unusable = _with_keys(rows, collection, keys)
        store.write_private_tables(out / "private", collection, rows.to_dict("records"))
        place = SourcePlace.of(out / "private", is_collection=True)
    done = [*unusable, *_prepared(rows, place, out, config, progress, warn)]
    table, counts = _accounted(done, out)
    if collection is not None and keys is not None:
        _publish_masks(out, table, collection)
        store.write_labels(out, collection, keys, dict(zip(table["series_key"], table["patient_key"], strict=True)))
    cache_store.publish_manifest(out, table.sort_values("series_key"))
    return PrepareSummary(len(done) + sum(left_out.values()), len(table), int(table["reused"].sum()), counts, left_out)


def _collection(source: Path, settings: SourceConfig) -> Collection | None:
    """The items of a published layout; None for an index. Raises DataError for what is neither."""
    if recognise.is_index(source):
        return None
    if not source.exists():
        raise DataError(f"{source}: does not exist; expected a folder written by `index`, or a published collection")
    layout = recognise.layout_of(source, settings)
    if layout is None:
        kinds = ", ".join(get_args(CollectionKind))
        raise DataError(
            f"{source}: expected a folder written by `index`, or a collection laid out as one of {kinds}; "
            f"run `lejepa-med index {source} --out INDEX` first, or name the layout: source.kind=..."
        )
    return recognise.read(source, layout, settings)


def _with_keys(
    rows: pd.DataFrame, collection: Collection, keys: store.Keys
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The rows with their keys, and those of items that are known to be unusable.

    Raises:
        DataError: two images of a layout have one name.
    """
    named = pd.DataFrame([keys.of(collection.items[item]) for item in rows["item"]])
    rows = rows.drop(columns=["series_key", "group_key"]).join(named)
    if rows["series_key"].duplicated().any():
        raise DataError(f"{collection.kind}: {int(rows['series_key'].duplicated().sum())} images are listed twice")
    bad = [item for item in collection.items if item.problem]
    unusable = [manifest_row(dict(keys.of(item))) | {"reason": item.problem, "reused": False} for item in bad]
    return rows.assign(group_key=rows["series_key"]), unusable


def _prepared(
    rows: pd.DataFrame,
    place: SourcePlace,
    out: Path,
    config: PrepareConfig,
    progress: Progress,
    warn: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A manifest row of every series. Raises DataError if the disk is full."""
    entries, masks = _checksums(out)
    rows = rows.assign(
        known=[entries.get(str(key), "") for key in rows["series_key"]],
        known_mask=[masks.get(str(key), "") for key in rows["series_key"]],
    )
    _warn_of_little_space(rows[rows["known"] == ""], out, config.preprocess, warn)
    work = partial(prepare_batch, place, out.resolve(), config.preprocess)
    batch = _BATCH_OF_ARRAYS if "as_is" in rows and rows["as_is"].all() else _BATCH
    done: list[dict[str, Any]] = []
    for _, results in spread(work, rows.to_dict("records"), config.compute, _lost, batch, _VOLUME_S):
        if disk := next((result["disk"] for result in results if "disk" in result), ""):
            raise DataError(f"cache {out}: {disk}")
        done += results
        progress("volumes", len(done), len(rows))
    return done


def _accounted(done: list[dict[str, Any]], out: Path) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows of what was prepared, and how many failed for which reason; `failures.csv` names those."""
    table = pd.DataFrame(done)
    failed = table[table["reason"] != ""]
    table = table[table["reason"] == ""]
    failures = failed[["series_key", "reason"]].sort_values("series_key").to_csv(index=False, lineterminator="\n")
    write_atomically(out / "failures.csv", failures.encode())
    counts = _counts(failed["reason"].str.split(":").str[0])  # numbers of single series come after a colon
    if table.empty:
        raise DataError(f"prepare: none of {len(done)} series could be prepared ({', '.join(sorted(counts))})")
    return table, counts


def _publish_masks(out: Path, table: pd.DataFrame, collection: Collection) -> None:
    """`mask_labels.json`: what the layout says of values, and a name for each that it does not."""
    if not (table["mask_entry"] != "").any():
        return
    found = {int(value) for values in table["mask_values"] for value in values}
    names = (
        {0: "background"} | {value: f"label {value}" for value in sorted(found - {0})} | dict(collection.mask_labels)
    )
    content = json.dumps({str(value): names[value] for value in sorted(names)}, indent=1, ensure_ascii=False)
    write_atomically(out / "mask_labels.json", content.encode())


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


def _checksums(out: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Entry and SHA-256 of every series, and of every mask, of an earlier `prepare` into the same cache."""
    if not (out / "manifest.parquet").exists():
        return {}, {}
    try:
        table = cache_store.read_manifest(out)
    except DataError:
        return {}, {}
    keys = table["series_key"]
    entries = dict(zip(keys, table["entry"] + " " + table["sha256"], strict=True))
    return entries, dict(zip(keys, table["mask_entry"] + " " + table["mask_sha256"], strict=True))


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
    if not row["shape"]:  # not known before it is read
        return 0.0
    if row["modality"] == "image":
        return float(spec.image_size**2)
    sides, spacing = (np.array(str(row[name]).split(";"), dtype=float) for name in ("shape", "spacing_mm"))
    voxels = float(np.prod(sides) * np.prod(spacing) / np.prod(spec.spacing_mm))
    return voxels * (2 if row["modality"] == "ct" else 1)


def _lost(row: dict[Any, Any]) -> dict[str, Any]:
    return manifest_row(row) | {"entry": "", "reason": _DIED, "reused": False}
