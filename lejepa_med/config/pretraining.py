"""Settings of `pretrain`: data, model, views, objective, optimizer and loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lejepa_med.config.indexing import Sequence
from lejepa_med.config.tasks import OnlineProbeConfig
from lejepa_med.config.tracking import LoggingConfig
from lejepa_med.spec import CacheModality, Frozen, InferenceSpec

Probability = Annotated[float, Field(ge=0, le=1)]
Size = tuple[Annotated[int, Field(gt=0)], ...]
Interval = tuple[float, float]


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


class MriIntensityConfig(Frozen):
    """MRI augmentation on [0, 1]. Each is drawn anew for every view."""

    gamma: Interval = Field((0.7, 1.5), description="exponent, log-uniform")
    gamma_probability: Probability = 0.8
    bias_field: float = Field(0.3, ge=0, description="largest log-amplitude of the smooth multiplicative field")
    bias_probability: Probability = 0.5
    contrast: Interval = Field((0.75, 1.25), description="factor on all values, uniform")
    contrast_probability: Probability = 0.8
    noise_std: Interval = Field((0.0, 0.05), description="Gaussian noise, uniform")
    noise_probability: Probability = 0.5
    gibbs: Interval = Field((0.5, 0.9), description="ringing: share of k-space that is kept along one axis, uniform")
    gibbs_probability: Probability = 0.0

    @model_validator(mode="after")
    def _kept_share(self) -> MriIntensityConfig:
        if not 0 < self.gibbs[0] <= self.gibbs[1] <= 1:
            raise ValueError(f"gibbs is a share of k-space, [low, high] within (0, 1], got {list(self.gibbs)}")
        return self


class CtIntensityConfig(Frozen):
    """CT augmentation. Values stay in HU until the window is drawn."""

    window_centre_hu: Interval = Field((-100.0, 100.0), description="centre of the window, uniform, HU")
    window_width_hu: Interval = Field((350.0, 1500.0), description="width of the window, log-uniform, HU")
    noise_std: Interval = Field((0.0, 0.03), description="Gaussian noise after windowing, uniform")
    noise_probability: Probability = 0.5


class ViewsConfig(Frozen):
    num_global: int = Field(2, ge=1, description="large views of every sample; their mean is the prediction target")
    num_local: int = Field(6, ge=0, description="small views of every sample")
    global_size: Size = Field((96, 96, 96), description="voxels of a global view (two numbers: 2D)")
    local_size: Size = Field((48, 48, 48), description="voxels of a local view")
    base_crop_mm: float | None = Field(
        192.0, gt=0, description="side of the region that views are cut from, mm; null = the whole array (2D images)"
    )
    scale: Literal["fraction", "physical_mm"] = Field(
        "fraction", description="fraction: random zoom; physical_mm: one pitch with small jitter, keeps size readable"
    )
    global_fraction: Interval = Field((0.3, 1.0), description="share of the base crop's volume (2D: area)")
    local_fraction: Interval = Field((0.05, 0.3), description="share of the base crop's volume (2D: area)")
    aspect: float = Field(1.2, ge=1, description="largest ratio by which an axis of a crop is longer or shorter")
    global_pitch_mm: Interval | None = Field((1.0, 3.0), description="bounds on mm per voxel; null = none")
    local_pitch_mm: Interval | None = Field((0.7, 1.5), description="bounds on mm per voxel; null = none")
    pitch_jitter: float = Field(1.1, ge=1, description="physical_mm: factor around the geometric mean of the bounds")
    max_magnification: float = Field(1.25, ge=1, description="a view voxel is never smaller than prepared / this")
    flip_left_right: Probability = Field(0.0, description="laterality is a finding: off unless you know better")
    flip_other: Probability = Field(0.0, description="flips along the other axes")
    blur_probability: Probability = Field(0.3, description="views seen through a wider filter: low resolution")
    blur_factor: float = Field(2.0, ge=1, description="largest width of that filter, in view voxels")
    thick_slice_probability: Probability = Field(0.2, description="3D: the same along one axis only, as thick slices")
    min_body: Probability = Field(0.25, description="crops with less body than this are redrawn")
    redraws: int = Field(6, ge=1, description="tries per crop; the one with the most body is kept")
    rot90_probability: Probability = Field(
        0.0, description="views turned by right angles (where their sides are equal)"
    )
    rot90_axes: Literal["keep_left_right", "any"] = Field(
        "keep_left_right",
        description="keep_left_right: 3D, about the left-right axis (axis 0) only; any: left can get to any side; "
        "neither mirrors",
    )
    tilt_probability: Probability = Field(0.0, description="views cut at a small angle")
    tilt_degrees: float = Field(
        15.0, ge=0, le=45, description="largest angle, uniform; 3D: about an axis of any direction"
    )
    tilt_shear: float = Field(0.0, ge=0, le=0.3, description="largest shear of each axis along each other one, uniform")
    mri: MriIntensityConfig = Field(MriIntensityConfig(), description="MRI, PET and pictures")
    mri_by_sequence: dict[str, MriIntensityConfig] = Field(
        {}, description="what differs from `mri` for a sequence, e.g. {flair: {gamma: [0.8, 1.3]}}"
    )
    ct: CtIntensityConfig = CtIntensityConfig()
    intensity_channels: Literal["auto", "separate", "shared"] = Field(
        "auto",
        description="several channels: one MRI intensity draw for each (separate) or for all (shared); auto: shared "
        "for 2D pictures with three colours, else separate, since sequences are scanned one by one",
    )

    @model_validator(mode="before")
    @classmethod
    def _sequences_start_from_mri(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("mri_by_sequence"), dict):
            return given
        mri = given.get("mri", {})
        mri = mri.model_dump() if isinstance(mri, MriIntensityConfig) else mri
        sequences = {
            name: {**mri, **own} if isinstance(own, dict) and isinstance(mri, dict) else own
            for name, own in given["mri_by_sequence"].items()
        }
        return {**given, "mri_by_sequence": sequences}

    @model_validator(mode="after")
    def _left_stays_left(self) -> ViewsConfig:
        if self.rot90_probability and self.rot90_axes == "keep_left_right" and len(self.global_size) == 2:
            raise ValueError("rot90_probability: in 2D every turn moves left and right; set rot90_axes: any, or 0")
        if self.rot90_probability and self.rot90_axes == "any" and self.flip_other and not self.flip_left_right:
            raise ValueError(
                "rot90_axes: any together with flip_other makes left-right mirror images, but flip_left_right is 0; "
                "set rot90_axes: keep_left_right, or flip_left_right"
            )
        return self

    @model_validator(mode="after")
    def _same_dimensions(self) -> ViewsConfig:
        if len(self.global_size) != len(self.local_size) or len(self.global_size) not in (2, 3):
            raise ValueError("global_size and local_size need two numbers each (2D) or three each (3D)")
        return self


class ModelConfig(Frozen):
    name: str = Field(
        "resnet18_3d", description="resnet{10,18,34,50}_3d, vit_{tiny,small,base,large}_3d, or timm/NAME in 2D"
    )
    in_channels: int = Field(1, ge=1, description="channels of the scans")
    width: float = Field(1.0, gt=0, description="3D ResNets: factor on all channel counts")
    stem_stride: Literal[1, 2] = Field(2, description="3D ResNets: stride of the first convolution; 1 costs 8x")
    stem_pool: bool = Field(True, description="3D ResNets: max-pooling after the first convolution")
    norm: Literal["batch", "group"] = Field("batch", description="3D ResNets: normalisation")
    patch_size: int = Field(16, gt=0, description="3D ViT: voxels per patch")


class ProjectorConfig(Frozen):
    hidden: int = Field(2048, gt=0, description="width of the hidden layers")
    dim: int = Field(64, gt=0, description="dimensions that the objective sees")
    layers: int = Field(3, ge=1, description="linear layers")


class ObjectiveConfig(Frozen):
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
    weight_decay: float | Literal["auto"] = Field("auto", description="auto: 5e-2 for ViTs, 5e-4 otherwise")
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
        three_d = self.model.name.endswith("_3d")
        if three_d != (self.spatial_dims == 3):
            raise ValueError(
                f"model {self.model.name} is {'3D' if three_d else '2D'}, but views.global_size has "
                f"{self.spatial_dims} numbers"
            )
        if (self.data.kind == "volumes") != (self.spatial_dims == 3):
            raise ValueError(f"data.kind {self.data.kind} gives {'3D' if self.data.kind == 'volumes' else '2D'} views")
        return self
