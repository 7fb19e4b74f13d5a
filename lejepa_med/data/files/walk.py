"""Finds every file under the given paths, and every file inside their zip and tar archives, one at a time.

What cannot be entered or followed is found too, with its reason. A link is followed where it leads out of the given
paths; what lies inside them is read under its own name. Kept in memory are the folders above the present one, their
remaining names, the folders and files outside that links led to, and the directory of the archive being listed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lejepa_med.data.files import own_output, packed
from lejepa_med.errors import DataError

_ANNEX = "/.git/annex/objects/"  # git-annex keeps contents there; the names that say what they are link to them


@dataclass(frozen=True)
class Found:
    """A file: where, under which root, and why it is not read (`reason`, empty for a plain file).

    A member of an archive has the path `ARCHIVE!/inner/name`, its own size, and a time made of the archive's.
    """

    path: str
    relative: str
    size: int
    mtime: int
    reason: str = ""


@dataclass(frozen=True)
class _Folder:
    """A folder that is being read: as it was reached, as it is without links, and what is left of it, last first."""

    path: str
    real: str
    relative: str
    rest: list[os.DirEntry[str]]


def walk(paths: Sequence[Path], skip: Path | None = None) -> Iterator[Found]:
    """All files below `paths`, each once, in the order of names (in archives: in theirs); `skip` is one entry.

    `relative` starts with the name of the given folder, so that it survives moving the archive elsewhere. Raises
    `DataError` for a path that does not exist, at once, and for a single path without a file.
    """
    roots = []
    for number, path in enumerate(paths, 1):
        if not os.path.lexists(path):
            raise DataError(f"index: PATH {number} does not exist")
        roots.append(os.path.realpath(path))
    return _complain_if_none(paths, _Walk(roots, os.path.realpath(skip) if skip else "").files())


def _complain_if_none(paths: Sequence[Path], files: Iterator[Found]) -> Iterator[Found]:
    number = 0
    for number, found in enumerate(files, 1):  # noqa: B007  (its last value is the count)
        yield found
    if not number and len(paths) == 1:
        raise DataError("index: PATH 1 holds no file")


class _Walk:
    def __init__(self, roots: list[str], skip: str) -> None:
        self._roots = roots
        self._skip = {skip} if skip else set()
        self._given = set(roots)
        self._walked: set[str] = set()  # roots that are done or under way, and folders outside that links led to
        self._closed: set[str] = set()  # folders that could not be listed
        self._linked: set[tuple[int, int]] = set()  # files outside that links led to
        self._above: list[_Folder] = []

    def files(self) -> Iterator[Found]:
        for root, label in zip(self._roots, _labels(self._roots), strict=True):
            if _inside(root, self._walked) and not _inside(str(Path(root).parent), self._closed):
                continue
            self._walked.add(root)
            if os.path.isdir(root):  # noqa: PTH112  (names that are no text break Path's messages, not this)
                yield from self._enter(root, root, label)
                yield from self._rest()
            else:
                yield from _file(root, f"{label}/{Path(root).name}")

    def _rest(self) -> Iterator[Found]:
        """Everything in the folders entered; a loop, since folders can be nested deeper than Python recurses."""
        while self._above:
            folder = self._above[-1]
            if folder.rest:
                yield from self._entry(folder, folder.rest.pop())
            else:
                self._above.pop()

    def _enter(self, path: str, real: str, relative: str) -> Iterator[Found]:
        entries: list[os.DirEntry[str]] = []
        try:
            with os.scandir(path) as listing:
                entries.extend(listing)
        except OSError as error:
            self._closed.add(real)
            yield _no_file(path, relative, "permission_denied" if _denied(error) else "unreadable")
        if own_output.kind_of({entry.name for entry in entries}):
            yield _no_file(path, relative, "own_output")
            return
        entries.sort(key=lambda entry: entry.name, reverse=True)
        self._above.append(_Folder(path, real, relative, entries))

    def _entry(self, folder: _Folder, entry: os.DirEntry[str]) -> Iterator[Found]:
        real = os.path.join(folder.real, entry.name)  # noqa: PTH118
        relative = f"{folder.relative}/{entry.name}"
        if real in self._skip:
            yield _no_file(entry.path, relative, "own_output")
            return
        if entry.is_symlink():
            yield from self._link(entry.path, relative)
        elif not _is_folder(entry):
            yield from _file(entry.path, relative)
        elif real not in self._walked and not (real in self._given and not _inside(real, set(self._roots) - {real})):
            yield from self._enter(entry.path, real, relative)

    def _link(self, path: str, relative: str) -> Iterator[Found]:
        target = os.path.realpath(path)
        if _inside(target, self._skip):
            yield _no_file(path, relative, "own_output")
            return
        try:
            status = Path(path).stat()
        except OSError as error:
            yield _no_file(path, relative, _why_no_target(error))
            return
        read_elsewhere = _inside(target, self._given) or _inside(target, self._walked)
        if stat.S_ISDIR(status.st_mode):
            if any(_inside(folder.real, {target}) for folder in self._above):
                yield _no_file(path, relative, "symlink_loop")
            elif read_elsewhere:
                yield _no_file(path, relative, "linked_twice")
            else:
                self._walked.add(target)
                yield from self._enter(path, target, relative)
            return
        identity = (status.st_dev, status.st_ino)
        if (read_elsewhere and _ANNEX not in target) or identity in self._linked:
            yield _no_file(path, relative, "linked_twice")
            return
        self._linked.add(identity)
        yield from _file(path, relative)


def _labels(roots: Sequence[str]) -> Iterator[str]:
    """The name of each root's folder, told apart where two folders have one name: keys are made of it."""
    names: dict[str, list[str]] = {}
    for root in roots:
        folder = root if os.path.isdir(root) else os.path.dirname(root)  # noqa: PTH112, PTH120
        name = _as_text(Path(folder).name) or "root"
        twins = names.setdefault(name, [])
        if folder not in twins:
            twins.append(folder)
        place = twins.index(folder)
        yield name if place == 0 else f"{name}~{place + 1}"


def _inside(path: str, folders: set[str]) -> bool:
    """Whether a path without links is one of the folders, or below one."""
    while folders and path not in folders:
        above = os.path.dirname(path)  # noqa: PTH120
        if above == path:
            return False
        path = above
    return bool(folders)


def _file(path: str, relative: str) -> Iterator[Found]:
    """One file, or the members of an archive."""
    try:
        status = Path(path).stat()
    except OSError as error:
        looping = error.errno == errno.ELOOP
        reason = "permission_denied" if _denied(error) else "symlink_loop" if looping else "unreadable"
        yield _no_file(path, relative, reason)
        return
    plain = Found(_as_text(path), _as_text(relative), status.st_size, status.st_mtime_ns, _reason(path, status))
    if not plain.reason and _ANNEX in f"/{relative}":
        yield _no_file(path, relative, "linked_twice")
    elif plain.reason or not packed.is_archive_name(path):
        yield plain
    else:
        yield from _members(plain)


def _members(archive: Found) -> Iterator[Found]:
    try:
        opened = packed.open_archive(archive.path)
    except OSError as error:
        yield _no_file(archive.path, archive.relative, "permission_denied" if _denied(error) else "unreadable")
        return
    for name, member in opened.members.items():
        inner = f"{opened.separator}/{name}"
        yield Found(archive.path + inner, archive.relative + inner, member.size, opened.time_of(member), member.reason)
    if opened.problem:
        yield Found(archive.path, archive.relative, archive.size, archive.mtime, opened.problem)


def _reason(path: str, status: os.stat_result) -> str:
    if _as_text(path) != path:
        return "unreadable_name"
    if not stat.S_ISREG(status.st_mode):
        return "special_file"
    return "" if status.st_size else "empty_file"


def _no_file(path: str, relative: str, reason: str) -> Found:
    return Found(_as_text(path), _as_text(relative), 0, 0, reason)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _why_no_target(error: OSError) -> str:
    if _denied(error):
        return "permission_denied"
    return "symlink_loop" if error.errno == errno.ELOOP else "broken_link"


def _denied(error: OSError) -> bool:
    return isinstance(error, PermissionError)


def _as_text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
