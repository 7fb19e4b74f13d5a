"""The description that travels with weights: how a scan becomes an array, and an array an embedding.

One `Spec` is used by `prepare`, by training, by `embed` on a new scan and by exports: no two of them can differ.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

Modality = Literal["mri", "ct", "pet", "image", "unknown"]
CacheModality = Literal["mri", "ct", "pet", "image"]
"""What `index` writes into the column `modality`; `image` is a 2D picture without physical size."""


class Frozen(BaseModel):
    """An immutable settings object that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if not interval[0] < interval[1]:
        raise ValueError(f"the lower bound comes first, got {interval[0]:g} and {interval[1]:g}")
    return interval


_HU = Annotated[float, Field(ge=-32768, le=32767)]
_PERCENT = Annotated[float, Field(ge=0, le=100)]
RangeHU = Annotated[tuple[_HU, _HU], AfterValidator(_ascending)]
"""Two different values that 16 bits hold, the lower one first."""
PercentRange = Annotated[tuple[_PERCENT, _PERCENT], AfterValidator(_ascending)]
"""Two different percentages, the lower one first."""


class PreprocessSpec(Frozen):
    """How a scan becomes the array that is stored in the cache."""

    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (1.0, 1.0, 1.0), description="voxel size of prepared volumes, mm, along the axes R, A, S"
    )
    max_upsampling: PositiveFloat = Field(
        8.0, description="scans whose voxels lie further apart than this many times spacing_mm are not used"
    )
    foreground: bool = Field(True, description="crop to the bounding box of the body")
    foreground_margin_mm: float = Field(5.0, ge=0, allow_inf_nan=False, description="air kept around that box, mm")
    mri_percentiles: PercentRange = Field(
        (0.5, 99.5), description="MRI: these percentiles of the foreground become 0 and 1"
    )
    ct_range_hu: RangeHU = Field((-1024.0, 3071.0), description="CT: values are clipped to this range, HU")
    image_size: int = Field(
        256, gt=0, description="2D images: the longer side is resized to this many pixels, the shorter one padded"
    )

    def key(self) -> str:
        """Hash of these settings; part of the address of every cache entry."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:16]


class InferenceSpec(Frozen):
    """How one prepared volume of any size becomes one embedding."""

    pitch_mm: PositiveFloat | None = Field(
        None, description="voxel size that the backbone sees, mm; null: as prepared (2D images: pixels as prepared)"
    )
    window: tuple[PositiveInt, ...] = Field(
        (96, 96, 96), min_length=2, max_length=3, description="size of the windows, voxels (two numbers: 2D backbone)"
    )
    overlap: float = Field(0.0, ge=0, lt=1, description="overlap of neighbouring windows, fraction of the window")
    pooling: Literal["mean", "max", "grid2"] = Field(
        "mean", description="over windows and tokens; grid2 keeps a 2x2x2 grid, which can tell left from right"
    )
    planes: tuple[Literal["axial", "coronal", "sagittal"], ...] = Field(
        ("axial",), min_length=1, description="2D backbones on volumes: the slices that are embedded and averaged"
    )
    ct_window_hu: RangeHU = Field((-160.0, 240.0), description="CT: the window mapped to [0, 1], HU")


class Spec(Frozen):
    """Preprocessing and inference of one backbone. `preprocess` is None if its training arrays were made elsewhere."""

    version: int = 1
    preprocess: PreprocessSpec | None = PreprocessSpec()
    inference: InferenceSpec = InferenceSpec()
