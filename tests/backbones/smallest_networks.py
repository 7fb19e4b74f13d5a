"""Every 3D network at its smallest setting, with statistics of BatchNorm that fit, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.config import ModelConfig

SMALLEST: dict[str, dict[str, Any]] = {
    "resnet": {"width": 0.125},
    "densenet": {"width": 0.25},
    "convnext": {"width": 0.125},
    "segresnet": {"width": 0.25},
    "unet": {"width": 0.25},
    "resenc": {"width": 0.25},
    "swinunetr": {"width": 0.25},
    "vit": {"patch_size": [8, 16, 16], "registers": 2},
    "primus": {"patch_size": [8, 16, 16]},
}


def smallest(name: str, in_channels: int = 1, **settings: Any) -> ModelConfig:
    own = next((own for family, own in SMALLEST.items() if name.startswith(family)), {})
    return ModelConfig.model_validate({"name": name, "in_channels": in_channels, **own, **settings})


def make(config: ModelConfig) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build(config).eval()
        reestimate_batchnorm(backbone, [scans(4, config.in_channels, 32, 32, 48)])  # EfficientNet vanishes without
    return backbone


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def scans(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth blobs of different brightness: unlike noise, no two have the same mean."""
    coarse = rand(*shape[:2], 4, 4, 4, seed=seed) * rand(shape[0], 1, 1, 1, 1, seed=seed + 1)
    return 0.9 * nn.functional.interpolate(coarse, shape[2:], mode="trilinear") + 0.1 * rand(*shape, seed=seed + 2)
