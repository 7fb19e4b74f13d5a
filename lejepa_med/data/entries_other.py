"""Rows of an index for files that are no volume: one per reason, for DICOM objects one per reason and series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from lejepa_med.data.entries_dicom import owner_keys
from lejepa_med.data.entry import Entry, FileUse
from lejepa_med.data.examine import Examined
from lejepa_med.data.privacy import keyed_hash
from lejepa_med.data.walk import Found

_SOURCES = {"dicom": "dicom", "nifti": "nifti", "image": "image", "other": ""}


def other_entries(examined: Iterable[tuple[Found, Examined]], salt: bytes) -> list[Entry]:
    """One row per group of files that hold no volume."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Found]] = defaultdict(list)
    for found, outcome in examined:
        groups[(outcome.kind, outcome.reason, outcome.owner)].append(found)
    return [_entry(kind, reason, owner, files, salt) for (kind, reason, owner), files in groups.items()]


def _entry(kind: str, reason: str, owner: tuple[str, ...], files: list[Found], salt: bytes) -> Entry:
    patient, study, series = owner
    patient_hash, study_hash = "", ""
    if patient or study:
        patient_hash, study_hash, _ = owner_keys(salt, patient, study)
    uses = tuple(FileUse(file) for file in files)
    key = keyed_hash(salt, "no volume", kind, reason, patient, study, series)
    return Entry(key, reason, frozenset(), _SOURCES[kind], uses, patient_key=patient_hash, study_key=study_hash)
