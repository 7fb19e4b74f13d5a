"""From the name in a config to a network; settings that a network does not have are refused."""

from __future__ import annotations

import re

from lejepa_med.backbones import convnext3d, densenet3d, efficientnet3d, primus3d, resnet3d, senet3d, vit3d
from lejepa_med.backbones.protocol import Backbone
from lejepa_med.backbones.resenc3d import ResEnc3d
from lejepa_med.backbones.swin3d import SwinUnetr3d
from lejepa_med.backbones.timm2d import Timm2d
from lejepa_med.backbones.unet_encoders3d import SegResNet3d, UNet3d
from lejepa_med.config import ModelConfig
from lejepa_med.errors import ConfigError

_FAMILIES = {
    "resnet": [str(depth) for depth in resnet3d.LAYERS],
    "senet": list(senet3d.NETWORKS),
    "densenet": [str(depth) for depth in densenet3d.LAYERS],
    "efficientnet_": list(efficientnet3d.VARIANTS),
    "convnext_": list(convnext3d.DEPTHS),
    "vit_": list(vit3d.SIZES),
    "primus_": list(primus3d.SIZES),
    "segresnet": [""],
    "unet": [""],
    "resenc_l": [""],
    "swinunetr": [""],
}
_FAMILY_OF = {
    f"{'' if family == 'senet' else family}{member}_3d": (family.rstrip("_"), member)
    for family, members in _FAMILIES.items()
    for member in members
}
NAMES = tuple(_FAMILY_OF)
"""The 3D networks; 2D ones are `timm/NAME`."""

_STEM, _NORM = ("stem_stride", "stem_pool"), ("norm",)
_SETTINGS = {
    "resnet": ("width", *_STEM, *_NORM),
    "senet": (*_STEM, *_NORM),
    "densenet": ("width", *_STEM, *_NORM),
    "efficientnet": _NORM,
    "convnext": ("width",),
    "vit": ("patch_size", "registers"),
    "primus": ("patch_size",),
    "segresnet": ("width", *_NORM),
    "unet": ("width", *_NORM),
    "resenc_l": ("width", *_NORM),
    "swinunetr": ("width",),
    "timm": ("positions",),
}


def build(config: ModelConfig) -> Backbone:
    """A network with fresh weights, from torch's global random state.

    Raises:
        ConfigError: an unknown name, or a setting that this network does not have.
    """
    family, member = _FAMILY_OF.get(config.name) or _timm(config.name)
    _refuse_unused(config, family)
    match family:
        case "timm":
            return Timm2d(member, config.in_channels, config.positions)
        case "resnet":
            return resnet3d.ResNet3d(int(member), config)
        case "senet":
            return senet3d.SENet3d(member, config)
        case "densenet":
            return densenet3d.DenseNet3d(int(member), config)
        case "efficientnet":
            return efficientnet3d.EfficientNet3d(member, config)
        case "convnext":
            return convnext3d.ConvNeXt3d(member, config)
        case "vit":
            return vit3d.ViT3d(member, config)
        case "primus":
            return primus3d.Primus3d(member, config)
        case "segresnet":
            return SegResNet3d(config)
        case "unet":
            return UNet3d(config)
        case "resenc_l":
            return ResEnc3d(config)
    assert family == "swinunetr"
    return SwinUnetr3d(config)


def _timm(name: str) -> tuple[str, str]:
    match re.split("/", name, maxsplit=1):
        case ["timm", member]:
            return "timm", member
    raise ConfigError(f"model {name}: not known; 3D: {', '.join(NAMES)}; 2D: timm/NAME")


def _refuse_unused(config: ModelConfig, family: str) -> None:
    """Every setting that this network does not have, unless it is the default."""
    used = {"name", "in_channels", *_SETTINGS[family]}
    fields = {key: field.default for key, field in ModelConfig.model_fields.items() if key not in used}
    given = [key for key, default in fields.items() if getattr(config, key) != default]
    if "norm" in given and config.norm == "batch":
        given.remove("norm")  # the former default: stored with every network, whatever its norm
    if given:
        has = ", ".join(f"model.{key}" for key in _SETTINGS[family])
        raise ConfigError(
            f"model {config.name} has no {', '.join(given)}: leave {'it' if len(given) == 1 else 'them'} out; "
            f"its settings: {has}"
        )
