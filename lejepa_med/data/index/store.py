"""What earlier runs of `index` found, so that an unchanged file is not read again; written while a run goes on.

INDEX/scan.sqlite   private (mode 600): what was found in each file and volume, by salted hashes; no path, id, UID, date

Paths live in temporary tables, in a file without a name that ends with the run, however it ends.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from lejepa_med.data.files.walk import Found
from lejepa_med.data.index.examine import VERSION, Record
from lejepa_med.data.index.probe import Probe
from lejepa_med.errors import DataError

_SCHEMA = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS examined (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, reason TEXT NOT NULL, series TEXT NOT NULL,
    uid TEXT NOT NULL, patient TEXT NOT NULL, study TEXT NOT NULL, frames INTEGER NOT NULL, volumes INTEGER NOT NULL,
    payload BLOB NOT NULL, decoded INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS probes (
    signature TEXT PRIMARY KEY, reason TEXT NOT NULL, low REAL NOT NULL, high REAL NOT NULL, content TEXT NOT NULL,
    flags TEXT NOT NULL);
CREATE TEMP TABLE found (
    file INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, relative TEXT NOT NULL, size INTEGER NOT NULL,
    mtime INTEGER NOT NULL, reason TEXT NOT NULL, key BLOB NOT NULL);
CREATE TEMP TABLE placed (series TEXT, file INTEGER, id INTEGER, PRIMARY KEY (series, file)) WITHOUT ROWID;
CREATE TEMP TABLE shared_uids (uid TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_SETTINGS = (
    "locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL", "cache_size=-16000", "temp_store=FILE",
    "temp.journal_mode=OFF", "temp.cache_size=-16000",
)  # fmt: skip
_PAGE = 2048  # rows that are fetched at a time where the table changes meanwhile
_LEFT_BY_OLDER_VERSIONS = ("headers.jsonl", "probes.jsonl")  # these held patient ids


class Member(NamedTuple):
    """A file of a series, by its number in the order of the walk."""

    file: int
    size: int
    key: bytes
    payload: bytes


class Store:
    """The store of one index folder, opened by one run at a time; raises `DataError` where another has it open."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "scan.sqlite"
        self._made = [path for path in (folder / "salt", self.path) if not path.exists()]
        self._made_folder = not folder.exists()
        self._set_tmpdir = "SQLITE_TMPDIR" not in os.environ
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._set_tmpdir:  # /tmp may be small, and is not where paths of the archive belong
                os.environ["SQLITE_TMPDIR"] = str(folder.resolve())
            self.sql = self._open()
        except (OSError, sqlite3.OperationalError):
            self._restore_environment()
            raise DataError(f"index: {folder} cannot be written, or another `index` is at work in it") from None

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:  # damaged: it only saves time
            self.path.unlink()
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self.path.chmod(0o600)  # SQLite gives its journals the mode of the file
        sql = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
        try:
            for setting in _SETTINGS:
                sql.execute(f"PRAGMA {setting}")
            if sql.execute("PRAGMA user_version").fetchone()[0] not in (0, _SCHEMA):
                sql.executescript("DROP TABLE IF EXISTS examined; DROP TABLE IF EXISTS probes;")
            sql.execute(f"PRAGMA user_version={_SCHEMA}")
            sql.executescript(_TABLES)
        except sqlite3.DatabaseError:
            sql.close()
            raise
        return sql

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sql.close()
        self._restore_environment()
        if isinstance(error, DataError):
            self._forget()

    def _restore_environment(self) -> None:
        if self._set_tmpdir:
            os.environ.pop("SQLITE_TMPDIR", None)

    def _forget(self) -> None:
        """Remove what this run made: the mistake of a user leaves nothing behind."""
        for path in self._made:
            path.unlink(missing_ok=True)
        if self._made_folder and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()

    def add_found(self, files: Iterable[Found], salt: bytes) -> Iterator[int]:
        """Takes in the files of a walk, each path once; yields how many there are, now and then."""
        self.sql.execute("BEGIN")
        count = 0
        for batch in _batches(files, _PAGE):
            rows = [(f.path, f.relative, f.size, f.mtime, f.reason, _key(salt, f)) for f in batch]
            self.sql.executemany(
                "INSERT OR IGNORE INTO found (path, relative, size, mtime, reason, key) VALUES (?, ?, ?, ?, ?, ?)", rows
            )
            count += len(rows)
            yield count
        self.sql.execute("COMMIT")
        self._retry_denied()

    def _retry_denied(self) -> None:
        """Forget that a file could not be read where it now can: its permissions change without a trace in its time."""
        denied = self.sql.execute(
            "SELECT e.id, f.path FROM examined e JOIN found f ON f.key = e.key WHERE e.reason = 'permission_denied'"
        ).fetchall()
        readable = [(row,) for row, path in denied if os.access(path, os.R_OK)]
        self.sql.executemany("DELETE FROM examined WHERE id = ?", readable)

    def count(self, query: str) -> int:
        """The one number that a query gives."""
        return int(self.sql.execute(query).fetchone()[0])

    def num_found(self) -> int:
        """Files of this run."""
        return self.count("SELECT COUNT(*) FROM found")

    def num_unread(self, decode: bool) -> int:
        """Files of this run that no run has read, or with `decode` not decoded either."""
        return self.count(f"SELECT COUNT(*) FROM found f WHERE {_UNREAD[decode]}")

    def unread(self, decode: bool) -> Iterator[Found]:
        """Those files, in the order of the walk; what is read meanwhile may be added."""
        last, query = 0, f"SELECT * FROM found f WHERE file > ? AND {_UNREAD[decode]} ORDER BY file LIMIT {_PAGE}"
        while page := self.sql.execute(query, (last,)).fetchall():
            yield from (
                Found(path, relative, size, mtime, reason) for _, path, relative, size, mtime, reason, _ in page
            )
            last = page[-1][0]

    def add_records(self, files: Sequence[Found], records: Sequence[Record], salt: bytes) -> None:
        """Keeps what was found in files."""
        rows = [(_key(salt, file), *record) for file, record in zip(files, records, strict=True)]
        with self.sql:
            self.sql.execute("BEGIN")
            self.sql.executemany(
                "INSERT OR REPLACE INTO examined "
                "(key, kind, reason, series, uid, patient, study, frames, volumes, payload, decoded) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def place(self) -> None:
        """Sorts the files with frames by series; payloads stay where they are."""
        with self.sql:
            self.sql.execute("BEGIN")
            self.sql.execute(
                "INSERT INTO placed SELECT e.series, f.file, e.id FROM found f JOIN examined e ON e.key = f.key "
                "WHERE e.frames > 0 ORDER BY e.series, f.file"
            )
            taken_over = self.sql.execute(_OF_THE_ONE_PATIENT).fetchall()
            self.sql.executemany("UPDATE placed SET series = ? WHERE series = ? AND file = ?", taken_over)
            self.sql.execute(
                "INSERT INTO shared_uids SELECT uid FROM (SELECT DISTINCT e.uid, p.series FROM placed p "
                "JOIN examined e ON e.id = p.id) GROUP BY uid HAVING COUNT(*) > 1"
            )

    def series(self) -> Iterator[tuple[str, bool, list[Member]]]:
        """Each series of frames: its UID's hash, whether other studies have that UID too, and its files."""
        names = self.sql.execute("SELECT DISTINCT series FROM placed ORDER BY series")
        for (name,) in names:
            rows = self.sql.execute(
                "SELECT f.file, f.size, f.key, e.payload, e.uid FROM placed p JOIN examined e ON e.id = p.id "
                "JOIN found f ON f.file = p.file WHERE p.series = ? ORDER BY p.file",
                (name,),
            ).fetchall()
            uid = rows[0][4]
            several = self.sql.execute("SELECT 1 FROM shared_uids WHERE uid = ?", (uid,)).fetchone() is not None
            yield uid, several, [Member(*row[:4]) for row in rows]

    def volume_files(self) -> Iterator[tuple[int, Found, str, bytes]]:
        """Each NIfTI file and image with volumes: its number, itself, its kind and its payload."""
        rows = self.sql.execute(
            "SELECT f.*, e.kind, e.payload FROM found f JOIN examined e ON e.key = f.key "
            "WHERE e.volumes > 0 ORDER BY f.file"
        )
        for file, path, relative, size, mtime, reason, _, kind, payload in rows:
            yield file, Found(path, relative, size, mtime, reason), kind, payload

    def probe(self, signature: str) -> Probe | None:
        """What a look at the pixels of a volume showed, if its files have not changed since."""
        row = self.sql.execute(
            "SELECT reason, low, high, content, flags FROM probes WHERE signature = ?", (signature,)
        ).fetchone()
        return None if row is None else Probe(*row)

    def add_probes(self, probes: Sequence[tuple[str, Probe]]) -> None:
        """Keeps what looks at pixels showed."""
        rows = [(signature, *probe) for signature, probe in probes]
        with self.sql:
            self.sql.execute("BEGIN")
            self.sql.executemany("INSERT OR REPLACE INTO probes VALUES (?, ?, ?, ?, ?, ?)", rows)

    def prune(self) -> None:
        """Forgets files that are gone or changed, volumes once they are most of it, and files of older versions."""
        with self.sql:
            self.sql.execute("BEGIN")
            self.sql.execute("DELETE FROM examined WHERE key NOT IN (SELECT key FROM found)")
            current = self.count("SELECT COUNT(*) FROM probes WHERE signature IN (SELECT signature FROM entries)")
            if 2 * current < self.count("SELECT COUNT(*) FROM probes"):
                self.sql.execute("DELETE FROM probes WHERE signature NOT IN (SELECT signature FROM entries)")
        for name in _LEFT_BY_OLDER_VERSIONS:
            (self.path.parent / name).unlink(missing_ok=True)


# Files without a patient id, where all others of their series and study have one: its series, theirs, the file.
_OF_THE_ONE_PATIENT = """
SELECT known.series, p.series, p.file FROM placed p JOIN examined e ON e.id = p.id JOIN (
    SELECT e.uid, e.study, MIN(p.series) AS series FROM placed p JOIN examined e ON e.id = p.id
    WHERE e.patient != '' AND e.study != '' AND e.uid IN (
        SELECT e.uid FROM placed p JOIN examined e ON e.id = p.id WHERE e.patient = '')
    GROUP BY e.uid, e.study HAVING COUNT(DISTINCT e.patient) = 1) AS known
ON e.uid = known.uid AND e.study = known.study WHERE e.patient = ''
"""
_KNOWN = "SELECT 1 FROM examined e WHERE e.key = f.key"
_UNREAD = {False: f"NOT EXISTS ({_KNOWN})", True: f"NOT EXISTS ({_KNOWN} AND e.decoded)"}


def _key(salt: bytes, file: Found) -> bytes:
    """Hash of all that must not change for a file to be the same. No field holds the byte 0."""
    message = "\0".join((file.path, file.relative, str(file.size), str(file.mtime), file.reason, str(VERSION)))
    return hmac.digest(salt, message.encode(), "sha256")[:16]


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
