"""Files that are whole or not there, written by any number of processes at once, on one machine or several.

    DIR/.NAME.1f2e3d4c.partial    while it is written, locked by its writer; renamed to DIR/NAME when it is whole

The kernel frees the lock of a killed process: a partial file that nobody has locked is rubbish, and the next run
removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from lejepa_med.errors import DataError
from lejepa_med.file_locks import lock_stream

_SUFFIX = ".partial"
_ABANDONED_S = 24 * 3600  # where locks do not work, a partial file of this age is rubbish
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskError(DataError):
    """A folder that cannot be written: `problem` and `remedy`, or `reason`, a sentence; none names the folder."""

    def __init__(self, folder: Path, problem: str, remedy: str, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.problem, self.remedy, self.reason = problem, remedy, reason


@contextlib.contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """A stream whose bytes appear under `path` at the end, all at once; after an error there is nothing.

    `durable`: on the disk, also if the machine loses power now, before anything that is written later.

    Raises:
        DiskError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        with _locked(temporary) as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
            if sys.platform == "win32":  # an open file cannot be renamed there
                stream.close()
            temporary.replace(path)
        if durable:
            _flush_names(path.parent)
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, durable: bool = False) -> None:
    """A whole file or none."""
    with whole_file(path, durable) as stream:
        stream.write(content)


def cannot_write(folder: Path, error: OSError) -> DiskError:
    """The sentence for an error while writing into a folder."""
    if error.errno in _FULL:
        try:
            free = f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB free, or a quota is used up"
        except OSError:
            free = "or a quota is used up"
        problem, remedy = f"the disk is full ({free})", "make room"
        reason = f"{problem}; what is written stays: {remedy} and run the same command again"
        return DiskError(folder, problem, remedy, reason)
    problem = f"cannot be written ({os.strerror(error.errno).lower() if error.errno else 'input/output error'})"
    remedy = "raise the limit on the size of files" if error.errno == errno.EFBIG else "change its rights"
    return DiskError(folder, problem, remedy, f"{problem}; {remedy}, or choose another --out")


@contextlib.contextmanager
def in_a_sentence(folder: Path) -> Iterator[None]:
    """Turns what the system says of writing into a folder into a DiskError."""
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from None


def remove_abandoned(folders: Iterable[Path]) -> int:
    """Removes partial files whose writer is gone; returns how many."""
    removed = 0
    for folder in folders:
        for entry in _hidden(folder):
            if is_partial(entry.name) and _is_abandoned(entry):
                entry.unlink(missing_ok=True)
                removed += 1
    return removed


def is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(_SUFFIX)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process is in here with the same folder; without effect where locks do not work."""
    with (folder / ".lock").open("ab") as stream:
        with contextlib.suppress(OSError):
            lock_stream(stream)
        yield


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(temporary: Path) -> Iterator[BinaryIO]:
    """A new file, locked; made again if a cleaner took it for rubbish before the lock was there."""
    while True:
        stream = temporary.open("wb")
        with contextlib.suppress(OSError):
            lock_stream(stream)
        if os.fstat(stream.fileno()).st_nlink:
            break
        stream.close()
    with stream:
        yield stream


def _flush_names(folder: Path) -> None:
    """A renamed file is found under its new name after a loss of power; without effect where folders have no fsync."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _hidden(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.name.startswith(".")]
    except OSError:
        return []


def _is_abandoned(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            try:
                lock_stream(stream, wait=False)
            except BlockingIOError:
                return False
            except OSError:
                return time.time() - file.stat().st_mtime > _ABANDONED_S
            return os.fstat(stream.fileno()).st_nlink > 0
    except OSError:
        return False
