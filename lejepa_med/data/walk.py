"""Finds every file under the given paths; what cannot be entered or followed is found too, with its reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lejepa_med.errors import DataError


@dataclass(frozen=True)
class Found:
    """A file: where, under which root, and why it is not read (`reason`, empty for a plain file)."""

    path: str
    relative: str
    size: int
    mtime: int
    reason: str = ""


def walk(paths: Sequence[Path], skip: Path | None = None) -> list[Found]:
    """All files below `paths` in the order of their names, each once; links are followed, `skip` is left out.

    `relative` starts with the name of the given folder, so that it survives moving the archive elsewhere.
    """
    found: dict[str, Found] = {}
    folders: dict[tuple[int, int], str] = {}
    names: dict[str, list[Path]] = {}
    for number, path in enumerate(paths, 1):
        if not os.path.lexists(path):
            raise DataError(f"index: PATH {number} does not exist")
        root = path.resolve()
        names[root.name] = (
            [*names.get(root.name, []), root] if root not in names.get(root.name, []) else names[root.name]
        )
        twin = names[root.name].index(root)
        label = root.name if twin == 0 else f"{root.name}~{twin + 1}"  # keys are made of it, so it is unique
        before = len(found)
        seen_files: Iterator[Found]
        if root.is_dir():
            seen_files = _folder(root, label, folders, (), skip.resolve() if skip else None)
        else:
            seen_files = iter([_file(root, f"{root.parent.name}/{root.name}")])
        for file in seen_files:
            found.setdefault(file.path, file)
        if len(found) == before and len(paths) == 1:
            raise DataError(f"index: PATH {number} holds no file")
    return list(found.values())


def _folder(
    folder: Path,
    relative: str,
    folders: dict[tuple[int, int], str],
    above: tuple[tuple[int, int], ...],
    skip: Path | None,
) -> Iterator[Found]:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        yield Found(str(folder), relative, 0, 0, "permission_denied")
        return
    except OSError:
        yield Found(str(folder), relative, 0, 0, "unreadable")
        return
    identity = (status.st_dev, status.st_ino)
    folders.setdefault(identity, str(folder))
    for entry in entries:
        path, name = Path(entry.path), f"{relative}/{entry.name}"
        if skip is not None and path == skip:
            continue
        if entry.is_dir():
            reason = _why_not_enter(entry, folders, (*above, identity))
            if reason:
                yield Found(entry.path, name, 0, 0, reason)
            else:
                yield from _folder(path, name, folders, (*above, identity), skip)
        else:
            yield _file(path, name)


def _why_not_enter(
    entry: os.DirEntry[str], folders: dict[tuple[int, int], str], above: tuple[tuple[int, int], ...]
) -> str:
    if not entry.is_symlink():
        return ""
    status = entry.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return "symlink_loop"
    return "linked_twice" if identity in folders else ""


def _file(path: Path, relative: str) -> Found:
    try:
        status = path.stat()
    except PermissionError:
        return Found(str(path), relative, 0, 0, "permission_denied")
    except OSError as error:
        loop = error.errno == 40 or "symbolic" in str(error).lower()
        return Found(str(path), relative, 0, 0, "symlink_loop" if loop else "broken_link")
    if not _is_text(str(path)):
        return Found(_as_text(str(path)), _as_text(relative), status.st_size, status.st_mtime_ns, "unreadable_name")
    if not stat.S_ISREG(status.st_mode):
        return Found(str(path), relative, 0, status.st_mtime_ns, "special_file")
    reason = "" if status.st_size else "empty_file"
    return Found(str(path), relative, status.st_size, status.st_mtime_ns, reason)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
