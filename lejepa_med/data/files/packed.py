"""Zip and tar archives, read in place: their members are listed and opened, and nothing is unpacked under its name.

A stored zip member and a member of a plain tar are windows into the archive; a deflated zip member is unpacked as far
as it is read. A compressed tar has no way to a member but through all before it, so it is unpacked once into a
temporary file that has no name (it is gone with the process, also a killed one), and its members are windows into
that: reading n members costs one pass instead of n, in exchange for the archive's unpacked size on disk per process.
A few archives stay open per process, one compressed tar among them. Claims are limited before anything is read.
"""

from __future__ import annotations

import io
import os
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lejepa_med.data.files import packed_tar, packed_zip
from lejepa_med.data.files.byte_window import Descriptor, Inflated, Window
from lejepa_med.data.files.packed_member import SUFFIXES, Member

_MOST_OPEN = 4


@dataclass(frozen=True)
class Packed:
    """An open archive: its members by their names, which are unique and in its order, and what is wrong with it."""

    members: dict[str, Member]
    problem: str
    file: Descriptor
    mtime: int
    size: int
    separator: str
    is_zip: bool
    temporary: bool

    def time_of(self, member: Member) -> int:
        """The archive's time to the millisecond, in ns, and below that digits that change with member or archive."""
        facts = f"{self.mtime} {self.size} {member.start} {member.packed_size} {member.check}"
        return self.mtime // 10**6 * 10**6 + zlib.crc32(facts.encode()) % 10**6

    def open(self, name: str) -> BinaryIO:
        """One member, seekable; raises OSError."""
        member = self.members.get(name)
        if member is None:
            raise FileNotFoundError("no such member")
        if member.reason:
            raise OSError(member.reason)
        if not self.is_zip:
            return io.BufferedReader(Window(self.file, member.start, member.size))
        header = self.file.read(member.start, 30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise OSError("damaged archive")
        start = member.start + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        stretch = Window(self.file, start, member.packed_size)
        if member.method == "stored":
            return io.BufferedReader(stretch)
        return io.BufferedReader(Inflated(stretch, member.method, member.size, member.check))


def is_archive_name(path: str) -> bool:
    """Whether a file is taken for an archive that is read in place."""
    return path.lower().endswith(SUFFIXES)


def split(path: str) -> tuple[str, str] | None:
    """The archive and the member that `ARCHIVE!/inner/name` names, None for a plain path.

    A folder `ARCHIVE!` beside the archive is told apart by one more "!" for the member.
    """
    place = path.find("!/")
    while place >= 0:
        archive = path[:place].rstrip("!")
        if is_archive_name(archive) and Path(archive).is_file():
            return archive, path[place + 2 :]
        place = path.find("!/", place + 1)
    return None


def open_archive(path: str) -> Packed:
    """An archive, from this process's few open ones or opened anew; raises OSError where the file cannot be opened."""
    status = Path(path).stat()
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    with _lock:
        kept = _open.get(path)
        if kept is None or kept[0] != state:
            _open.pop(path, None)
            _make_room()
            kept = state, _opened(path, status)
            _open[path] = kept
        _open.move_to_end(path)
        if kept[1].temporary:  # unpacked tars are large: the last one only
            for other in [other for other, (_, archive) in _open.items() if archive.temporary and other != path]:
                del _open[other]
        return kept[1]


_State = tuple[int, ...]
_open: OrderedDict[str, tuple[_State, Packed]] = OrderedDict()
_lock = threading.Lock()


def _make_room() -> None:
    while len(_open) >= _MOST_OPEN:
        _open.popitem(last=False)


def _opened(path: str, status: os.stat_result) -> Packed:
    file = Descriptor(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
    separator = "!"
    while os.path.lexists(path + separator):
        separator += "!"
    is_zip, is_temporary, damage = file.read(0, 2) == b"PK", False, ""
    if not is_zip and packed_tar.compression(file):
        file, damage = packed_tar.unpacked(file)
        is_temporary = True
    members, problem = packed_zip.members(file) if is_zip else packed_tar.members(file)
    return Packed(members, damage or problem, file, status.st_mtime_ns, status.st_size, separator, is_zip, is_temporary)
