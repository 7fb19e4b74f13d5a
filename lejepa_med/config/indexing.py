"""What a user may decide about `index`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lejepa_med.config.compute import ComputeConfig
from lejepa_med.spec import Frozen, Modality, PositiveFloat

FileModality = Literal["mri", "ct", "pet"]
BodyPart = Literal[
    "head", "neck", "spine", "chest", "breast", "heart", "abdomen", "pelvis", "extremity", "whole_body"
]  # fmt: skip
Sequence = Literal[
    "t1", "t2", "t2star", "pd", "flair", "stir", "dwi", "bold", "swi", "tof", "perfusion", "flow"
]  # fmt: skip
Unknown = Literal["keep", "reject"]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
        default="path",
        description="column with paths below the folder that `index` is given, or file names where these are unique",
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
    modalities: tuple[Modality, ...] | None = Field(
        default=None,
        min_length=1,
        description="modalities that are used, of mri, ct, pet, image, unknown (NIfTI that nothing names); null: all",
    )
    body_parts: tuple[BodyPart, ...] | None = Field(
        default=None,
        min_length=1,
        description="body parts that are used, by BodyPartExamined: head, neck, spine, chest, breast, heart, abdomen, "
        "pelvis, extremity, whole_body; null: all",
    )
    unknown_body_part: Unknown = Field(
        default="keep",
        description="where `body_parts` is set: keep (flagged) or reject what names none; NIfTI and images never do",
    )
    sequences: tuple[Sequence, ...] | None = Field(
        default=None,
        min_length=1,
        description="MRI sequences that are used, as timing tells: t1, t2, t2star, pd, flair, stir, dwi, bold, swi, "
        "tof, perfusion, flow; null: all. Other modalities pass",
    )
    unknown_sequence: Unknown = Field(
        default="keep",
        description="where `sequences` is set: keep (flagged) or reject MRI that does not tell; NIfTI never does",
    )
    min_in_plane_mm: PositiveFloat | None = Field(
        default=None, description="least voxel side within slices, mm; null: no limit. No limit in mm is for 2D images"
    )
    max_in_plane_mm: PositiveFloat | None = Field(
        default=None, description="largest voxel side within slices, mm; null: no limit"
    )
    min_slice_distance_mm: PositiveFloat | None = Field(
        default=None, description="least distance of neighbouring slices, mm; null: no limit"
    )
    max_slice_distance_mm: PositiveFloat | None = Field(
        default=None, description="largest distance of neighbouring slices (not their thickness), mm; null: no limit"
    )
    min_extent_mm: tuple[NonNegative, NonNegative, NonNegative] = Field(
        default=(0.0, 0.0, 0.0),
        description="least size of the volume, mm, along R (left to right), A (back to front) and S (feet to head)",
    )
    min_matrix: int = Field(default=1, ge=1, description="least number of pixels along both sides of a slice or image")
    min_slices: int = Field(default=3, ge=1, description="volumes with fewer slices are rejected")
    max_voxels: int | None = Field(
        default=2_000_000_000,
        ge=1,
        description="volumes with more voxels are rejected: 2e9 take 8 GB of memory when they are read; null: no limit",
    )
    keep_marked_derived: bool = Field(
        default=True,
        description="keep what ImageType calls DERIVED (flagged): often only compressed or reconstructed again",
    )
    keep_reformatted: bool = Field(default=True, description="keep multiplanar reformats (flagged)")
    keep_lossy: bool = Field(default=True, description="keep lossily compressed volumes (flagged)")
    keep_burned_in: bool = Field(
        default=True,
        description="keep volumes whose header says that text is burned into the pixels (flagged). Text can be a name: "
        "false where caches, pictures or weights leave the hospital",
    )
    keep_derived: bool = Field(default=False, description="keep derived maps and intensity projections (flagged)")
    keep_localizers: bool = Field(default=False, description="keep localizers (flagged)")
    accept_label_maps: bool = Field(
        default=False, description="keep integer label maps as if they were images (flagged)"
    )
    max_hole_slices: int = Field(
        default=2, ge=0, description="missing interior slices per volume that are filled by interpolation (flagged)"
    )
    decode: Literal["all", "sampled"] = Field(
        default="all",
        description="compressed DICOM: decode all slices, so that damaged ones are found here (2-28 ms for 512 x 512 "
        "pixels), or sampled: three per volume; the others are found when volumes are read",
    )
    keep_timepoints: int = Field(
        default=3, ge=1, description="volumes kept of a 4D series with many time points or directions"
    )
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _limits_leave_room(self) -> IndexSettings:
        for name in ("in_plane_mm", "slice_distance_mm"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"`min_{name}` ({least:g}) is more than `max_{name}` ({most:g})")
        return self
