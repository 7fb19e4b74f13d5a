"""How learnt positions of a 2D ViT are resized to another grid. Implementations of the same weights differ:

    timm         to the new grid, bicubic with antialias: timm; also Meta's and transformers' DINOv2 with registers
    dinov2       by the factor (new side + .1) / old side, bicubic without antialias: Meta's DINOv2 without registers
    huggingface  to the new grid, bicubic without antialias: transformers' DINOv2 without registers

At the grid the weights were trained on all three leave the positions alone. Larger grids differ by little, smaller ones
by a lot: without antialias bicubic interpolation leaves positions out. Features are best computed by the rule the
weights were used with in training.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

PositionRule = Literal["timm", "dinov2", "huggingface"]
_OFFSET = 0.1


def resized_positions(
    positions: Float[Tensor, "1 old dim"], old: tuple[int, int], new: tuple[int, int], rule: PositionRule
) -> Float[Tensor, "1 new dim"]:
    """Positions of a grid of `old` patches (row-major, no class token) on one of `new` patches, in float32.

    The rule `dinov2` takes square old grids only, as its source does.
    """
    if old == new:
        return positions
    grid = positions.float().reshape(1, *old, -1).movedim(-1, 1)
    if rule == "dinov2":
        factor = ((new[0] + _OFFSET) / math.sqrt(old[0] * old[1]), (new[1] + _OFFSET) / math.sqrt(old[0] * old[1]))
        resized = nn.functional.interpolate(grid, scale_factor=factor, mode="bicubic")
    else:
        resized = nn.functional.interpolate(grid, size=new, mode="bicubic", antialias=rule == "timm")
    assert tuple(resized.shape[2:]) == new
    return resized.movedim(1, -1).flatten(1, 2).to(positions.dtype)


class RuledVisionTransformer(VisionTransformer):  # type: ignore[misc]
    """timm's ViT with positions by another rule than timm's; made of a built one by `follow_rule`."""

    position_rule: PositionRule = "timm"

    def _pos_embed(self, x: Tensor) -> Tensor:
        """`[batch, row, column, dim]` to `[batch, token, dim]` with class and register tokens in front."""
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        grid = (int(x.shape[1]), int(x.shape[2]))
        held = 0 if self.no_embed_class else self.num_prefix_tokens
        positions = resized_positions(
            self.pos_embed[:, held:], tuple(self.patch_embed.grid_size), grid, self.position_rule
        )
        x = torch.cat([*prefix, x.flatten(1, 2) + positions], dim=1)
        if held:
            x = torch.cat([x[:, :held] + self.pos_embed[:, :held], x[:, held:]], dim=1)
        dropped: Tensor = self.pos_drop(x)
        return dropped


def follow_rule(net: nn.Module, rule: PositionRule) -> bool:
    """From now on `net` resizes its positions by `rule`; False if it is no plain timm ViT with learnt positions."""
    if type(net) is not VisionTransformer or net.pos_embed is None or not net.dynamic_img_size:
        return False
    net.__class__ = RuledVisionTransformer  # in place: names and values of its parameters stay
    net.position_rule = rule  # type: ignore[assignment]
    return True
