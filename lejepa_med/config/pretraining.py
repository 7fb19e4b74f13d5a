"""Settings of `pretrain`: data, model, objective, optimizer and loop (views: `views`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lejepa_med.config.indexing import Sequence
from lejepa_med.config.tasks import OnlineProbeConfig
from lejepa_med.config.tracking import LoggingConfig
from lejepa_med.config.views import Probability, ViewsConfig
from lejepa_med.spec import CacheModality, Frozen, InferenceSpec

PatchSize = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
Adaptation = Literal["in_channels", "patch_size", "positions", "inflate"]
"""What loading may change in the weights of another network (see `lejepa_med.weights.adapting`)."""


class HoldoutConfig(Frozen):
    """Patients that pretraining never sees. The same two numbers give the same patients in `benchmark`."""

    test_fraction: float = Field(0.3, ge=0, lt=1, description="share of patients kept for testing; 0 = transductive")
    seed: int = Field(0, description="which patients these are")


class DataConfig(Frozen):
    cache: Path | None = Field(None, description="folder that `prepare` wrote; null only when data is given in Python")
    kind: Literal["volumes", "slices", "images"] = Field(
        "volumes", description="3D volumes, 2D slices of volumes, or 2D images"
    )
    plane: Literal["axial", "coronal", "sagittal"] = Field("axial", description="slices: the plane they are cut in")
    modalities: tuple[CacheModality, ...] | None = Field(
        None, description="use only these, e.g. [mri]; null = all in the cache"
    )
    sequences: tuple[Sequence, ...] | None = Field(
        None, description="MRI: use only these, e.g. [t1, flair]; null = all"
    )
    holdout: HoldoutConfig = HoldoutConfig()
    official_split: Path | None = Field(
        None,
        description="CSV with series_key and split (train, val, test), e.g. cache/labels.csv: only train is used, and "
        "holdout leaves nobody out",
    )
    monitor_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the other patients (about 512 at most) kept aside for the held-out loss (diagnostics, "
        "select); 0 = none",
    )
    workers: int = Field(
        0,
        ge=0,
        description="threads that read a cache ahead of the loop (0: one), or processes of a torch dataset (0: none); "
        "the batches are the same for any number",
    )
    prefetch: int = Field(2, ge=1, description="batches made ahead; of a torch dataset: by each process")
    residency: Literal["auto", "disk", "host", "device"] = Field(
        "auto",
        description="where a cache's volumes are while it trains: read from disk for every crop, kept in memory, or "
        "kept on the device; auto decides by their size and says so",
    )
    verify: Literal["first", "never"] = Field(
        "first", description="first: a volume's checksum is compared when it is first read"
    )
    crops_per_read: int = Field(
        1, ge=1, description="consecutive steps that use the same scans at other places, read once for all of them"
    )
    balance: Literal["none", "modality", "sequence"] = Field(
        "none", description="every batch holds each of these equally often, as far as there are patients"
    )
    patient_weight: Literal["equal", "studies"] = Field(
        "equal", description="equal: patients are drawn alike, however many studies they have; studies: each study is"
    )


class ModelConfig(Frozen):
    name: str = Field(
        "resnet18_3d",
        description="3D: resnet{10,18,34,50,101,152}_3d, resnext{50,101}_3d, seresnet{50,101,152}_3d, "
        "seresnext{50,101}_3d, densenet{121,169,201}_3d, efficientnet_{b0-b7}_3d, convnext_{tiny,small}_3d, "
        "segresnet_3d, unet_3d, resenc_l_3d, swinunetr_3d, vit_{tiny,small,base,large,huge,giant,gigantic}_3d, "
        "primus_{s,b,m,l}_3d; 2D: timm/NAME",
    )
    in_channels: int = Field(1, ge=1, description="channels of the scans")
    width: float = Field(
        1.0, gt=0, description="ResNet, DenseNet, ConvNeXt, SegResNet, U-Net, ResEnc, SwinUNETR: factor on all channels"
    )
    stem_stride: Literal[1, 2] = Field(
        2, description="3D ResNet (also SE, ResNeXt), DenseNet: stride of the first convolution; 1 costs 8x"
    )
    stem_pool: bool = Field(True, description="the same networks: max-pooling after the first convolution")
    norm: Literal["auto", "batch", "group", "instance"] = Field(
        "auto", description="3D networks with BatchNorm or InstanceNorm: which one instead; auto: the network's own"
    )
    patch_size: Annotated[int, Field(gt=0)] | PatchSize = Field(
        16, description="3D ViT, Primus: voxels per patch, one number or three, e.g. [8, 16, 16]"
    )
    registers: int = Field(0, ge=0, description="3D ViT: register tokens")
    positions: Literal["timm", "dinov2", "huggingface"] = Field(
        "timm",
        description="2D ViTs: how learnt positions are resized to a view; the rule of the source of the weights (timm: "
        "also of Meta's DINOv2 with registers; dinov2: Meta's without; huggingface: transformers' without)",
    )


class ProjectorConfig(Frozen):
    hidden: int = Field(2048, gt=0, description="width of the hidden layers")
    dim: int = Field(64, gt=0, description="dimensions that the objective sees")
    layers: int = Field(3, ge=1, description="linear layers")


class VICRegWeights(Frozen):
    """Of the three terms of VICReg; the defaults are the paper's."""

    invariance: float = Field(25.0, ge=0, description="of the squared difference between views")
    variance: float = Field(25.0, ge=0, description="of the hinge on standard deviations below 1")
    covariance: float = Field(1.0, ge=0, description="of the squared covariances")


class ObjectiveConfig(Frozen):
    kind: Literal["lejepa", "vicreg"] = Field(
        "lejepa", description="vicreg: the control; metrics.jsonl then holds total, s as prediction, the rest as sigreg"
    )
    vicreg: VICRegWeights = VICRegWeights()
    lam: Probability | Literal["auto", "sqrt"] = Field(
        "sqrt",
        description="weight of SIGReg in [0, 1]; sqrt keeps lam sqrt(N) / (1 - lam) at the paper's .05 at N = 256, "
        "auto lam N / (1 - lam)",
    )
    num_slices: int = Field(1024, gt=0, description="random directions per step")
    num_knots: int = Field(17, ge=3, description="trapezoid knots over [0, t_max]")
    t_max: float = Field(3.0, gt=0, description="largest frequency of the test")
    kernel: Literal["auto", "eager", "compiled", "cpp", "triton"] = Field(
        "auto",
        description="how SIGReg is computed: plain PyTorch, torch.compile, C++ built at first use (CPU), Triton (CUDA)",
    )


class OptimConfig(Frozen):
    lr: float = Field(5e-4, gt=0, description="peak learning rate")
    weight_decay: float | Literal["auto"] = Field(
        "auto", description="auto: 5e-2 for networks with LayerNorm (ViT, Swin, ConvNeXt), 5e-4 otherwise"
    )
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of the steps with a rising learning rate")
    final_fraction: float = Field(1e-3, ge=0, description="last learning rate / peak")
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; null = no clipping")


class TrainConfig(Frozen):
    steps: int = Field(3000, gt=0, description="optimizer steps; small sets need at least some 3,000")
    batch_size: int = Field(64, ge=2, description="samples of one step over all ranks")
    micro_batch: int | None = Field(
        None, ge=1, description="samples per backbone pass of one rank, if memory is short; null = all at once"
    )
    precision: Literal["auto", "bf16", "float32"] = Field("auto", description="auto: bf16 autocast where it is fast")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several ranks: ddp keeps the model on each, fsdp a shard of it (models too large for one)"
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="loss or gradient not finite: stop, or leave the step out and go on"
    )
    max_skips: int = Field(10, ge=0, description="on_nan: skip: one more of these steps stops the run")
    max_loss_ratio: float | None = Field(
        10.0, ge=2, description="a loss above so many times the run's lowest running median stops it; null = never"
    )
    stop_on_plateau: int | None = Field(
        None, ge=100, description="end early if the median loss of so many steps is not 1 % below that of those before"
    )
    channels_last: bool = Field(False, description="channels last in memory: convolutions in bf16 on a GPU like it")
    compile: bool = Field(False, description="torch.compile of the backbone: minutes at the start, faster steps")
    activation_checkpointing: bool = Field(
        False, description="ViTs: blocks run again in the backward pass; a third more time, far less memory"
    )
    deterministic: bool = Field(False, description="only kernels that repeat to the bit on a GPU; slower")
    checkpoint_every: int = Field(500, gt=0, description="steps")
    keep_checkpoints: int = Field(2, ge=1, description="the last k are kept, and the best by held-out loss")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the run leaves an exponential average of the backbone's weights, e.g. 0.999; null = the last ones",
    )
    swa_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="the run leaves the plain mean of the backbone's weights over this last share of the steps, "
        "e.g. 0.25; null = the last ones",
    )
    diagnostics_every: int = Field(100, gt=0, description="steps")

    @model_validator(mode="after")
    def _one_average(self) -> TrainConfig:
        if self.ema_decay is not None and self.swa_fraction is not None:
            raise ValueError("ema_decay and swa_fraction are two averages of the weights; set one of them to null")
        return self


class PretrainConfig(Frozen):
    """Everything that one pretraining run depends on."""

    version: int = Field(1, description="of this file's format")
    seed: int = Field(0, description="of weights, batches and views")
    init_from: Path | None = Field(
        None, description="start from a run, an export or a file (timm/NAME: also of timm or DINOv2), strictly loaded"
    )
    init_adapt: tuple[Adaptation, ...] = Field(
        (),
        description="what of these weights may be changed to fit the model, e.g. [in_channels, positions]; each change "
        "is reported; inflate: a 2D ResNet into a 3D one",
    )
    init_download: bool = Field(
        False,
        description="without init_from: fetch the weights that timm names for model.name (timm/NAME.TAG) over the "
        "network",
    )
    init_from_seen: Literal["unknown", "no_patients"] = Field(
        "unknown",
        description="whom weights without a record of their own (not of a run here) were trained on; no_patients: no "
        "medical scans, e.g. ImageNet or the official DINOv2, so that leak checks need not ask",
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    projector: ProjectorConfig = ProjectorConfig()
    views: ViewsConfig = ViewsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    logging: LoggingConfig = LoggingConfig()
    online_probe: OnlineProbeConfig = OnlineProbeConfig()
    inference: InferenceSpec | None = Field(
        None, description="how a volume becomes one embedding; null = one window of global_size over the base crop"
    )

    @property
    def spatial_dims(self) -> int:
        """2 or 3: the number of axes that the backbone sees."""
        return len(self.views.global_size)

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.init_adapt and self.init_from is None and not self.init_download:
            raise ValueError("init_adapt changes weights that are loaded, but init_from is null")
        if self.init_download and self.init_from is not None:
            raise ValueError("init_download fetches timm's weights, but init_from names others; set one of them")
        if self.init_download and not self.model.name.startswith("timm/"):
            raise ValueError(f"init_download: only timm's weights are fetched, and model.name is {self.model.name}")
        three_d = self.model.name.endswith("_3d")
        if three_d != (self.spatial_dims == 3):
            raise ValueError(
                f"model {self.model.name} is {'3D' if three_d else '2D'}, but views.global_size has "
                f"{self.spatial_dims} numbers"
            )
        if (self.data.kind == "volumes") != (self.spatial_dims == 3):
            raise ValueError(f"data.kind {self.data.kind} gives {'3D' if self.data.kind == 'volumes' else '2D'} views")
        return self
