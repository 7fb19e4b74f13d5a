"""Indexes an archive: every file is looked at once, every volume gets a verdict, every other file a reason.

INDEX/series.parquet  series.csv   one row per volume, and per group of files that are no volume; no identities
      index.html                   counts, a table and middle slices; no identities
      files.parquet                private: which file belongs to which series
      scan.sqlite                  private: what earlier runs found, so that unchanged files are not read again
      salt                         private: makes the keys
"""

from __future__ import annotations

import functools
import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lejepa_med.compute import spread
from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.files.own_output import check_out
from lejepa_med.data.files.walk import Found, walk
from lejepa_med.data.index.acquisitions import from_json, groups, member_of, to_json
from lejepa_med.data.index.archive_page import write_page
from lejepa_med.data.index.archive_tables import write_csv, write_files, write_series
from lejepa_med.data.index.entries_dicom import dicom_entries
from lejepa_med.data.index.entries_files import HU_OF_FAT, Context, Patients, check_patients, file_entries
from lejepa_med.data.index.entries_other import other_entry
from lejepa_med.data.index.entry import Entry
from lejepa_med.data.index.entry_table import EntryTable
from lejepa_med.data.index.examine import Examined, Record, record, record_crashed, record_many, unpack_volumes
from lejepa_med.data.index.probe import CRASHED, Probe, Probed, probe_many
from lejepa_med.data.index.pseudonyms import Pseudonyms
from lejepa_med.data.index.rules import judge
from lejepa_med.data.index.store import Store
from lejepa_med.data.privacy import load_salt
from lejepa_med.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called with a stage, the number of things done and their total (0: not known yet)."""

_CRASHED = "crashed_reader"
_FILE_S, _VOLUME_S = 300.0, 300.0  # a reader that takes longer hangs


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


@dataclass(frozen=True)
class _Run:
    """What every stage needs."""

    store: Store
    salt: bytes
    settings: IndexSettings
    progress: Progress


def index(
    paths: Sequence[Path], out: Path, settings: IndexSettings, progress: Progress = lambda stage, done, total: None
) -> IndexSummary:
    """Writes the index of all files below `paths` into `out`, which may hold an earlier index of them.

    Raises `DataError` for a path that does not exist, where no file is a scan (nothing is written then), and where
    `out` holds anything else: it is left out of the walk.
    """
    check_out("index", out, "index")
    check_patients(settings.patients)
    with Store(out) as store:
        try:
            run = _Run(store, load_salt(out), settings, progress)
            return _index(paths, out, run)
        except sqlite3.OperationalError as error:  # such as a full disk; its messages hold no data
            raise DataError(f"index: {out} cannot be written ({error})") from None


def _index(paths: Sequence[Path], out: Path, run: _Run) -> IndexSummary:
    count = 0
    run.progress("finding files", 0, 0)
    for count in run.store.add_found(walk(paths, skip=out), run.salt):
        run.progress("finding files", count, 0)
    run.progress("finding files", count, count)
    files_read = _read(run)
    if not run.store.count(
        "SELECT EXISTS (SELECT 1 FROM examined e JOIN found f USING (key) WHERE frames + volumes > 0)"
    ):
        raise DataError(_nothing_found(run.store))
    table = EntryTable(run.store)
    _assemble(table, run)
    _probe(table, run)
    _reject_duplicates(table)
    _group(table)
    summary = _account(table, run.store.num_found(), files_read)
    write_files(out / "files.parquet", table)
    write_csv(out / "series.csv", table)
    write_page(out / "index.html", table, asdict(summary), run.settings.compute)
    write_series(out / "series.parquet", table)
    run.store.prune()
    return summary


def _read(run: _Run) -> int:
    """Reads what is not known yet, and returns how many files that were."""
    decode = run.settings.decode == "all"
    total, unread = run.store.num_found(), run.store.num_unread(decode)
    done = total - unread
    run.progress("files", done, total)
    work = functools.partial(record_many, run.salt, decode)
    crashed: list[Found] = []
    for batch, records in _records(work, run.store.unread(decode), run):
        read = [pair for pair in zip(batch, records, strict=True) if pair[1].reason != _CRASHED]
        run.store.add_records([found for found, _ in read], [outcome for _, outcome in read], run.salt)
        crashed += [found for found, outcome in zip(batch, records, strict=True) if outcome.reason == _CRASHED]
        done += len(read)
        run.progress("files", done, total)
    # A decoder may have crashed: the header alone tells which slices these are.
    for batch, records in _records(functools.partial(record_crashed, run.salt), crashed, run):
        run.store.add_records(batch, records, run.salt)
        done += len(batch)
        run.progress("files", done, total)
    return unread


def _records(
    work: Callable[[list[Found]], list[Record]], files: Iterable[Found], run: _Run
) -> Iterator[tuple[list[Found], list[Record]]]:
    lost = functools.partial(_lost, Pseudonyms(run.salt))
    return spread(work, files, run.settings.compute, lost, seconds_per_item=_FILE_S)


def _lost(names: Pseudonyms, found: Found) -> Record:
    return record(found, Examined("other", _CRASHED), names)


def _assemble(table: EntryTable, run: _Run) -> None:
    """Fills the table from what is known of the files."""
    run.store.place()
    total = run.store.count("SELECT COUNT(DISTINCT series) FROM placed")
    with table.transaction():
        for done, (uid, is_shared, members) in enumerate(run.store.series(), 1):
            entries = dicom_entries(uid, is_shared, members, run.salt, run.settings)
            table.add(_judged(entry, run) for entry in entries)
            run.progress("series", done, total)
        patients = Patients(run.settings.patients, lambda: (found for _, found, _, _ in run.store.volume_files()))
        context = Context(run.salt, run.settings)
        for number, found, kind, payload in run.store.volume_files():
            entries = file_entries(number, found, kind, unpack_volumes(payload), patients, context)
            table.add(_judged(entry, run) for entry in entries)
        table.add_without_volume(functools.partial(other_entry, salt=run.salt))


def _judged(entry: Entry, run: _Run) -> Entry:
    """The entry after the rules that know nothing of files, with what its group depends on."""
    if entry.reason in ("irregular_spacing", "too_few_slices") and "undecodable_slices" in entry.flags:
        entry = entry.rejected("undecodable")  # what is left of it has too many holes
    member = member_of(entry, Pseudonyms(run.salt))
    return judge(replace(entry, acquisition="" if member is None else to_json(member)), run.settings)


def _probe(table: EntryTable, run: _Run) -> None:
    """Adds what a look at the pixels of DICOM volumes tells."""
    condition = "signature != '' AND reason = ''"
    unknown = f"{condition} AND signature NOT IN (SELECT signature FROM probes)"
    total, done = table.num_entries(unknown), 0
    volumes = (Probed(entry, table.places(entry.series_key)) for entry in table.entries(unknown))
    work = functools.partial(probe_many, run.salt)
    for batch, probes in spread(work, volumes, run.settings.compute, lambda _: CRASHED, 4, _VOLUME_S):
        run.store.add_probes([(volume.entry.signature, probe) for volume, probe in zip(batch, probes, strict=True)])
        done += len(batch)
        run.progress("volumes", done, total)
    with table.transaction():
        for entry in table.entries(condition):
            probe = run.store.probe(entry.signature)
            assert probe is not None
            table.update(_with_probe(entry, probe))


def _with_probe(entry: Entry, probe: Probe) -> Entry:
    if probe.reason:
        return entry.rejected(probe.reason)
    if entry.modality == "ct" and probe.low > HU_OF_FAT:
        entry = entry.flagged("hu_uncertain")
    if probe.flags:
        entry = entry.flagged(*probe.flags.split(";"))
    return entry.with_content(probe.content)


def _reject_duplicates(table: EntryTable) -> None:
    """Of volumes with the same voxels in the same places the first is kept, one of a known patient before others.

    DICOM volumes count as the same only under another study: within one, equal volumes are a matter of its protocol
    (a repeated time point), while a study that was exported or anonymised twice would be in training and in test.
    """
    with table.transaction():
        for same in table.same_content():
            first, *others = same
            later = [entry for entry in others if entry.source != "dicom" or entry.study_key != first.study_key]
            if later:
                table.update(first.flagged("duplicate_file"))
            for entry in later:
                table.update(entry.rejected("duplicate"))


def _group(table: EntryTable) -> None:
    """Gives volumes that show one acquisition one group; no group reaches across patients."""
    with table.transaction():
        usable = table.entries("source = 'dicom' AND reason = ''", "patient_key, series_key")
        for _, members in itertools.groupby(usable, key=lambda entry: entry.patient_key):
            entries = list(members)
            labels = groups(from_json(entry.acquisition) for entry in entries)
            for entry in entries:
                if labels[entry.series_key] != entry.group_key:
                    table.update(replace(entry, group_key=labels[entry.series_key]))


def _account(table: EntryTable, files_seen: int, files_read: int) -> IndexSummary:
    assert table.num_files() == files_seen, "a file without a row"
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    modalities: Counter[str] = Counter()
    for entry in table.entries():
        verdicts[entry.verdict] += 1
        if entry.reason:
            reasons[entry.reason] += 1
        else:
            flags.update(entry.flags)
            modalities[entry.modality] += 1
    used = table.num_files("reason = ''")
    return IndexSummary(
        files_seen=files_seen,
        files_used=used,
        files_explained=files_seen - used,
        files_read=files_read,
        series=table.num_entries(),
        verdicts=_ordered(verdicts.items()),
        reasons=_ordered(reasons.items()),
        flags=_ordered(flags.items()),
        modalities=_ordered(modalities.items()),
    )


def _ordered(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The most frequent first."""
    return dict(sorted(counts, key=lambda item: (-item[1], item[0])))


def _nothing_found(store: Store) -> str:
    query = "SELECT e.reason, COUNT(*) FROM found f JOIN examined e USING (key) GROUP BY e.reason"
    reasons = _ordered(store.sql.execute(query))
    listed = ", ".join(f"{count} {reason}" for reason, count in list(reasons.items())[:3])
    return f"index: none of {store.num_found()} files is a scan ({listed}); expected DICOM, NIfTI, PNG, JPEG or TIFF"
