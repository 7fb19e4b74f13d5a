"""What a user may decide about `index`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lejepa_med.config.compute import ComputeConfig
from lejepa_med.spec import Frozen

FileModality = Literal["mri", "ct", "pet"]


class FolderRule(Frozen):
    """Names the modality of NIfTI files by where they are."""

    glob: str = Field(
        description="pattern of the path relative to the folder given to `index`; `*` also matches `/`, e.g. `*/anat/*`"
    )
    modality: FileModality = Field(description="mri, ct or pet")


class PatientTable(Frozen):
    """A CSV file that says which NIfTI or image file belongs to which patient."""

    file: Path = Field(description="the CSV file")
    path_column: str = Field(
        default="path", description="column with relative paths, or file names where these are unique"
    )
    patient_column: str = Field(default="patient_id", description="column with the patient ids")


class IndexSettings(Frozen):
    """Settings of `index`."""

    version: int = Field(default=1, description="of this file's format")
    modality: FileModality | None = Field(
        default=None,
        description="modality of NIfTI files (mri, ct, pet); null: unknown, and flagged. DICOM brings its own",
    )
    rules: tuple[FolderRule, ...] = Field(
        default=(), description="modality by folder, first match wins, before `modality`"
    )
    patients: PatientTable | None = Field(
        default=None,
        description="which NIfTI or image file belongs to whom; null: BIDS names (sub-01), else each file alone",
    )
    min_slices: int = Field(default=3, ge=1, description="volumes with fewer slices are rejected")
    keep_derived: bool = Field(default=False, description="keep derived maps and intensity projections (flagged)")
    keep_localizers: bool = Field(default=False, description="keep localizers (flagged)")
    accept_label_maps: bool = Field(
        default=False, description="keep integer label maps as if they were images (flagged)"
    )
    max_hole_slices: int = Field(
        default=2, ge=0, description="missing interior slices per volume that are filled by interpolation (flagged)"
    )
    keep_timepoints: int = Field(
        default=3, ge=1, description="volumes kept of a 4D series with many time points or directions"
    )
    compute: ComputeConfig = ComputeConfig()
