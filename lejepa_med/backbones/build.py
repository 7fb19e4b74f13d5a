"""From the name in a config to a network."""

from __future__ import annotations

import re

from lejepa_med.backbones.protocol import Backbone
from lejepa_med.backbones.resnet3d import ResNet3d
from lejepa_med.backbones.timm2d import Timm2d
from lejepa_med.backbones.vit3d import SIZES, ViT3d
from lejepa_med.config import ModelConfig
from lejepa_med.errors import ConfigError

NAMES = (*(f"resnet{depth}_3d" for depth in (10, 18, 34, 50)), *(f"vit_{size}_3d" for size in SIZES))
"""The 3D networks; 2D ones are `timm/NAME`."""


def build(config: ModelConfig) -> Backbone:
    """A network with fresh weights, from torch's global random state. Raises ConfigError for unknown names."""
    match re.split(r"[/_]", config.name, maxsplit=1):
        case ["timm", name]:
            return Timm2d(name, config.in_channels)
        case [resnet, "3d"] if config.name in NAMES:
            depth = int(resnet.removeprefix("resnet"))
            return ResNet3d(depth, config.in_channels, config.width, config.stem_stride, config.stem_pool, config.norm)
        case ["vit", rest] if config.name in NAMES:
            return ViT3d(rest.removesuffix("_3d"), config.in_channels, config.patch_size)
    raise ConfigError(f"model {config.name}: not known; 3D: {', '.join(NAMES)}; 2D: timm/NAME")
