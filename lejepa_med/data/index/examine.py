"""One look at one file: the frames or volumes in it, or the reason why there are none. Never raises, never logs.

What a look leaves behind (`Record`) names nobody: no path, no id, no UID, no date and no text of a header.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.header import NotAVolume, looks_like_dicom
from lejepa_med.data.dicom.header_pass import read_frames
from lejepa_med.data.dicom.pixels import needs_decoder, stored_or_none
from lejepa_med.data.files import images, nifti
from lejepa_med.data.files.file_volume import BadFile, FileVolume
from lejepa_med.data.files.walk import Found
from lejepa_med.data.index.entry import as_tuples
from lejepa_med.data.index.pseudonyms import Pseudonyms
from lejepa_med.data.privacy import keyed_hash

VERSION = 6
"""Raised whenever `Record` or what is read from files changes: what older versions found is then read anew."""

_PACKED = (".7z", ".rar", ".tar.zst")  # zip and tar are opened where files are found
_UNSUPPORTED = (".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".hdr", ".img", ".img.gz", ".mnc", ".par", ".rec")


@dataclass(frozen=True)
class Examined:
    """What one file holds. `owner` are patient id, study and series UID of a DICOM file that is no volume."""

    kind: str  # dicom, nifti, image or other
    reason: str = ""
    frames: tuple[Frame, ...] = ()
    volumes: tuple[FileVolume, ...] = ()
    owner: tuple[str, ...] = ("", "", "")


class Record(NamedTuple):
    """What is kept of a look. `series` groups files into series, or files without a volume into rows."""

    kind: str
    reason: str
    series: str
    uid: str
    patient: str
    study: str
    frames: int
    volumes: int
    payload: bytes
    decoded: bool = True
    """Whether all is known: no compressed frame is left that was not decoded."""


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
            return Examined("dicom", frames=read_frames(path))
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


def record_many(salt: bytes, decode: bool, batch: list[Found]) -> list[Record]:
    """The records of a batch of files; with `decode`, compressed frames that do not decode are marked."""
    names = Pseudonyms(salt)
    return [record(found, decoded(examine(found)) if decode else examine(found), names, decode) for found in batch]


def record_crashed(salt: bytes, batch: list[Found]) -> list[Record]:
    """The records of files whose decoding ended the process: all their compressed frames are marked."""
    names = Pseudonyms(salt)
    return [record(found, decoded(examine(found), crashed=True), names) for found in batch]


def decoded(examined: Examined, crashed: bool = False) -> Examined:
    """The same with `undecodable` as the damage of compressed frames that a decoder refuses."""
    compressed = [frame for frame in examined.frames if not frame.damage and needs_decoder(frame)]
    if not compressed:
        return examined
    lost = {frame.index for frame in compressed}
    if not crashed:
        try:
            values = stored_or_none(compressed)
            lost = {frame.index for frame, image in zip(compressed, values, strict=True) if image is None}
        except MemoryError:  # says nothing of the frames
            return examined
        except Exception:  # the codestreams cannot be told apart: all are lost
            pass
    frames = [replace(frame, damage="undecodable") if frame.index in lost else frame for frame in examined.frames]
    return replace(examined, frames=tuple(frames))


def record(found: Found, examined: Examined, names: Pseudonyms, is_decoded: bool = True) -> Record:
    """What is kept of a file."""
    if examined.frames:
        frames = [names.frame(frame, found.relative) for frame in examined.frames]
        first = frames[0]
        series = keyed_hash(names.salt, "frames", first.patient_id, first.study_uid, first.series_uid)
        return Record(
            "dicom", "", series, first.series_uid, first.patient_id, first.study_uid, len(frames), 0, pack(frames),
            is_decoded or not any(map(needs_decoder, examined.frames)),
        )  # fmt: skip
    if examined.volumes:
        volumes = [dataclasses.astuple(_salted(volume, names.salt)) for volume in examined.volumes]
        described = json.dumps(volumes, separators=(",", ":"))
        payload = zlib.compress(described.encode(), 1)
        return Record(examined.kind, "", "", "", "", "", 0, len(examined.volumes), payload)
    patient, study = names.patient(examined.owner[0]), names.study(examined.owner[1])
    series = keyed_hash(names.salt, "no volume", examined.kind, examined.reason, *examined.owner)
    return Record(examined.kind, examined.reason, series, "", patient, study, 0, 0, b"")


def _salted(volume: FileVolume, salt: bytes) -> FileVolume:
    """Without the salt, the hash of voxels would tell whether a scan that is public elsewhere is here."""
    return replace(volume, content=keyed_hash(salt, "content", volume.content))


def pack(frames: Sequence[Frame]) -> bytes:
    """Frames of one file as bytes; what they have in common is written once."""
    rows = [[getattr(frame, name) for name in _FRAME_FIELDS] for frame in frames]
    common = rows[0]
    changes = [
        [[place, value] for place, value in enumerate(row) if value != common[place]] for row in rows[1:]
    ]  # places and values that differ
    return zlib.compress(json.dumps([common, *changes], separators=(",", ":")).encode(), 1)


def unpack(payload: bytes, path: str, shared: dict[tuple[int, Any], Any]) -> list[Frame]:
    """The frames that `pack` took, with a path. Calls with one `shared` give one object for equal values."""
    common, *changes = json.loads(zlib.decompress(payload))
    common[_PATH] = path
    return [_frame(common, change, shared) for change in ([], *changes)]


def unpack_volumes(payload: bytes) -> list[FileVolume]:
    """The volumes of a NIfTI file or image."""
    return [FileVolume(*as_tuples(volume)) for volume in json.loads(zlib.decompress(payload))]


def _frame(common: list[Any], changes: list[list[Any]], shared: dict[tuple[int, Any], Any]) -> Frame:
    values = list(common)
    for place, value in changes:
        values[place] = value
    values = [as_tuples(value) for value in values]
    return Frame(*(shared.setdefault((place, value), value) for place, value in enumerate(values)))


_FRAME_FIELDS = tuple(field.name for field in dataclasses.fields(Frame))
_PATH = _FRAME_FIELDS.index("path")
