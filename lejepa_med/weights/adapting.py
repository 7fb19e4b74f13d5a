"""What of another network's weights may change so that they fit: only what is named, and each change is told.

in_channels  first convolution: each new channel gets the sum over the old ones / the number of new ones, so
             that an image with equal channels (a grey picture) gives what it gave
patch_size   patch embedding: pseudo-inverse resize (FlexiViT, Beyer et al. 2023, section 3.4), bicubic on each axis:
             the kernel whose products with resized patches are nearest to those of the old kernel with the old ones
positions    learnt positions of a 2D ViT: interpolated by the network's rule (see `backbones.positions2d`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.positions2d import resized_positions
from lejepa_med.backbones.timm2d import Timm2d
from lejepa_med.config.pretraining import Adaptation
from lejepa_med.errors import WeightsError

ADAPTATIONS: tuple[str, ...] = get_args(Adaptation)


def adapted(
    state: Mapping[str, Tensor], backbone: Backbone, adapt: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors, changed where `adapt` allows it and the network needs it, and one sentence per change.

    What does not fit stays as it is: the strict load tells it.

    Raises:
        WeightsError: `adapt` names something unknown.
    """
    unknown = sorted(set(adapt) - set(ADAPTATIONS))
    if unknown:
        raise WeightsError(f"adapt: {', '.join(unknown)} is not known; known: {', '.join(ADAPTATIONS)}")
    own, changed, changes = backbone.state_dict(), dict(state), list[str]()
    for key, value in state.items():
        if key not in own or own[key].shape == value.shape:
            continue
        target = tuple(own[key].shape)
        if "in_channels" in adapt and _is_input(value, target, backbone.in_channels):
            changes.append(f"{key}: {value.shape[1]} input channels to {target[1]}, each the sum / {target[1]}")
            value = changed[key] = spread_channels(value, target[1])
        if "patch_size" in adapt and _is_patch_embedding(backbone, key, value, target):
            changes.append(f"{key}: patch {_by(value.shape[2:])} to {_by(target[2:])}, pseudo-inverse resize")
            value = changed[key] = resized_kernel(value, target[2:])
        if "positions" in adapt and isinstance(backbone, Timm2d) and key.endswith("pos_embed"):
            old = _square(backbone, value, target)
            if old is not None:
                new = tuple(backbone.net.patch_embed.grid_size)
                changes.append(f"{key}: positions of {_by(old)} patches to {_by(new)}, rule {backbone.positions}")
                changed[key] = _with_new_grid(backbone, value, old)
    return changed, changes


def spread_channels(
    weight: Float[Tensor, "out old *kernel"], in_channels: int
) -> Float[Tensor, "out {in_channels} *kernel"]:
    """A first convolution for another number of channels; equal channels give what they gave."""
    return (weight.sum(1, keepdim=True) / in_channels).repeat_interleave(in_channels, dim=1)


def resized_kernel(weight: Float[Tensor, "out in *old"], new: tuple[int, ...]) -> Float[Tensor, "out in *new"]:
    """Pseudo-inverse resize w' = (B^T)^+ w of a patch embedding, B the bicubic resize (antialias) of a patch.

    Of a resize that enlarges each axis the products are kept exactly: <w', B x> = <w, x>. B is separable, so that its
    pseudo-inverse is applied axis by axis, in 2D and 3D.
    """
    resized = weight.double()
    for axis, side in enumerate(new, start=2):
        if resized.shape[axis] != side:
            inverse = torch.linalg.pinv(_resize_matrix(int(resized.shape[axis]), side).T)
            resized = torch.tensordot(resized, inverse, dims=([axis], [1])).movedim(-1, axis)
    return resized.to(weight.dtype)


def _resize_matrix(old: int, new: int) -> Float[Tensor, "{new} {old}"]:
    """`new` values from `old` ones. Unit vectors as one picture: torch 2.15 resizes pictures one pixel wide wrongly."""
    unit = torch.eye(old)[None, None]
    return nn.functional.interpolate(unit, size=(new, old), mode="bicubic", antialias=True)[0, 0].double()


def _is_input(value: Tensor, target: tuple[int, ...], in_channels: int) -> bool:
    return value.ndim == len(target) >= 4 and value.shape[0] == target[0] and target[1] == in_channels != value.shape[1]


def _is_patch_embedding(backbone: Backbone, key: str, value: Tensor, target: tuple[int, ...]) -> bool:
    """Convolutions whose kernels tile the image; the two differ in nothing but the side of these."""
    module = dict(backbone.named_modules()).get(key.rpartition(".")[0])
    if not isinstance(module, nn.Conv2d | nn.Conv3d) or tuple(module.stride) != tuple(module.kernel_size):
        return False
    same = value.ndim == len(target) and tuple(value.shape[:2]) == target[:2]
    return same and tuple(value.shape[2:]) != target[2:]


def _square(backbone: Timm2d, value: Tensor, target: tuple[int, ...]) -> tuple[int, int] | None:
    """The grid of the file's positions, if they are those of a square one and of the network's width."""
    if value.ndim != 3 or value.shape[0] != 1 or value.shape[2] != target[2]:
        return None
    side = math.isqrt(max(0, value.shape[1] - _held(backbone)))
    return (side, side) if side and side * side + _held(backbone) == value.shape[1] else None


def _held(backbone: Timm2d) -> int:
    """Class and register tokens that have a position too."""
    net = backbone.net
    return 0 if getattr(net, "no_embed_class", False) else int(net.num_prefix_tokens)


def _with_new_grid(backbone: Timm2d, value: Float[Tensor, "1 _ dim"], old: tuple[int, int]) -> Tensor:
    held = _held(backbone)
    new = tuple(backbone.net.patch_embed.grid_size)
    return torch.cat([value[:, :held], resized_positions(value[:, held:], old, new, backbone.positions)], dim=1)


def _by(sides: Sequence[int]) -> str:
    return "x".join(str(side) for side in sides)
