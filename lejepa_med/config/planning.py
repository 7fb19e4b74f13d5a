"""Settings of `plan`: those of `pretrain`, and what it should assume about a machine or an archive that is not here."""

from __future__ import annotations

from pydantic import Field

from lejepa_med.config.pretraining import PretrainConfig
from lejepa_med.spec import Frozen


class PlanSettings(Frozen):
    device_memory_gb: float | None = Field(None, gt=0, description="plan for a GPU with this memory, not this device")
    device_tflops: float | None = Field(
        None, gt=0, description="its peak in the precision of training, in TFLOP/s (bf16: an H100 about 990); for hours"
    )
    utilisation: float = Field(
        0.25, gt=0, le=1, description="share of the peak that training reaches, where no step is measured"
    )
    devices: int = Field(1, ge=1, description="devices that share the batch, one rank each")
    volumes: int | None = Field(None, gt=0, description="volumes to train on, where there is no cache yet")
    spacing_mm: float = Field(1.0, gt=0, description="their voxel size, where there is no cache yet")
    probe_seconds: float = Field(20.0, ge=0, description="time for measuring steps on this device; 0 = arithmetic only")


class PlanConfig(PretrainConfig):
    """A pretraining run that is planned, on this machine or on another."""

    plan: PlanSettings = PlanSettings()
