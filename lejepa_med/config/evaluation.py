"""Settings of `probe`, `finetune` and `benchmark`: tasks, encoders, budgets and recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lejepa_med.config.pretraining import HoldoutConfig
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.spec import Frozen, InferenceSpec, RangeHU

_DEVICE = Field("auto", description="auto, cpu, cuda or cuda:N")


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


class EvaluationDataConfig(Frozen):
    cache: Path = Field(description="folder that `prepare` wrote")
    index: Path | None = Field(None, description="index folder; needed when labels name samples by patient_id or path")
    modalities: tuple[str, ...] | None = Field(None, description="use only these; null = all in the cache")
    sequences: tuple[str, ...] | None = Field(None, description="MRI: use only these; null = all")
    one_per_patient: bool = Field(False, description="keep one series of every patient, the first by key")


class RunEncoder(Frozen):
    kind: Literal["run"] = "run"
    name: str = "LeJEPA"
    path: Path = Field(description="run directory, export or weight file")


class RandomEncoder(Frozen):
    kind: Literal["random"] = "random"
    name: str = "random init"
    like: Path = Field(description="run whose architecture and inference geometry are used, with fresh weights")
    seed: int = Field(0, description="of the fresh weights")


class ScratchEncoder(Frozen):
    """Trained from the labels only; takes part in fine-tuning, not in frozen probes."""

    kind: Literal["scratch"] = "scratch"
    name: str = "from scratch"
    like: Path = Field(description="run whose architecture is trained from fresh weights")
    seed: int = Field(0, description="of the fresh weights")


class PixelsEncoder(Frozen):
    kind: Literal["pixels"] = "pixels"
    name: str = "pixels + PCA"
    size: tuple[int, ...] = Field((16, 16, 16), description="the volume is shrunk to this many voxels")
    components: int = Field(64, gt=0, description="principal components, fitted on training patients")


class ShapeEncoder(Frozen):
    """Box size, spacing and intensity moments: what a shortcut would use."""

    kind: Literal["shape"] = "shape"
    name: str = "shape + intensity"
    intensity: bool = Field(True, description="false: shape of the prepared box only")


class Timm2dEncoder(Frozen):
    """A 2D network on the slices of three planes, e.g. DINOv2; weights by path, never downloaded."""

    kind: Literal["timm2d"] = "timm2d"
    name: str = "DINOv2"
    model: str = Field("vit_small_patch14_dinov2", description="timm name")
    weights: Path | None = Field(None, description="local weight file; null = the row says `no weights given`")
    image_size: int = Field(224, gt=0, description="pixels; DINOv2: a multiple of 14")
    planes: tuple[Literal["axial", "coronal", "sagittal"], ...] = ("axial", "coronal", "sagittal")
    slices: int | None = Field(32, gt=0, description="non-empty slices per plane, evenly spaced; null = all")
    ct_window_hu: RangeHU = Field(InferenceSpec().ct_window_hu, description="CT: the window mapped to [0, 1], HU")


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


class FinetuneRecipe(Frozen):
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
    transductive: bool = Field(False, description="allow a model that was pretrained on test patients, and mark it")
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
    transductive: bool = Field(False, description="allow a model that was pretrained on test patients, and mark it")
    device: str = _DEVICE


class BenchmarkConfig(Frozen):
    """The grid: tasks x encoders x methods x budgets x seeds."""

    version: int = Field(1, description="of this file's format")
    data: EvaluationDataConfig
    tasks: tuple[TaskConfig, ...]
    encoders: tuple[EncoderConfig, ...]
    methods: tuple[Literal["linear", "knn", "finetune"], ...] = ("linear", "knn", "finetune")
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
    finetune: FinetuneRecipe = FinetuneRecipe()
    transductive: bool = Field(False, description="allow runs that were pretrained on test patients, and mark them")
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
