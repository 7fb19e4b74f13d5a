"""Rows of an index from DICOM frames: one per volume, and one per series and reason for what is left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom_assembly import Candidate, assemble
from lejepa_med.data.entry import Entry, FileUse, geometry_of
from lejepa_med.data.frame import Frame
from lejepa_med.data.privacy import keyed_hash, patient_key
from lejepa_med.data.walk import Found

Series = tuple[str, str, str]  # patient id, study UID, series UID


def dicom_entries(
    frames: Iterable[Frame], files: dict[str, Found], salt: bytes, settings: IndexSettings
) -> list[Entry]:
    """The rows of all DICOM images of an archive."""
    series: dict[Series, list[Frame]] = defaultdict(list)
    for frame in frames:
        series[_series(frame, files)].append(frame)
    carriers = Counter(uid for _, _, uid in series)
    entries: list[Entry] = []
    for (patient, study, uid), members in series.items():
        # One series UID under several studies is an anonymiser's mistake; they stay apart.
        identity = uid if carriers[uid] == 1 else "\0".join((uid, study, patient))
        try:
            entries += _series_entries(members, identity, files, salt, settings)
        except Exception:  # its message could quote the header, and one odd series must not cost the archive
            found = [files[path] for path in sorted({frame.path for frame in members})]
            entries.append(_left_out(members[0], keyed_hash(salt, identity, "failed"), "not_understood", found, salt))
    return entries


def _series(frame: Frame, files: dict[str, Found]) -> Series:
    folder = files[frame.path].relative.rpartition("/")[0]
    return frame.patient_id, frame.study_uid, frame.series_uid or f"folder {folder}"


def _series_entries(
    frames: Sequence[Frame], identity: str, files: dict[str, Found], salt: bytes, settings: IndexSettings
) -> list[Entry]:
    unique, repeated = drop_repeated_instances(frames)
    candidates = assemble(unique, settings)
    flags = {"repeated_slices"} if repeated else set()
    entries = [_entry(candidate, identity, files, salt).flagged(*flags) for candidate in candidates]
    left_out: dict[str, list[Frame]] = {"duplicate": [*repeated]}
    for candidate in candidates:
        left_out["duplicate"] += candidate.dropped
    for reason in ("truncated", "no_pixels"):
        left_out[reason] = [frame for frame in unique if frame.damage == reason]
    used = {use.file.path for entry in entries for use in entry.files}
    for reason, members in left_out.items():
        paths = sorted({frame.path for frame in members} - used)
        if paths:
            used.update(paths)
            key = keyed_hash(salt, identity, "left out", reason)
            entries.append(_left_out(members[0], key, reason, [files[path] for path in paths], salt))
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


def owner_keys(salt: bytes, patient_id: str, study_uid: str) -> tuple[str, str, bool]:
    """Patient key, study key, and whether the patient is known."""
    study = keyed_hash(salt, "study", study_uid)
    if patient_id:
        return patient_key(salt, patient_id), study, True
    return keyed_hash(salt, "patient of study", study_uid), study, False


def _entry(candidate: Candidate, identity: str, files: dict[str, Found], salt: bytes) -> Entry:
    first = candidate.frames[0]
    patient, study, known = owner_keys(salt, first.patient_id, first.study_uid)
    sequences = {frame.sequence for frame in candidate.frames}
    entry = Entry(
        series_key=keyed_hash(salt, identity, candidate.group, candidate.part),
        reason=candidate.reason,
        flags=candidate.flags | (set() if known else {"patient_unknown"}),
        source="dicom",
        files=_uses(candidate, files),
        modality=first.modality,
        body_part=first.body_part,
        sequence=sequences.pop() if len(sequences) == 1 else "",
        num_slices=len(candidate.frames),
        patient_key=patient,
        study_key=study,
        series_uid=first.series_uid,
        stack=candidate.stack,
    )
    if candidate.stack is None:
        return entry
    spacing, orientation = geometry_of(candidate.stack.affine, 3)
    gaps = "/".join(f"{gap:.3g}" for gap in candidate.stack.gaps_mm)
    return replace(
        entry,
        shape=candidate.stack.shape,
        spacing_mm=spacing,
        orientation=orientation,
        num_slices=candidate.stack.num_slots,
        detail=f"slice gaps {gaps} mm (least/median/largest)" if len(candidate.frames) > 1 else "",
    )


def _uses(candidate: Candidate, files: dict[str, Found]) -> tuple[FileUse, ...]:
    slots = candidate.stack.slots if candidate.stack else tuple(range(len(candidate.frames)))
    members: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for frame, slot in zip(candidate.frames, slots, strict=True):
        members[frame.path].append((frame.index, slot))
    return tuple(
        FileUse(files[path], tuple(index for index, _ in pairs), tuple(slot for _, slot in pairs))
        for path, pairs in members.items()
    )


def _left_out(frame: Frame, key: str, reason: str, found: Sequence[Found], salt: bytes) -> Entry:
    patient, study, _ = owner_keys(salt, frame.patient_id, frame.study_uid)
    uses = tuple(FileUse(file) for file in found)
    return Entry(key, reason, frozenset(), "dicom", uses, modality=frame.modality, patient_key=patient, study_key=study)
