"""Settings of segmentation as an evaluation: one fixed recipe for every encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lejepa_med.spec import Frozen


class SegmentationRecipe(Frozen):
    steps: int = Field(600, gt=0, description="optimizer steps, however few the labelled volumes")
    batch_size: int = Field(4, ge=2, description="windows per step, of random volumes")
    foreground_share: float = Field(
        0.5, ge=0, le=1, description="share of windows that hold a class drawn at random, each class as often; else any"
    )
    lr: float = Field(3e-3, gt=0, description="of the head or decoder; cosine to 0")
    backbone_lr_factor: float = Field(0.1, ge=0, description="learning rate of the backbone / that of the decoder")
    finetune_backbone: bool = Field(
        False, description="train the backbone too; in `benchmark` the method says it (segment_finetune)"
    )
    weight_decay: float = Field(1e-2, ge=0, description="none on biases and norms")
    decoder_channels: int = Field(32, gt=0, description="width of the small decoder at every resolution")
    shift_voxels: int = Field(4, ge=0, description="augmentation: random shifts up to this many voxels")
    flips: bool = Field(True, description="augmentation: flips along A and S (2D: rows); never left to right")
    overlap: float = Field(0.5, ge=0, lt=1, description="of neighbouring windows in testing, fraction of the window")
    precision: Literal["auto", "bf16", "float32"] = Field("auto", description="auto: bf16 autocast where it is fast")
