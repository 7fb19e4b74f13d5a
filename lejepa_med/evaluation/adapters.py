"""LoRA (Hu et al. 2022): every adapted layer W learns a low-rank sum W + (alpha / rank) B A, and nothing else does.

Adapted are the linear layers of a transformer's blocks (attention and MLP), and in other networks all convolutions and
linear layers. Left alone: depthwise and other grouped convolutions, whose rank is no multiple of their groups, and the
patch embedding of transformers. Norms stay as they are, BatchNorm statistics aside.
"""

from __future__ import annotations

import re

from torch import nn

from lejepa_med.backbones import Backbone
from lejepa_med.config.evaluation import LoraRecipe
from lejepa_med.errors import UserError

_ATTENTION = re.compile(r"(^|\.)(attn|attention)\.")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def adapted_layers(backbone: Backbone) -> list[str]:
    """The names of the layers that get an adapter."""
    layers = dict(backbone.named_modules())
    transformer = any(_ATTENTION.search(name) for name in layers)
    names = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    if not transformer:
        names += [name for name, layer in layers.items() if isinstance(layer, _CONVOLUTIONS) and layer.groups == 1]
    return names


def add_adapters(backbone: Backbone, recipe: LoraRecipe) -> list[nn.Parameter]:
    """Puts adapters into the network, which then gives the same as before; returns all that can be trained now.

    Raises:
        UserError: it has no layer that can be adapted.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = adapted_layers(backbone)
    if not names:
        raise UserError("lora: this network has no linear layer and no plain convolution to adapt; use finetune")
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=names, lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, backbone)
    return [parameter for parameter in backbone.parameters() if parameter.requires_grad]
