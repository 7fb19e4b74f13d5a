"""The rows of an index while it is being made: on disk, so that memory does not grow with the archive.

They are in temporary tables of the store: `entries` (one per row of the index) and `uses` (the files behind them).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator

from lejepa_med.data.index.entry import Entry, FilePlace, from_json
from lejepa_med.data.index.store import Store

_TABLES = """
CREATE TEMP TABLE entries (
    series_key TEXT PRIMARY KEY, reason TEXT, source TEXT, modality TEXT, study_key TEXT, patient_key TEXT,
    signature TEXT, content TEXT, known_patient INTEGER, first_file INTEGER, record TEXT) WITHOUT ROWID;
CREATE TEMP TABLE uses (
    series_key TEXT, file INTEGER, frames TEXT, slots TEXT, PRIMARY KEY (series_key, file)) WITHOUT ROWID;
CREATE TEMP TABLE chosen (
    choice INTEGER, place INTEGER, series_key TEXT, PRIMARY KEY (choice, place)) WITHOUT ROWID;
"""


class EntryTable:
    """The entries of one run, in the store's database."""

    def __init__(self, store: Store) -> None:
        self._sql, self._store = store.sql, store
        self._sql.executescript(_TABLES)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes many changes at once, which is quicker."""
        with self._sql:
            self._sql.execute("BEGIN")
            yield

    def add(self, entries: Iterable[Entry]) -> None:
        """Takes in entries with their files."""
        for entry in entries:
            self._put("INSERT", entry, min(use.file for use in entry.files))
            self._sql.executemany(
                "INSERT INTO uses VALUES (?, ?, ?, ?)",
                [(entry.series_key, use.file, _text(use.frames), _text(use.slots)) for use in entry.files],
            )

    def update(self, entry: Entry) -> None:
        """Writes an entry anew; its files stay."""
        query = "SELECT first_file FROM entries WHERE series_key = ?"
        self._put("REPLACE", entry, self._sql.execute(query, (entry.series_key,)).fetchone()[0])

    def _put(self, verb: str, entry: Entry, first_file: int) -> None:
        self._sql.execute(
            f"{verb} INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.series_key, entry.reason, entry.source, entry.modality, entry.study_key, entry.patient_key,
                entry.signature, entry.content, "patient_unknown" not in entry.flags, first_file, entry.to_json(),
            ),
        )  # fmt: skip

    def add_without_volume(self, make: Callable[..., Entry]) -> None:
        """Adds a row per group of files without a volume; `make(key, kind, reason, patient, study, files, bytes)`."""
        condition = "FROM found f JOIN examined e ON e.key = f.key WHERE e.frames = 0 AND e.volumes = 0"
        groups = self._sql.execute(
            "SELECT e.series, e.kind, e.reason, e.patient, e.study, COUNT(*), SUM(f.size), MIN(f.file) "
            f"{condition} GROUP BY e.series ORDER BY e.series"
        )
        for *facts, first_file in groups:
            self._put("INSERT", make(*facts), first_file)
        self._sql.execute(f"INSERT INTO uses SELECT e.series, f.file, '', '' {condition}")

    def entries(self, condition: str = "TRUE", order: str = "series_key", limit: int = -1) -> Iterator[Entry]:
        """Entries that meet a condition; `update` may be called meanwhile."""
        # A list of keys would grow with the archive, and a cursor must not see its own changes: the keys are copied.
        choice = next(_NUMBERS)
        self._sql.execute(
            f"INSERT INTO chosen SELECT {choice}, ROW_NUMBER() OVER (ORDER BY {order}), series_key FROM entries "
            f"WHERE {condition} ORDER BY {order} LIMIT {limit}"
        )
        rows = self._sql.execute(
            "SELECT e.record FROM chosen c JOIN entries e USING (series_key) WHERE c.choice = ? ORDER BY c.place",
            (choice,),
        )
        for (record,) in rows:
            yield from_json(record)
        self._sql.execute("DELETE FROM chosen WHERE choice = ?", (choice,))

    def places(self, series_key: str) -> list[FilePlace]:
        """The files of an entry, in the order of the walk."""
        rows = self._sql.execute(
            "SELECT f.path, f.relative, f.size, f.mtime, u.frames, u.slots FROM uses u JOIN found f ON f.file = u.file "
            "WHERE u.series_key = ? ORDER BY u.file",
            (series_key,),
        )
        return [_place(*row) for row in rows]

    def all_places(self) -> Iterator[tuple[str, FilePlace]]:
        """The files of all entries, by key."""
        rows = self._sql.execute(
            "SELECT u.series_key, f.path, f.relative, f.size, f.mtime, u.frames, u.slots "
            "FROM uses u JOIN found f ON f.file = u.file ORDER BY u.series_key, u.file"
        )
        for key, *place in rows:
            yield key, _place(*place)

    def num_entries(self, condition: str = "TRUE") -> int:
        """How many entries meet a condition."""
        return self._store.count(f"SELECT COUNT(*) FROM entries WHERE {condition}")

    def num_files(self, condition: str = "TRUE") -> int:
        """How many different files entries that meet a condition have."""
        return self._store.count(
            "SELECT COUNT(*) FROM (SELECT DISTINCT u.file FROM uses u JOIN entries e USING (series_key) "
            f"WHERE {condition})"
        )

    def same_content(self) -> Iterator[list[Entry]]:
        """Usable entries with equal voxels in equal places, those of known patients first."""
        found = self._sql.execute(
            "SELECT content FROM entries WHERE reason = '' AND content != '' GROUP BY content HAVING COUNT(*) > 1 "
            "ORDER BY content"
        ).fetchall()
        for (content,) in found:
            condition = f"reason = '' AND content = '{content}'"
            yield list(self.entries(condition, "known_patient DESC, first_file, series_key"))

    def sample(self, size: int) -> list[Entry]:
        """Usable entries without burnt-in text, as evenly from each source and modality as there are.

        Keys are hashes, so the first ones in their order are a random choice.
        """
        rows = self._sql.execute(
            "SELECT record FROM (SELECT record, source, modality, series_key, ROW_NUMBER() OVER "
            "(PARTITION BY source, modality ORDER BY series_key) AS turn FROM entries "
            """WHERE reason = '' AND instr(record, '"burned_in"') = 0) """
            "ORDER BY turn, source, modality LIMIT ?",
            (size,),
        )
        chosen = [from_json(record) for (record,) in rows]
        return sorted(chosen, key=lambda entry: (entry.source, entry.modality, entry.series_key))


_NUMBERS = itertools.count()


def _place(path: str, relative: str, size: int, mtime: int, frames: str, slots: str) -> FilePlace:
    return FilePlace(path, relative, size, mtime, _numbers(frames), _numbers(slots))


def _text(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))
