"""Settings of `prepare`: which series, and how they become arrays."""

from __future__ import annotations

from pydantic import Field

from lejepa_med.config.compute import ComputeConfig
from lejepa_med.config.indexing import Sequence
from lejepa_med.spec import CacheModality, Frozen, PreprocessSpec


class PrepareConfig(Frozen):
    version: int = Field(1, description="of this file's format")
    modality: CacheModality | None = Field(
        None, description="of series whose modality the index does not know (NIfTI); null = leave them out, and say so"
    )
    modalities: tuple[CacheModality, ...] | None = Field(None, description="prepare only these, e.g. [mri]; null = all")
    sequences: tuple[Sequence, ...] | None = Field(None, description="MRI: prepare only these; null = all")
    preprocess: PreprocessSpec = PreprocessSpec()
    compute: ComputeConfig = ComputeConfig()
