"""Settings of `prepare`: which series, and how they become arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lejepa_med.config.compute import ComputeConfig
from lejepa_med.config.indexing import Sequence
from lejepa_med.spec import CacheModality, Frozen, PreprocessSpec

CollectionKind = Literal["nnunet", "decathlon", "datalist", "bids", "medmnist", "mednist", "folder"]


class SourceConfig(Frozen):
    """A published layout that is prepared without an index; see docs/collections.md."""

    kind: Literal["auto", CollectionKind] = Field("auto", description="layout of the folder; auto: by what lies there")
    images: str = Field("images", description="kind folder: the folder of images, in the one that is given")
    masks: str | None = Field(
        None, description="kind folder: the folder of masks of the same names; null: `labels` or `masks` if there"
    )
    mask_labels: dict[Annotated[int, Field(ge=0, le=255)], str] = Field(
        {}, description="what mask values stand for, e.g. {1: liver}; empty: by dataset.json, else `label 1`, ..."
    )
    table: Path | None = Field(
        None, description="CSV with one row per image: file, patient, site and labels; a name alone: in the folder"
    )
    file_column: str = Field("file", description="of the table (bids: of participants.tsv): file name or case name")
    patient_column: str | None = Field(None, description="of the table: whose image it is; null: each its own patient")
    site_column: str | None = Field(None, description="of the table: where it was made; only its hash is kept")
    label_columns: tuple[str, ...] = Field(
        (), description="columns of the table or of participants.tsv that labels.csv takes over; bids: also age and sex"
    )
    salt: Path | None = Field(
        None, description="index or CACHE/private whose salt is used: keys then agree; null: a new one"
    )


class PrepareConfig(Frozen):
    version: int = Field(1, description="of this file's format")
    modality: CacheModality | None = Field(
        None, description="of series whose modality the index does not know (NIfTI); null = leave them out, and say so"
    )
    modalities: tuple[CacheModality, ...] | None = Field(None, description="prepare only these, e.g. [mri]; null = all")
    sequences: tuple[Sequence, ...] | None = Field(None, description="MRI: prepare only these; null = all")
    source: SourceConfig = SourceConfig()
    preprocess: PreprocessSpec = PreprocessSpec()
    compute: ComputeConfig = ComputeConfig()
