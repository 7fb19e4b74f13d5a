"""Which normalisation a convolutional network has: its own, or BatchNorm, GroupNorm or InstanceNorm everywhere."""

from __future__ import annotations

from typing import Literal

from torch import nn

from lejepa_med.errors import ConfigError

Norm = Literal["auto", "batch", "group", "instance"]
GROUPS = 8


def set_norm(net: nn.Module, norm: Norm) -> None:
    """Exchanges every BatchNorm3d and InstanceNorm3d of `net`; the names of weights and biases stay.

    `auto` leaves the network's own. GroupNorm (Wu & He 2018) has 8 groups.

    Raises:
        ConfigError: `group` where channels are no multiple of 8.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d) and norm != "auto":
            net.set_submodule(name, _like(module, norm))


def has_instance_norm(net: nn.Module) -> bool:
    """Whether a map of one voxel is impossible: it has no variance of its own."""
    return any(isinstance(module, nn.InstanceNorm3d) for module in net.modules())


def _like(module: nn.BatchNorm3d | nn.InstanceNorm3d, norm: Norm) -> nn.Module:
    channels = module.num_features
    match norm:
        case "group":
            if channels % GROUPS:
                raise ConfigError(
                    f"model.norm group: {channels} channels are no multiple of {GROUPS} groups; "
                    "take a multiple of 0.125 as model.width, or model.norm=batch"
                )
            return nn.GroupNorm(GROUPS, channels)
        case "instance":
            return nn.InstanceNorm3d(channels, affine=True)
    return module if isinstance(module, nn.BatchNorm3d) else nn.BatchNorm3d(channels)
