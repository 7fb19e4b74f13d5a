"""One row of an index, with the files behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.data.dicom_stack import Stack
from lejepa_med.data.walk import Found

COLUMNS = (
    "series_key", "verdict", "reason", "flags", "modality", "body_part", "sequence", "shape", "spacing_mm",
    "orientation", "num_files", "num_slices", "patient_key", "study_key", "source", "bytes",
)  # fmt: skip
FILE_COLUMNS = (
    "path", "size", "mtime", "series_key", "verdict", "relative", "series_uid", "part", "frames", "slots",
)  # fmt: skip


@dataclass(frozen=True)
class FileUse:
    """A file, the frames of it that belong to a series, and their places in the stack."""

    file: Found
    frames: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A row of the index. `stack` (DICOM) or `part` (files) is what reads it; `detail` goes into the report page."""

    series_key: str
    reason: str
    flags: frozenset[str]
    source: str
    files: tuple[FileUse, ...]
    modality: str = ""
    body_part: str = ""
    sequence: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    orientation: str = ""
    num_slices: int = 0
    patient_key: str = ""
    study_key: str = ""
    detail: str = ""
    series_uid: str = ""
    stack: Stack | None = None
    part: int = 0

    @property
    def verdict(self) -> str:
        """accepted, flagged or rejected."""
        if self.reason:
            return "rejected"
        return "flagged" if self.flags else "accepted"

    def rejected(self, reason: str) -> Entry:
        """The same row, not used."""
        return replace(self, reason=reason)

    def flagged(self, *flags: str) -> Entry:
        """The same row with more remarks."""
        return replace(self, flags=self.flags | set(flags))


def geometry_of(affine: NDArray[np.float64], dimensions: int) -> tuple[tuple[float, ...], str]:
    """Spacing in mm and the axis codes (such as LPS) of an affine."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[:dimensions]
    codes = "".join(code or "?" for code in nibabel.aff2axcodes(affine)[:dimensions])
    return tuple(float(length) for length in spacing), codes


def series_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """The public table, sorted by key."""
    rows = [
        (
            entry.series_key, entry.verdict, entry.reason, ";".join(sorted(entry.flags)), entry.modality,
            entry.body_part, entry.sequence, ";".join(map(str, entry.shape)),
            ";".join(f"{length:.6g}" for length in entry.spacing_mm), entry.orientation,
            len({use.file.path for use in entry.files}), entry.num_slices, entry.patient_key, entry.study_key,
            entry.source, sum(use.file.size for use in entry.files),
        )
        for entry in entries
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values("series_key", kind="stable", ignore_index=True)


def files_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """The private table: one row per file and series."""
    rows = [
        (
            use.file.path, use.file.size, use.file.mtime, entry.series_key, entry.verdict, use.file.relative,
            entry.series_uid, entry.part, list(use.frames), list(use.slots),
        )
        for entry in entries
        for use in entry.files
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=list(FILE_COLUMNS))
    return table.sort_values(["path", "series_key"], kind="stable", ignore_index=True)
