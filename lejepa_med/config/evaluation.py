"""Settings of `probe`, `finetune` and `benchmark`: tasks, encoders, budgets and recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lejepa_med.config.pretraining import HoldoutConfig
from lejepa_med.config.segmentation import SegmentationRecipe
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.spec import Frozen, InferenceSpec, RangeHU

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


Role = Literal["ours", "rival", "control"]
Aggregation = Literal["mean", "max", "mean_max", "random"]
Method = Literal[
    "linear", "knn", "attention", "finetune", "lora", "segment_linear", "segment_decoder", "segment_finetune"
]
NOT_IN_IDENTITY = {"name", "path", "like", "weights", "group", "role"}
"""Of an encoder: what its features do not depend on; the files of `path`, `like` and `weights` are hashed instead."""


class _Arm(Frozen):
    """What every encoder has besides its network."""

    group: str | None = Field(None, description="encoders of one group are repeats of one arm, e.g. pretraining seeds")
    role: Role | None = Field(
        None, description="ours, rival or control; null = by its kind (run: ours, timm2d: rival, all others: control)"
    )


def role_of(encoder: EncoderConfig) -> Role:
    """The part that an encoder plays in the comparison."""
    by_kind: dict[str, Role] = {"run": "ours", "timm2d": "rival"}
    return encoder.role or by_kind.get(encoder.kind, "control")


class RunEncoder(_Arm):
    kind: Literal["run"] = "run"
    name: str = "LeJEPA"
    path: Path = Field(description="run directory, export or weight file")


class RandomEncoder(_Arm):
    kind: Literal["random"] = "random"
    name: str = "random init"
    like: Path = Field(description="run whose architecture and inference geometry are used, with fresh weights")
    seed: int = Field(0, description="of the fresh weights")


class ScratchEncoder(_Arm):
    """Trained from the labels only; takes part in fine-tuning, not in frozen probes."""

    kind: Literal["scratch"] = "scratch"
    name: str = "from scratch"
    like: Path = Field(description="run whose architecture is trained from fresh weights")
    seed: int = Field(0, description="of the fresh weights")


class PixelsEncoder(_Arm):
    kind: Literal["pixels"] = "pixels"
    name: str = "pixels + PCA"
    size: tuple[int, ...] = Field((16, 16, 16), description="the volume is shrunk to this many voxels")
    components: int = Field(64, gt=0, description="principal components, fitted on training patients")


class ShapeEncoder(_Arm):
    """Box size, spacing, header and intensity moments: what a shortcut would use."""

    kind: Literal["shape"] = "shape"
    name: str = "shape + intensity"
    intensity: bool = Field(True, description="false: without the distribution of intensities")
    header: bool = Field(
        True,
        description="with what the cache knows of the header: modality, sequence, number and axis of scanned slices",
    )


class Timm2dEncoder(_Arm):
    """A 2D network on slices, e.g. DINOv2 or one trained on ImageNet; weights by path, never downloaded."""

    kind: Literal["timm2d"] = "timm2d"
    name: str = "DINOv2"
    model: str = Field("vit_small_patch14_dinov2", description="timm name")
    weights: Path | None = Field(None, description="local weight file; null = the row says `no weights given`")
    positions: Literal["timm", "dinov2", "huggingface"] = Field(
        "timm",
        description="ViTs: how learnt positions are resized to image_size; the rule of the source of the weights "
        "(timm: also of Meta's DINOv2 with registers; dinov2: Meta's without; huggingface: transformers' without)",
    )
    image_size: int = Field(224, gt=0, description="pixels; DINOv2: a multiple of 14")
    protocol: Literal["raptor", "axial32"] = Field(
        "raptor",
        description="raptor: all non-empty slices of three planes; axial32: 32 axial slices, as in Medical Slice "
        "Transformer",
    )
    planes: tuple[Literal["axial", "coronal", "sagittal"], ...] | None = Field(None, description="null = by protocol")
    slices: int | None = Field(
        None, gt=0, description="non-empty slices per plane at most, evenly spaced; null = by protocol (raptor: all)"
    )
    aggregations: tuple[Aggregation, ...] = Field(
        ("mean_max", "mean", "max", "random"),
        min_length=1,
        description="how slices become one row; linear and k-NN probes choose among them by cross-validation within "
        "the budget, and take the first below five labels per class; random: Raptor's projection of patch tokens",
    )
    random_dim: int = Field(100, gt=0, description="random: dimensions that every patch token is projected to")
    random_seed: int = Field(0, description="random: of the projection")
    ct_window_hu: RangeHU = Field(InferenceSpec().ct_window_hu, description="CT: the window mapped to [0, 1], HU")

    @property
    def used_planes(self) -> tuple[str, ...]:
        """The planes that slices are cut in."""
        return self.planes or (("axial", "coronal", "sagittal") if self.protocol == "raptor" else ("axial",))

    @property
    def most_slices(self) -> int | None:
        """Slices per plane at most; None for all."""
        return self.slices or (None if self.protocol == "raptor" else 32)


EncoderConfig = Annotated[
    RunEncoder | RandomEncoder | ScratchEncoder | PixelsEncoder | ShapeEncoder | Timm2dEncoder,
    Field(discriminator="kind"),
]


class ProbeRecipe(Frozen):
    penalties: tuple[float, ...] = Field(
        (1e-3, 1e-2, 1e-1, 1.0, 10.0), description="inverse L2 penalties C that cross-validation chooses from"
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
    seeds: int = Field(2, gt=0, description="draws of the labelled subset")
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
    finetune_seeds: int = Field(2, gt=0, description="draws of the labelled subset, and of head and batches")
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
