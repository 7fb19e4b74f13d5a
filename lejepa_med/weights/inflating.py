"""A 2D ResNet, ConvNeXt or ViT of timm as the start of a 3D one (I3D, Carreira & Zisserman 2017, section 2.4.1).

Each kernel is repeated along the last axis (S: slices of the axial plane lie in the other two) and divided by its
length, so that a volume that is the same in every slice gives, in each slice, the maps of the 2D network on it. For a
CNN that holds in slices further from both ends than the receptive field, since there the 3D network meets its zero
padding; for a ViT it holds for the patch embedding: attention then sees more tokens than in 2D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.convnext3d import ConvNeXt3d
from lejepa_med.backbones.resnet3d import ResNet3d
from lejepa_med.backbones.vit3d import ViT3d
from lejepa_med.errors import WeightsError
from lejepa_med.weights.names import timm_names


@dataclass(frozen=True)
class Twin:
    """The 2D family of a 3D network: `prefix` of the 3D names, `renamed` from 2D to 3D by their beginning.

    `stem`: the 2D name of the first convolution, and that of the BatchNorm behind it.
    """

    prefix: str
    stem: tuple[str, str | None]
    renamed: tuple[tuple[str, str], ...] = ()

    def name(self, key: str) -> str:
        """The 3D name of a 2D tensor."""
        for theirs, ours in self.renamed:
            if key.startswith(theirs):
                return self.prefix + ours + key[len(theirs) :]
        return self.prefix + key


_VIT = (("patch_embed.proj.", "embed."), ("cls_token", "class_token"), ("reg_token", "register_tokens"))


def twin_of(backbone: Backbone) -> Twin:
    """Raises WeightsError for a network without a 2D twin."""
    match backbone:
        case ResNet3d():
            return Twin("net.", ("conv1", "bn1"))
        case ConvNeXt3d():
            return Twin("net.", ("stem.0", None), (("head.norm.", "norm."),))
        case ViT3d():
            return Twin("", ("patch_embed.proj", None), _VIT)
    raise WeightsError(
        "adapt: inflate is for resnet{10,18,34,50,101,152}_3d, convnext_{tiny,small}_3d and vit_*_3d; no other 3D "
        "network has a 2D twin here"
    )


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """2D tensors by timm's names; the norm that ConvNeXts keep in their head is no classifier."""
    return timm_names(state, {key: value for key, value in state.items() if key.startswith("head.norm.")})


def inflated(state: Mapping[str, Tensor], backbone: Backbone) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a 2D network (timm's, ours or torchvision's names) by the names of our 3D one, and what was done.

    Kernels `[out, in, row, column]` become `[out, in, row, column, slice]`. The bias of MONAI's shortcut convolution,
    which 2D ResNets do not have, is zero. LayerScale of a ViT is multiplied into the weights that it scales; learnt
    positions are left out but for the class token's, since our 3D ViTs have fixed ones. Another depth or width is told
    by the strict load.

    Raises:
        WeightsError: the network has no 2D twin, or the tensors are not those of a 2D network.
    """
    twin, own = twin_of(backbone), backbone.state_dict()
    plain = plain_names({key.removeprefix("net."): value for key, value in state.items()})
    if not any(value.ndim == 4 for value in plain.values()) or any(value.ndim > 4 for value in plain.values()):
        raise WeightsError("adapt: inflate needs the weights of a 2D network; these are not")
    changes: list[str] = []
    if isinstance(backbone, ViT3d):
        plain, changes = _of_vit(plain)
    deeper, count = dict[str, Tensor](), 0
    for key, value in plain.items():
        name = twin.name(key)
        if value.ndim == 4 and name in own and own[name].ndim == 5:
            depth = int(own[name].shape[-1])
            value = (value / depth)[..., None].repeat(1, 1, 1, 1, depth)
            count += 1
        deeper[name] = value
    zeros = [key for key in own if key.endswith("downsample.0.bias") and key not in deeper]
    if isinstance(backbone, ResNet3d):
        deeper |= {key: torch.zeros_like(own[key]) for key in zeros}
    changes.insert(0, f"{count} kernels inflated along the last axis, divided by their new length")
    if zeros and isinstance(backbone, ResNet3d):
        changes.append(f"{len(zeros)} biases of shortcut convolutions set to zero")
    return deeper, changes


def _of_vit(plain: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A 2D ViT without learnt positions and LayerScale, of the same outputs but for the positions of patches."""
    state, changes = dict(plain), list[str]()
    positions = state.pop("pos_embed", None)
    if positions is not None:
        changes.append("learnt positions of patches left out: those of the 3D network are fixed")
        side = int(positions.shape[1] ** 0.5 + 0.5)
        if side * side != positions.shape[1] and "cls_token" in state:
            state["cls_token"] = state["cls_token"] + positions[:, :1]
    scales = [key for key in state if key.endswith((".ls1.gamma", ".ls2.gamma"))]
    for key in scales:
        layer = key.replace(".ls1.gamma", ".attn.proj").replace(".ls2.gamma", ".mlp.fc2")
        gamma = state.pop(key)
        if f"{layer}.weight" in state:  # where not, the strict load tells it
            state[f"{layer}.weight"] = gamma[:, None] * state[f"{layer}.weight"]
            state[f"{layer}.bias"] = gamma * state[f"{layer}.bias"]
    if scales:
        changes.append(f"{len(scales)} LayerScales multiplied into the weights that they scale")
    return state, changes
