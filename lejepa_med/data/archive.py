"""Indexes an archive: every file is looked at once, every volume gets a verdict, every other file a reason.

INDEX/series.parquet  series.csv   one row per volume, and per group of files that are no volume; no identities
      index.html                   counts, a table and middle slices; no identities
      files.parquet                private: which file belongs to which series
      headers.jsonl  probes.jsonl  private: what earlier runs found, so that unchanged files are not read again
      salt                         private: makes the keys
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import joblib

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.archive_page import write_page
from lejepa_med.data.entries_dicom import dicom_entries
from lejepa_med.data.entries_files import HU_OF_FAT, file_entries
from lejepa_med.data.entries_other import other_entries
from lejepa_med.data.entry import Entry, files_table, series_table
from lejepa_med.data.examine import Examined, HeaderCache, examine_many, from_line
from lejepa_med.data.privacy import load_salt, write_private
from lejepa_med.data.probe import Probe, ProbeCache, probe_many, signature
from lejepa_med.data.walk import Found, walk
from lejepa_med.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called with a stage, the number of things done and their total."""

_BATCH = 32
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class IndexSummary:
    """The account of one run: `files_seen = files_used + files_explained`."""

    files_seen: int
    files_used: int
    files_explained: int
    files_read: int
    series: int
    verdicts: dict[str, int]
    reasons: dict[str, int]
    flags: dict[str, int]
    modalities: dict[str, int]


def index(
    paths: Sequence[Path], out: Path, settings: IndexSettings, progress: Progress = lambda stage, done, total: None
) -> IndexSummary:
    """Writes the index of all files below `paths` into `out`, which may hold an earlier index of them.

    Raises `DataError` for a path that does not exist, and where no file is a scan (nothing is written then).
    """
    found = list(walk(paths, skip=out))
    headers = HeaderCache(out)
    examined, files_read = _examine(found, headers, settings.compute.workers, progress)
    if not any(outcome.frames or outcome.volumes for _, outcome in examined):
        if not headers.existed:
            headers.forget()
        raise DataError(_nothing_found(examined))
    entries = _entries(examined, load_salt(out), settings)
    entries = _probed(entries, ProbeCache(out), settings.compute.workers, progress)
    summary = _account(found, entries, files_read)
    _write(out, entries, summary)
    headers.tidy(found)
    return summary


def _entries(examined: Sequence[tuple[Found, Examined]], salt: bytes, settings: IndexSettings) -> list[Entry]:
    files = {found.path: found for found, _ in examined}
    frames = [frame for _, outcome in examined for frame in outcome.frames]
    volumes = [(found, outcome) for found, outcome in examined if outcome.volumes]
    others = [(found, outcome) for found, outcome in examined if not outcome.frames and not outcome.volumes]
    entries = dicom_entries(frames, files, salt, settings)
    entries += file_entries(volumes, salt, settings)
    entries += other_entries(others, salt)
    return sorted(entries, key=lambda entry: entry.series_key)


def _examine(
    found: Sequence[Found], cache: HeaderCache, workers: int, progress: Progress
) -> tuple[list[tuple[Found, Examined]], int]:
    """What is in each file, from the cache where it has not changed, and how many files were read."""
    lines = {file.path: cache.get(file) for file in found}
    unknown = [file for file in found if lines[file.path] is None]
    done = len(found) - len(unknown)
    progress("files", done, len(found))
    for batch, result in _in_batches(examine_many, unknown, workers):
        cache.add(result)
        lines.update({file.path: line for file, line in zip(batch, result, strict=True)})
        done += len(batch)
        progress("files", done, len(found))
    parsed = ((file, from_line(lines[file.path] or "")) for file in found)
    return [(file, outcome[1]) for file, outcome in parsed if outcome is not None], len(unknown)


def _probed(entries: list[Entry], cache: ProbeCache, workers: int, progress: Progress) -> list[Entry]:
    """The entries with what a look at the pixels of DICOM volumes adds."""
    keys = {entry.series_key: signature(entry) for entry in entries if entry.stack and not entry.reason}
    unknown = [entry for entry in entries if entry.series_key in keys and cache.get(keys[entry.series_key]) is None]
    done = 0
    for batch, result in _in_batches(_probe_entries, unknown, workers):
        cache.add([(keys[entry.series_key], found) for entry, found in zip(batch, result, strict=True)])
        done += len(batch)
        progress("volumes", done, len(unknown))
    return [_with_probe(entry, cache.get(keys.get(entry.series_key, ""))) for entry in entries]


def _probe_entries(entries: list[Entry]) -> list[Probe]:
    return probe_many([entry.stack for entry in entries if entry.stack is not None])


def _with_probe(entry: Entry, found: Probe | None) -> Entry:
    if found is None:
        return entry
    if found.reason:
        return entry.rejected(found.reason)
    return entry.flagged("hu_uncertain") if entry.modality == "ct" and found.low > HU_OF_FAT else entry


def _in_batches(
    work: Callable[[list[_Item]], list[_Result]], items: Sequence[_Item], workers: int
) -> Iterator[tuple[list[_Item], list[_Result]]]:
    """Each batch with its results, in order; in this process where that is quicker."""
    batches = [list(items[start : start + _BATCH]) for start in range(0, len(items), _BATCH)]
    workers = min(workers or os.cpu_count() or 1, len(batches))
    if workers <= 1:
        yield from ((batch, work(batch)) for batch in batches)
        return
    results = joblib.Parallel(n_jobs=workers, return_as="generator")(joblib.delayed(work)(batch) for batch in batches)
    yield from zip(batches, results, strict=True)


def _account(found: Sequence[Found], entries: Sequence[Entry], files_read: int) -> IndexSummary:
    used = {use.file.path for entry in entries if not entry.reason for use in entry.files}
    named = {use.file.path for entry in entries for use in entry.files}
    assert named == {file.path for file in found}, "a file without a row"
    return IndexSummary(
        files_seen=len(found),
        files_used=len(used),
        files_explained=len(named - used),
        files_read=files_read,
        series=len(entries),
        verdicts=_counts(entry.verdict for entry in entries),
        reasons=_counts(entry.reason for entry in entries if entry.reason),
        flags=_counts(flag for entry in entries if not entry.reason for flag in entry.flags),
        modalities=_counts(entry.modality for entry in entries if not entry.reason),
    )


def _counts(words: Iterator[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _nothing_found(examined: Sequence[tuple[Found, Examined]]) -> str:
    reasons = Counter(outcome.reason for _, outcome in examined).most_common(3)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons)
    return f"index: none of {len(examined)} files is a scan ({listed}); expected DICOM, NIfTI, PNG, JPEG or TIFF"


def _write(out: Path, entries: Sequence[Entry], summary: IndexSummary) -> None:
    table = series_table(entries)
    private = io.BytesIO()
    files_table(entries).to_parquet(private, index=False)
    write_private(out / "files.parquet", private.getvalue())
    public = io.BytesIO()
    table.to_parquet(public, index=False)
    _replace(out / "series.csv", table.to_csv(index=False, lineterminator="\n").encode())
    write_page(out / "index.html", entries, dataclasses.asdict(summary))
    _replace(out / "series.parquet", public.getvalue())


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
