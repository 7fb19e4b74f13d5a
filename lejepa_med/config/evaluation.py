"""Settings of `probe`, `finetune` and `benchmark`: tasks, encoders, budgets and recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lejepa_med.config.encoders import (
    NOT_IN_IDENTITY,
    Aggregation,
    EncoderConfig,
    PixelsEncoder,
    RandomEncoder,
    Role,
    RunEncoder,
    ScratchEncoder,
    ShapeEncoder,
    Timm2dEncoder,
    role_of,
)
from lejepa_med.config.pretraining import HoldoutConfig
from lejepa_med.config.segmentation import SegmentationRecipe
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.spec import Frozen

__all__ = [
    "NOT_IN_IDENTITY",
    "Aggregation",
    "AttentionRecipe",
    "BenchmarkConfig",
    "EncoderConfig",
    "EvaluationDataConfig",
    "FinetuneConfig",
    "FinetuneRecipe",
    "LoraRecipe",
    "Method",
    "PixelsEncoder",
    "ProbeConfig",
    "ProbeRecipe",
    "RandomEncoder",
    "Role",
    "RunEncoder",
    "ScratchEncoder",
    "ShapeEncoder",
    "Timm2dEncoder",
    "role_of",
    "slug",
]

_DEVICE = Field("auto", description="auto, cpu, cuda or cuda:N")


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


class EvaluationDataConfig(Frozen):
    cache: Path = Field(description="folder that `prepare` wrote")
    index: Path | None = Field(
        None, description="index folder; needed when labels name samples by patient_id, path or a UID"
    )
    modalities: tuple[str, ...] | None = Field(None, description="use only these; null = all in the cache")
    sequences: tuple[str, ...] | None = Field(None, description="MRI: use only these; null = all")
    one_per_patient: bool = Field(False, description="keep one series of every patient, the first by key")


Method = Literal[
    "linear", "knn", "attention", "finetune", "lora", "segment_linear", "segment_decoder", "segment_finetune"
]


class ProbeRecipe(Frozen):
    penalties: tuple[float, ...] = Field(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), description="inverse L2 penalties C that cross-validation chooses from"
    )
    preset_penalty: float = Field(0.1, gt=0, description="used below five labels per class, the same for every encoder")
    neighbours: int = Field(5, gt=0, description="k of k-NN (cosine)")


class AttentionRecipe(Frozen):
    """One learned query over the tokens of a volume, trained with AdamW; the same for every encoder."""

    width: int = Field(128, gt=0, description="of keys and values, over all heads")
    heads: int = Field(4, gt=0, description="each has its own attention")
    lrs: tuple[float, ...] = Field(
        (1e-3, 3e-3),
        min_length=1,
        description="chosen on a validation share of the budget; the first below five labels",
    )
    steps: int = Field(200, gt=0, description="optimizer steps at most; how many is chosen with the learning rate")
    evaluate_every: int = Field(20, gt=0, description="steps between two looks at the validation share")
    batch_size: int = Field(32, ge=1, description="volumes")
    weight_decay: float = Field(0.1, ge=0, description="none on biases and the query")
    dropout: float = Field(0.1, ge=0, lt=1, description="of tokens, in training")
    max_tokens: int = Field(
        512, gt=0, description="of a volume; beyond it slices are taken evenly spaced and neighbouring patches averaged"
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> AttentionRecipe:
        if self.width % self.heads:
            raise ValueError(f"attention.width {self.width} is no multiple of attention.heads {self.heads}")
        return self


class LoraRecipe(Frozen):
    """Low-rank adapters (Hu et al. 2022) in place of training all weights; the rest is as `finetune` says."""

    rank: int = Field(8, gt=0, description="of every adapter")
    alpha: int = Field(16, gt=0, description="an adapter counts alpha / rank")
    lr_factor: float = Field(1.0, gt=0, description="learning rate of the adapters / that of the head")


class FinetuneRecipe(Frozen):
    grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0, 0.3),
        min_length=1,
        description="factors on lr, the same for every encoder; chosen on a validation share of the budget, and the "
        "first below five labels per class",
    )
    slices_per_step: int = Field(
        24, gt=0, description="2D networks on volumes: slices of a volume drawn for a training step; all of them test"
    )
    epochs: int = Field(30, gt=0, description="passes over the labelled subset")
    min_steps: int = Field(50, ge=0, description="at least this many optimizer steps, however few the labels")
    batch_size: int = Field(16, ge=2, description="volumes")
    lr: float = Field(1e-3, gt=0, description="of the new head")
    backbone_lr_factor: float = Field(0.3, ge=0, description="learning rate of the backbone / that of the head")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="each block (ViT) or stage (CNN) learns this much slower than the one behind it"
    )
    weight_decay: float = Field(1e-2, ge=0, description="none on biases and norms")
    shift_voxels: int = Field(2, ge=0, description="augmentation: random shifts up to this many voxels")
    precision: Literal["auto", "bf16", "float32"] = Field("auto", description="auto: bf16 autocast where it is fast")


class ProbeConfig(Frozen):
    """One frozen evaluation of one encoder."""

    version: int = Field(1, description="of this file's format")
    data: EvaluationDataConfig
    model: Path = Field(description="run directory, export or weight file")
    task: TaskConfig
    holdout: HoldoutConfig = HoldoutConfig()
    budgets: tuple[int, ...] = Field(
        (1, 2, 5, 10, 100, 1000), description="labels per class (regression: per quintile); those that fit, and all"
    )
    seeds: int = Field(5, gt=0, description="draws of the labelled subset")
    probe: ProbeRecipe = ProbeRecipe()
    segmentation: SegmentationRecipe = SegmentationRecipe()
    transductive: bool = Field(False, description="allow a model that was pretrained on test patients, and mark it")
    allow_duplicates: bool = Field(False, description="allow exact copies of test images on the training side")
    device: str = _DEVICE


class FinetuneConfig(Frozen):
    """One fine-tuning of one encoder."""

    version: int = Field(1, description="of this file's format")
    data: EvaluationDataConfig
    model: Path = Field(description="run directory, export or weight file")
    task: TaskConfig
    holdout: HoldoutConfig = HoldoutConfig()
    budgets: tuple[int, ...] = Field((10,), description="labels per class; those that fit; an empty list = all labels")
    seeds: int = Field(5, gt=0, description="draws of the labelled subset")
    finetune: FinetuneRecipe = FinetuneRecipe()
    segmentation: SegmentationRecipe = SegmentationRecipe()
    transductive: bool = Field(False, description="allow a model that was pretrained on test patients, and mark it")
    allow_duplicates: bool = Field(False, description="allow exact copies of test images on the training side")
    device: str = _DEVICE


class BenchmarkConfig(Frozen):
    """The grid: tasks x encoders x methods x budgets x seeds."""

    version: int = Field(1, description="of this file's format")
    data: EvaluationDataConfig
    tasks: tuple[TaskConfig, ...]
    encoders: tuple[EncoderConfig, ...]
    methods: tuple[Method, ...] = Field(
        ("linear", "knn", "finetune"),
        description="also: attention (pooling over frozen tokens), lora; for kind: segmentation segment_linear, "
        "segment_decoder, segment_finetune",
    )
    holdout: HoldoutConfig = HoldoutConfig()
    budgets: tuple[int, ...] = Field(
        (1, 2, 5, 10, 100, 1000), description="frozen: labels per class; those that fit, and all"
    )
    seeds: int = Field(5, gt=0, description="frozen: draws of the labelled subset")
    finetune_tasks: tuple[str, ...] | None = Field(None, description="null = all tasks")
    finetune_budgets: tuple[int, ...] = Field(
        (5, 10), description="labels per class; those that fit; an empty list = all labels"
    )
    finetune_seeds: int = Field(5, gt=0, description="draws of the labelled subset, and of head and batches")
    probe: ProbeRecipe = ProbeRecipe()
    attention: AttentionRecipe = AttentionRecipe()
    finetune: FinetuneRecipe = FinetuneRecipe()
    lora: LoraRecipe = LoraRecipe()
    segmentation: SegmentationRecipe = SegmentationRecipe()
    workers: int = Field(1, ge=1, description="processes that compute cells at once, after the features are there")
    store: Path | None = Field(
        None, description="folder of features by volume, shared by benchmarks; null = OUT/features/store"
    )
    transductive: bool = Field(False, description="allow runs that were pretrained on test patients, and mark them")
    allow_duplicates: bool = Field(False, description="allow exact copies of test images on the training side")
    remark: str | None = Field(None, description="a sentence for readers, which stands first in the report")
    device: str = _DEVICE

    @field_validator("tasks", "encoders")
    @classmethod
    def _distinct_names(cls, items: tuple[TaskConfig | EncoderConfig, ...]) -> tuple[TaskConfig | EncoderConfig, ...]:
        names = [slug(item.name) for item in items]
        if not names:
            raise ValueError("at least one is needed")
        if len(set(names)) < len(names):
            raise ValueError("names must differ, also as file names")
        return items
