"""Rows of an index for files that are no volume: one per reason, for DICOM objects one per reason and series."""

from __future__ import annotations

from lejepa_med.data.index.entries_dicom import owner_keys
from lejepa_med.data.index.entry import Entry

_SOURCES = {"dicom": "dicom", "nifti": "nifti", "image": "image", "other": ""}


def other_entry(
    key: str, kind: str, reason: str, patient: str, study: str, num_files: int, num_bytes: int, salt: bytes
) -> Entry:
    """The row of a group of files that hold no volume; `patient` and `study` are hashes or empty."""
    if patient or study:
        patient, study, _ = owner_keys(salt, patient, study)
    return Entry(
        key, reason, frozenset(), _SOURCES[kind], patient_key=patient, study_key=study, num_files=num_files,
        bytes=num_bytes, group_key=key,
    )  # fmt: skip
