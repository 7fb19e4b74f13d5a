"""Settings of views: crops, their resolution and geometry, and the intensities of MRI and CT."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lejepa_med.spec import Frozen

Probability = Annotated[float, Field(ge=0, le=1)]
Size = tuple[Annotated[int, Field(gt=0)], ...]
Interval = tuple[float, float]


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
