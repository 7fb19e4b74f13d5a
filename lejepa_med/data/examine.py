"""One look at one file: the frames or volumes in it, or the reason why there are none. Never raises, never logs.

INDEX/headers.jsonl   what was found in each file, by path, size and time; private, mode 600, append-only
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lejepa_med.data import dicom, images, nifti
from lejepa_med.data.dicom_header import NotAVolume, looks_like_dicom
from lejepa_med.data.file_volume import BadFile, FileVolume
from lejepa_med.data.frame import Frame
from lejepa_med.data.privacy import write_private
from lejepa_med.data.walk import Found

VERSION = 3
"""Raised whenever `Examined` or what is read from headers changes: older caches are then read anew."""

_PACKED = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".tar.bz2", ".tar.xz")
_UNSUPPORTED = (".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".hdr", ".img", ".img.gz", ".mnc", ".par", ".rec")


@dataclass(frozen=True)
class Examined:
    """What one file holds. `owner` are patient id, study and series UID of a DICOM file that is no volume."""

    kind: str  # dicom, nifti, image or other
    reason: str = ""
    frames: tuple[Frame, ...] = ()
    volumes: tuple[FileVolume, ...] = ()
    owner: tuple[str, ...] = ("", "", "")


def examine(found: Found) -> Examined:
    """Looks into one file; any failure is a reason."""
    path, name = Path(found.path), Path(found.path).name.lower()
    if found.reason:
        return Examined("other", found.reason)
    try:
        if name.endswith(nifti.SUFFIXES):
            return Examined("nifti", volumes=tuple(nifti.look(path)))
        if name.endswith(images.SUFFIXES):
            return Examined("image", volumes=tuple(images.look(path)))
        if looks_like_dicom(path):
            return Examined("dicom", frames=dicom.read_frames(path))
    except BadFile as outcome:
        return Examined("nifti" if name.endswith(nifti.SUFFIXES) else "image", outcome.reason)
    except NotAVolume as outcome:
        return Examined("dicom", outcome.reason, owner=outcome.owner)
    except PermissionError:
        return Examined("other", "permission_denied")
    except Exception:
        return Examined("other", "unreadable")
    if name.endswith(".dcm"):
        return Examined("dicom", "unreadable")
    if name.endswith(_PACKED):
        return Examined("other", "packed")
    return Examined("other", "unsupported_format" if name.endswith(_UNSUPPORTED) else "not_a_scan")


def examine_many(batch: list[Found]) -> list[str]:
    """The cache lines of a batch of files."""
    return [to_line(found, examine(found)) for found in batch]


def to_line(found: Found, examined: Examined) -> str:
    """One line of the header cache; what a file's frames have in common is written once."""
    rows = [[getattr(frame, name) for name in _FRAME_FIELDS] for frame in examined.frames]
    common = rows[0] if rows else []
    rest = [[place, value] for row in rows[1:] for place, value in enumerate(row) if value != common[place]]
    changes = iter(rest)
    counts = [sum(value != first for value, first in zip(row, common, strict=True)) for row in rows[1:]]
    differing = [[next(changes) for _ in range(count)] for count in counts]
    record = [
        found.path, found.size, found.mtime, VERSION, examined.kind, examined.reason, common, differing,
        [list(dataclasses.astuple(volume)) for volume in examined.volumes], examined.owner,
    ]  # fmt: skip
    return json.dumps(record, separators=(",", ":"))


def from_line(line: str) -> tuple[tuple[str, int, int], Examined] | None:
    """Path, size and time of a file and what was found in it; None for a damaged or outdated line."""
    try:
        path, size, mtime, version, kind, reason, common, differing, volumes, owner = json.loads(line)
    except ValueError:
        return None
    if version != VERSION:
        return None
    frames = [_frame(common, [])] if common else []
    frames += [_frame(common, changes) for changes in differing]
    described = tuple(FileVolume(*_tuples(volume)) for volume in volumes)
    return (path, size, mtime), Examined(kind, reason, tuple(frames), described, tuple(owner))


def _frame(common: list[Any], changes: list[list[Any]]) -> Frame:
    values = list(common)
    for place, value in changes:
        values[place] = value
    return Frame(*(_shared(name, _tuples(value)) for name, value in zip(_FRAME_FIELDS, values, strict=True)))


def _shared(name: str, value: Any) -> Any:
    """One object for equal values: millions of frames repeat all but a few of their fields."""
    return (
        value if name in ("path", "index", "sop_uid", "position", "bytes") else _VALUES.setdefault((name, value), value)
    )


def _tuples(values: Any) -> Any:
    return tuple(_tuples(value) for value in values) if isinstance(values, (list, tuple)) else values


_VALUES: dict[tuple[str, Any], Any] = {}
_FRAME_FIELDS = tuple(field.name for field in dataclasses.fields(Frame))


class HeaderCache:
    """What earlier runs found, and a place to add to it while a long run goes on."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "headers.jsonl"
        self._known: dict[tuple[str, int, int], str] = {}
        self.existed = self.path.exists()
        self._ends_torn = False
        if self.existed:
            with self.path.open(encoding="utf-8") as lines:
                for line in lines:
                    key = _key(line)
                    if key is not None:
                        self._known[key] = line.rstrip("\n")
                    self._ends_torn = not line.endswith("\n")  # a run was killed while it wrote

    def get(self, found: Found) -> str | None:
        """The line of a file that has not changed."""
        return self._known.get((found.path, found.size, found.mtime))

    def add(self, lines: list[str]) -> None:
        """Append lines of one batch; they survive a kill."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if self._ends_torn:
                file.write("\n")
                self._ends_torn = False
            file.write("".join(line + "\n" for line in lines))
        self._known.update({key: line for line in lines if (key := _key(line)) is not None})

    def tidy(self, found: Sequence[Found]) -> None:
        """Rewrite the file without what is gone or changed, once that is most of it."""
        current = [line for line in map(self.get, found) if line is not None]
        if 2 * len(current) < len(self._known):
            write_private(self.path, "".join(line + "\n" for line in current).encode())

    def forget(self) -> None:
        """Remove the file, and its folder if nothing else is in it."""
        self.path.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


def _key(line: str) -> tuple[str, int, int] | None:
    parsed = from_line(line)
    return None if parsed is None else parsed[0]
