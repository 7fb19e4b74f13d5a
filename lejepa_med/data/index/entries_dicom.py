"""Rows of an index from DICOM frames: one per volume, and one per series and reason for what is left out.

Frames come without identities (`pseudonyms`), so hashes are compared here where a header has names.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.assembly import Candidate, assemble
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.index.entry import Entry, FileUse, geometry_of, tilt_of, to_affine
from lejepa_med.data.index.examine import unpack
from lejepa_med.data.index.store import Member
from lejepa_med.data.privacy import keyed_hash

USUAL_SPACING_MM = (0.05, 20.0)
"""Voxel sides of other lengths are flagged."""


@dataclass(frozen=True)
class _Series:
    """What the rows of one series have in common; frames name their file by the key of `files`."""

    identity: str
    files: Mapping[str, Member]
    salt: bytes

    def use(self, path: str, frames: Sequence[int] = (), slots: Sequence[int] = ()) -> FileUse:
        member = self.files[path]
        return FileUse(member.file, member.size, tuple(frames), tuple(slots))


def dicom_entries(
    uid: str, uid_is_shared: bool, members: Sequence[Member], salt: bytes, settings: IndexSettings
) -> list[Entry]:
    """The rows of one series, from its files in the order of the walk."""
    files = {f"{member.file:015d}": member for member in members}
    shared: dict[tuple[int, Any], Any] = {}
    frames = with_patient([frame for path, member in files.items() for frame in unpack(member.payload, path, shared)])
    first = frames[0]
    # One series UID under several studies is an anonymiser's mistake; they stay apart.
    identity = "\0".join((uid, first.study_uid, first.patient_id)) if uid_is_shared else uid
    series = _Series(identity, files, salt)
    flags = {"shared_series_uid"} if uid_is_shared else set()
    try:
        return [entry.flagged(*flags) for entry in _entries(frames, series, settings)]
    except Exception:  # its message could quote the header, and one odd series must not cost the archive
        return [_left_out(series, first, "not_understood", sorted(files), "failed")]


def with_patient(frames: Sequence[Frame]) -> list[Frame]:
    """Frames of one series, those without a patient given the one that the others of their study have, if it is one."""
    patients: dict[str, set[str]] = defaultdict(set)
    for frame in frames:
        patients[frame.study_uid].add(frame.patient_id)
    known = {study: max(found) for study, found in patients.items() if len(found) == 2 and "" in found and study}
    return [
        replace(frame, patient_id=known[frame.study_uid])
        if not frame.patient_id and frame.study_uid in known
        else frame
        for frame in frames
    ]


def _entries(frames: Sequence[Frame], series: _Series, settings: IndexSettings) -> list[Entry]:
    unique, repeated = drop_repeated_instances(frames)
    candidates = assemble(unique, settings)
    flags = {"repeated_slices"} if repeated else set()
    entries = [_entry(candidate, series).flagged(*flags) for candidate in candidates]
    left_out: dict[str, list[Frame]] = {"duplicate": [*repeated]}
    for candidate in candidates:
        left_out["duplicate"] += candidate.dropped
    for reason in ("truncated", "no_pixels", "undecodable"):
        left_out[reason] = [frame for frame in unique if frame.damage == reason]
    used = {use.file for entry in entries for use in entry.files}
    for reason, members in left_out.items():
        paths = sorted({frame.path for frame in members if int(frame.path) not in used})
        if paths:
            used.update(map(int, paths))
            entries.append(_left_out(series, members[0], reason, paths, "left out", reason))
    return entries


def drop_repeated_instances(frames: Sequence[Frame]) -> tuple[list[Frame], list[Frame]]:
    """Frames with one per SOP instance, whole files first, and the repeated ones.

    Instances that differ in place or time are no repetition: some anonymisers give one UID to all.
    """
    kept: dict[tuple[object, ...], Frame] = {}
    repeated: list[Frame] = []
    for frame in sorted(frames, key=lambda frame: (frame.damage != "", frame.path, frame.index)):
        key = (
            frame.sop_uid or frame.path, frame.index, frame.position, frame.temporal, frame.trigger, frame.echo,
            frame.b_value, frame.direction, frame.acquisition, frame.time,
        )  # fmt: skip
        if key in kept:
            repeated.append(frame)
        else:
            kept[key] = frame
    return list(kept.values()), repeated


def owner_keys(salt: bytes, patient: str, study: str) -> tuple[str, str, bool]:
    """Patient key, study key, and whether the patient is known, from their hashes (empty where a header has none)."""
    if patient:
        return patient, study or keyed_hash(salt, "study", ""), True
    return keyed_hash(salt, "patient of study", study), study or keyed_hash(salt, "study", ""), False


def _entry(candidate: Candidate, series: _Series) -> Entry:
    first = candidate.frames[0]
    patient, study, known = owner_keys(series.salt, first.patient_id, first.study_uid)
    files = _uses(candidate, series)
    sequences = {frame.sequence for frame in candidate.frames}
    key = keyed_hash(series.salt, series.identity, candidate.group, candidate.part)
    entry = Entry(
        series_key=key,
        reason=candidate.reason,
        flags=candidate.flags | (set() if known else {"patient_unknown"}),
        source="dicom",
        files=files,
        modality=first.modality,
        body_part=first.body_part,
        sequence=sequences.pop() if len(sequences) == 1 else "",
        num_files=len(files),
        num_slices=len(candidate.frames),
        patient_key=patient,
        study_key=study,
        bytes=sum(use.size for use in files),
        series_hash=first.series_uid,
        group_key=key,
    )
    if candidate.stack is None:
        return entry
    spacing, orientation = geometry_of(candidate.stack.affine, 3)
    several = len(candidate.frames) > 1
    low, high = USUAL_SPACING_MM
    unusual = min(spacing) < low or max(spacing) > high
    gaps = "/".join(f"{gap:.3g}" for gap in candidate.stack.gaps_mm)
    return replace(
        entry.flagged(*(["spacing_suspect"] if unusual and several else [])),
        shape=candidate.stack.shape,
        spacing_mm=spacing,
        orientation=orientation,
        num_slices=candidate.stack.num_slots,
        detail=f"slice gaps {gaps} mm (least/median/largest)" if several else "",
        gaps_mm=candidate.stack.gaps_mm if several else (),
        tilt_degrees=tilt_of(candidate.stack.affine) if several else None,
        affine=to_affine(candidate.stack.affine),
        signature=_signature(files, series),
        stack=candidate.stack,
    )


def _uses(candidate: Candidate, series: _Series) -> tuple[FileUse, ...]:
    slots = candidate.stack.slots if candidate.stack else tuple(range(len(candidate.frames)))
    members: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for frame, slot in zip(candidate.frames, slots, strict=True):
        members[frame.path].append((frame.index, slot))
    return tuple(
        series.use(path, [index for index, _ in pairs], [slot for _, slot in pairs])
        for path, pairs in sorted(members.items())
    )


def _signature(files: Sequence[FileUse], series: _Series) -> str:
    digest = hashlib.sha256()
    for use in files:
        digest.update(series.files[f"{use.file:015d}"].key)
        digest.update(f"{use.frames}{use.slots}".encode())
    return digest.hexdigest()[:24]


def _left_out(series: _Series, frame: Frame, reason: str, paths: Sequence[str], *label: str) -> Entry:
    patient, study, _ = owner_keys(series.salt, frame.patient_id, frame.study_uid)
    uses = tuple(series.use(path) for path in paths)
    key = keyed_hash(series.salt, series.identity, *label)
    return Entry(
        key, reason, frozenset(), "dicom", uses, modality=frame.modality, patient_key=patient, study_key=study,
        num_files=len(uses), bytes=sum(use.size for use in uses), group_key=key,
    )  # fmt: skip
