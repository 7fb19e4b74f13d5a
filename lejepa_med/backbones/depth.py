"""How deep each parameter of a backbone lies, for learning rates that fall towards the input."""

from __future__ import annotations

import re

from timm.models import group_parameters

from lejepa_med.backbones.primus3d import Primus3d
from lejepa_med.backbones.protocol import Backbone
from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.backbones.timm2d import Timm2d
from lejepa_med.backbones.vit3d import ViT3d


def layer_numbers(backbone: Backbone) -> dict[str, int]:
    """From the name of each parameter to its layer: 0 is the input's, blocks (ViT) or stages (all others) follow.

    Norms behind the last block belong to it. timm's networks say themselves; one of your own is a single layer.
    """
    names = [name for name, _ in backbone.named_parameters()]
    match backbone:
        case Timm2d():
            layers = group_parameters(backbone.net, backbone.net.group_matcher(coarse=False), reverse=True)
            numbers = {f"net.{name}": int(layer) for name, layer in layers.items()}
        case ViT3d() | Primus3d():
            numbers = {name: _number(r"(?:eva\.)?blocks\.(\d+)\.", name, 1) for name in names}
            numbers |= {name: len(backbone.blocks) for name in names if re.match(r"(eva\.)?norm\.", name)}
        case StagedBackbone():
            pattern, first, stages = backbone.stage_pattern, backbone.first_stage, backbone.num_stages
            numbers = {name: min(_number(pattern, name, first), stages) for name in names}
            numbers |= {name: stages for name in names if re.match(backbone.last_stage_pattern, name)}
        case _:
            return dict.fromkeys(names, 0)
    present = sorted({numbers[name] for name in names})  # without gaps: parameters need not fill every layer
    return {name: present.index(numbers[name]) for name in names}


def _number(pattern: str, name: str, first: int) -> int:
    found = re.match(pattern, name)
    return int(found[1]) + first if found else 0
