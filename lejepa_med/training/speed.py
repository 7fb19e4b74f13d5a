"""Settings that change what a step costs and not what it computes: memory layout, compilation, kept activations."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from lejepa_med.backbones import Backbone
from lejepa_med.config.pretraining import TrainConfig
from lejepa_med.errors import ConfigError

_LAYOUT = {4: torch.channels_last, 5: torch.channels_last_3d}


def tune(backbone: Backbone, config: TrainConfig) -> None:
    """Changes the backbone in place as `train.channels_last`, `activation_checkpointing` and `compile` ask.

    Names in its state dict stay.

    Raises:
        ConfigError: activation checkpointing of a backbone without blocks, or with BatchNorm in them.
    """
    if config.channels_last:  # convolutions take the layout of their weights over to the images
        for parameter in backbone.parameters():
            if parameter.ndim in _LAYOUT:
                parameter.data = parameter.data.contiguous(memory_format=_LAYOUT[parameter.ndim])
    if config.activation_checkpointing:
        blocks = blocks_of(backbone)
        if not blocks:
            raise ConfigError(
                f"train.activation_checkpointing: {type(backbone).__name__} has no blocks to run again; "
                "it is for ViTs; use train.micro_batch"
            )
        if any(isinstance(part, _BatchNorm) for block in blocks for part in block.modules()):
            raise ConfigError(
                f"train.activation_checkpointing: the blocks of {type(backbone).__name__} hold BatchNorm, whose "
                "running statistics would take every batch twice; set model.norm: group, or use train.micro_batch"
            )
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    if config.compile:
        backbone.compile(dynamic=False)


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """The equal parts of a transformer: what modules called `blocks` hold."""
    holders = [module for name, module in backbone.named_modules() if name.split(".")[-1] == "blocks"]
    return [block for holder in holders if isinstance(holder, nn.ModuleList | nn.Sequential) for block in holder]
