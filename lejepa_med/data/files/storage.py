"""Opens the bytes of a scan by its path, whether it is a file or a member of an archive (`ARCHIVE!/inner/name`)."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from lejepa_med.data.files import packed


def open_binary(path: str | Path) -> BinaryIO:
    """A file or member, opened for reading and seekable; raises OSError, also while reading a damaged archive."""
    try:
        return Path(path).open("rb")
    except (FileNotFoundError, NotADirectoryError):
        inside = packed.split(str(path))
        if inside is None:
            raise
        return packed.open_archive(inside[0]).open(inside[1])


def identity(path: str | Path) -> tuple[int, int]:
    """Size and time of a file or member, as `walk` gives them; they change with it. Raises OSError."""
    try:
        status = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        inside = packed.split(str(path))
        if inside is None:
            raise
        archive = packed.open_archive(inside[0])
        member = archive.members.get(inside[1])
        if member is None:
            raise
        return member.size, archive.time_of(member)
    return status.st_size, status.st_mtime_ns


def size(path: str | Path) -> int:
    """Bytes of a file or member; raises OSError."""
    return identity(path)[0]


def archive_of(path: str | Path) -> str | None:
    """The archive that holds a member, None for a plain file."""
    inside = None if Path(path).exists() else packed.split(str(path))
    return inside[0] if inside else None
