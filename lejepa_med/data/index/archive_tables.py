"""Writes the tables of an index, a few thousand rows at a time, each under a temporary name that is then renamed."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lejepa_med.data.index.entry import Entry
from lejepa_med.data.index.entry_table import EntryTable

_TEXT, _INTEGER, _INTEGERS = pa.string(), pa.int64(), pa.list_(pa.int64())
COLUMNS = (
    "series_key", "verdict", "reason", "flags", "modality", "body_part", "sequence", "shape", "spacing_mm",
    "orientation", "num_files", "num_slices", "patient_key", "study_key", "source", "bytes", "gaps_mm", "tilt_degrees",
    "group_key",
)  # fmt: skip
_TYPES = {"num_files": _INTEGER, "num_slices": _INTEGER, "bytes": _INTEGER, "tilt_degrees": pa.float64()}
_SERIES = pa.schema([(name, _TYPES.get(name, _TEXT)) for name in COLUMNS])
_FILES = pa.schema(
    {
        "path": _TEXT,
        "size": _INTEGER,
        "mtime": _INTEGER,
        "series_key": _TEXT,
        "verdict": _TEXT,
        "relative": _TEXT,
        "series_hash": _TEXT,
        "part": _INTEGER,
        "frames": _INTEGERS,
        "slots": _INTEGERS,
    }
)
_SERIES_ROWS, _FILES_ROWS = 16384, 4096  # per row group; of files.parquet a reader wants those of one series


def write_files(path: Path, table: EntryTable) -> None:
    """The private table: one row per file and series, by series."""
    _write_parquet(path, _FILES, _file_rows(table), _FILES_ROWS, 0o600)


def write_series(path: Path, table: EntryTable) -> None:
    """The public table, by key."""
    _write_parquet(path, _SERIES, map(series_row, table.entries()), _SERIES_ROWS, 0o666)


def write_csv(path: Path, table: EntryTable) -> None:
    """The same as text."""
    temporary = temporary_name(path)
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(series_row, table.entries()))
    temporary.replace(path)


def temporary_name(path: Path) -> Path:
    """Where a file is written before it is whole; the same for all runs, so killed ones leave no more than that."""
    return path.with_name(f".{path.name}.partial")


def series_row(entry: Entry) -> tuple[Any, ...]:
    """The row of an entry in the public table."""
    return (
        entry.series_key, entry.verdict, entry.reason, ";".join(sorted(entry.flags)), entry.modality, entry.body_part,
        entry.sequence, ";".join(map(str, entry.shape)), _lengths(entry.spacing_mm), entry.orientation, entry.num_files,
        entry.num_slices, entry.patient_key, entry.study_key, entry.source, entry.bytes, _lengths(entry.gaps_mm),
        entry.tilt_degrees, entry.group_key,
    )  # fmt: skip


def _lengths(lengths_mm: Iterable[float]) -> str:
    return ";".join(f"{length:.6g}" for length in lengths_mm)


def _file_rows(table: EntryTable) -> Iterator[tuple[Any, ...]]:
    places = itertools.groupby(table.all_places(), key=lambda pair: pair[0])
    for entry, (key, members) in zip(table.entries(), places, strict=True):
        assert entry.series_key == key, "an entry without a file"
        for _, place in members:
            yield (
                place.path, place.size, place.mtime, key, entry.verdict, place.relative, entry.series_hash, entry.part,
                place.frames, place.slots,
            )  # fmt: skip


def _write_parquet(path: Path, schema: pa.Schema, rows: Iterable[tuple[Any, ...]], size: int, mode: int) -> None:
    temporary = temporary_name(path)
    temporary.unlink(missing_ok=True)
    source = iter(rows)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        with pq.ParquetWriter(file, schema) as writer:
            while chunk := list(itertools.islice(source, size)):
                columns = zip(*chunk, strict=True)
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=size)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
