"""Rows of an index from NIfTI files and images: one per volume, judged by the settings."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lejepa_med.config.indexing import IndexSettings, PatientTable
from lejepa_med.data.files.file_volume import FileVolume
from lejepa_med.data.files.storage import open_binary
from lejepa_med.data.files.walk import Found
from lejepa_med.data.index.entry import Entry, FileUse, geometry_of, tilt_of, to_affine
from lejepa_med.data.privacy import keyed_hash, patient_key
from lejepa_med.errors import DataError

_SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
_SESSION = re.compile(r"(?:^|[/_])(ses-[A-Za-z0-9]+)")
_SIDECAR = {"MR": "mri", "CT": "ct", "PT": "pet"}
HU_OF_FAT = -30.0
"""CT without a single voxel below this is no whole CT in Hounsfield units."""


class Context(NamedTuple):
    """What keys and verdicts depend on besides the file."""

    salt: bytes
    settings: IndexSettings


def file_entries(
    file: int, found: Found, kind: str, volumes: Sequence[FileVolume], patients: Patients, context: Context
) -> list[Entry]:
    """The rows of one NIfTI file or image, which is the `file`th of the walk."""
    use = FileUse(file, found.size)
    return [
        _entry(replace(use, frames=(volume.part,), slots=(0,)), found, volume, kind, patients, context)
        for volume in volumes
    ]


def _entry(use: FileUse, found: Found, volume: FileVolume, kind: str, patients: Patients, context: Context) -> Entry:
    salt, settings = context
    affine = np.array(volume.affine)
    spacing, orientation = geometry_of(affine, len(volume.shape))
    modality = "image" if kind == "image" else _modality(found, settings)
    patient_id = patients.of(found)
    patient = patient_key(salt, patient_id) if patient_id else keyed_hash(salt, "patient of file", found.relative)
    session = _SESSION.search(found.relative)
    key = keyed_hash(salt, "file", found.relative, str(volume.part) if volume.num_parts > 1 else "")
    entry = Entry(
        series_key=key,
        reason=_reason(volume, kind, settings),
        flags=frozenset(_flags(volume, modality, patient_id, settings.accept_label_maps)),
        source=kind,
        files=(use,),
        modality=modality,
        shape=volume.shape,
        num_files=1,
        num_slices=volume.shape[slice_axis(spacing)] if kind == "nifti" else 1,
        patient_key=patient,
        study_key=keyed_hash(salt, "study", patient, session[1] if session else found.relative),
        bytes=found.size,
        part=volume.part,
        group_key=key,
        content=volume.content,
    )
    if kind == "image":
        return entry
    tilt = tilt_of(affine) if len(volume.shape) == 3 else None
    return replace(entry, spacing_mm=spacing, orientation=orientation, tilt_degrees=tilt, affine=to_affine(affine))


def slice_axis(spacing_mm: Sequence[float]) -> int:
    """The axis with the largest steps, the last one of equals."""
    return max(range(len(spacing_mm)), key=lambda axis: (round(spacing_mm[axis], 2), axis))


def _reason(volume: FileVolume, kind: str, settings: IndexSettings) -> str:
    if volume.problem:
        return volume.problem
    if volume.labels and not settings.accept_label_maps:
        return "label_map"
    if kind == "nifti" and min(volume.shape) < settings.min_slices:
        return "too_few_slices"
    return "timepoint_not_kept" if kind == "nifti" and volume.part >= settings.keep_timepoints else ""


def _flags(volume: FileVolume, modality: str, patient_id: str, accepted: bool) -> set[str]:
    flags = set(volume.flags)
    if volume.labels and accepted:
        flags.add("label_map")
    if modality == "unknown":
        flags.add("modality_unknown")
    if modality == "ct" and volume.low > HU_OF_FAT:
        flags.add("hu_uncertain")
    if not patient_id:
        flags.add("patient_unknown")
    if volume.num_parts > 1:
        flags.add("split_series")
    return flags


def _modality(found: Found, settings: IndexSettings) -> str:
    inside = found.relative.partition("/")[2]
    for rule in settings.rules:
        if fnmatchcase(inside, rule.glob) or fnmatchcase(found.relative, rule.glob):
            return rule.modality
    return _sidecar_modality(found.path) or settings.modality or "unknown"


def _sidecar_modality(path: str) -> str:
    sidecar = re.sub(r"\.nii(\.gz)?$", "", path, flags=re.IGNORECASE) + ".json"
    try:
        with open_binary(sidecar) as file:
            content = json.loads(file.read())
        return _SIDECAR.get(str(content.get("Modality")), "")
    except (OSError, ValueError, AttributeError):
        return ""


def check_patients(table: PatientTable | None) -> None:
    """Finds mistakes in the user's table before hours of reading. Raises `DataError`."""
    if table is not None:
        _read(table)


class Patients:
    """Who a file belongs to: the user's table, else the BIDS subject in its path."""

    def __init__(self, table: PatientTable | None, files: Callable[[], Iterable[Found]]) -> None:
        self._by_path = _read(table) if table is not None else {}
        self._unique_names: set[str] = set()
        if table is None:
            return
        names = Counter(name for found in files() if (name := _name(found)) in self._by_path)
        self._unique_names = {name for name, count in names.items() if count == 1}
        count = sum(1 for _ in files())
        if count and not any(self._listed(found) for found in files()):
            raise DataError(
                f"patients.file ({table.file}): column `{table.path_column}` names none of the {count} NIfTI and "
                "image files found; expected paths relative to the folder given to `index`, or unique file names"
            )

    def of(self, found: Found) -> str:
        """The patient id of a file, empty when unknown."""
        subject = _SUBJECT.search(found.relative)
        return self._listed(found) or (subject[1] if subject else "")

    def _listed(self, found: Found) -> str:
        inside, name = found.relative.partition("/")[2], _name(found)
        by_name = self._by_path.get(name, "") if name in self._unique_names else ""
        return self._by_path.get(inside) or self._by_path.get(found.relative) or by_name


def _name(found: Found) -> str:
    return found.relative.rpartition("/")[2]


def _read(table: PatientTable) -> dict[str, str]:
    """Patient ids by path. Raises `DataError` where the file, or a column of it, is not there."""
    try:
        with table.file.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except FileNotFoundError:
        raise DataError(f"patients.file ({table.file}) is not there") from None
    except (OSError, UnicodeDecodeError, csv.Error):
        raise DataError(f"patients.file ({table.file}) cannot be read as a CSV file in UTF-8") from None
    columns = list(rows[0]) if rows else []
    for column in (table.path_column, table.patient_column):
        if column not in columns:
            raise DataError(f"patients.file ({table.file}): no column `{column}`; it has {columns}")
    return {
        Path(row[table.path_column].strip()).as_posix(): row[table.patient_column].strip()
        for row in rows
        if row[table.path_column] and row[table.patient_column]
    }
