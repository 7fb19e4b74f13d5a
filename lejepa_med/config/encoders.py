"""What a benchmark compares: runs, the same network untrained, controls without a network, 2D networks on slices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lejepa_med.spec import Frozen, InferenceSpec, RangeHU

Role = Literal["ours", "rival", "control"]
Aggregation = Literal["mean", "max", "mean_max", "random"]
NOT_IN_IDENTITY = {"name", "path", "like", "weights", "group", "role"}
"""Of an encoder: what its features do not depend on; the files of `path`, `like` and `weights` are hashed instead."""


class _Arm(Frozen):
    """What every encoder has besides its network."""

    group: str | None = Field(None, description="encoders of one group are repeats of one arm, e.g. pretraining seeds")
    role: Role | None = Field(
        None, description="ours, rival or control; null = by its kind (run: ours, timm2d: rival, all others: control)"
    )


class _Windowed(_Arm):
    """What every encoder has that is not given a window by its weights."""

    ct_window_hu: RangeHU | None = Field(
        None,
        description="CT: the window mapped to [0, 1], HU; null = that of the benchmark's first run (role ours), so "
        "that all see the same (without a run: -160 to 240)",
    )

    @property
    def used_window_hu(self) -> tuple[float, float]:
        """The window that CT is seen through."""
        return self.ct_window_hu or InferenceSpec().ct_window_hu


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


class PixelsEncoder(_Windowed):
    kind: Literal["pixels"] = "pixels"
    name: str = "pixels + PCA"
    size: tuple[int, ...] = Field((16, 16, 16), description="the volume is shrunk to this many voxels")
    components: int = Field(64, gt=0, description="principal components, fitted on training patients")


class ShapeEncoder(_Windowed):
    """Box size, spacing, header and intensity moments: what a shortcut would use."""

    kind: Literal["shape"] = "shape"
    name: str = "shape + intensity"
    intensity: bool = Field(True, description="false: without the distribution of intensities")
    header: bool = Field(
        True,
        description="with what the cache knows of the header: modality, sequence, number and axis of scanned slices",
    )


class Timm2dEncoder(_Windowed):
    """A 2D network on slices, e.g. DINOv2 or one trained on ImageNet; weights by path, never downloaded."""

    kind: Literal["timm2d"] = "timm2d"
    name: str = "DINOv2"
    model: str = Field("vit_small_patch14_dinov2", description="timm name, without `timm/`")
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

    @field_validator("model")
    @classmethod
    def _is_a_timm_name(cls, model: str) -> str:
        if model.startswith("timm/"):
            raise ValueError(f"of kind timm2d every model is timm's; write it without `timm/`: {model[5:]}")
        return model

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
