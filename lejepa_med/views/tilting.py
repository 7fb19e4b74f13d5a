"""How views are turned: by right angles (axes change places) and by small tilts (rotation and shear), drawn first.

Left and right: no turn here is a mirror image, so a patient's left hand never becomes a right one. `keep_left_right`
allows only turns about the left-right axis (axis 0), which also leave the left side where it is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lejepa_med.config import ViewsConfig
from lejepa_med.randomness import generator


@dataclass(frozen=True)
class Turn:
    """A rotation by right angles: axes in a new order, then some of them reversed."""

    order: tuple[int, ...]
    reversed_axes: tuple[int, ...]

    def apply(self, view: Tensor) -> Tensor:
        """The turned view; the last axes are the spatial ones."""
        first = view.ndim - len(self.order)
        turned = view.permute(*range(first), *(first + axis for axis in self.order))
        return turned.flip([first + axis for axis in self.reversed_axes])


@dataclass(frozen=True)
class Tilts:
    """Per view the number of its turn in `turns` (0 = none) and the matrix in millimetres that tilts its axes."""

    turn: Int[Tensor, "N V"]
    matrix: Float[Tensor, "N V A A"]
    tilted: Bool[Tensor, "N V"]

    def rows(self, chosen: slice) -> Tilts:
        """The same for some samples."""
        return Tilts(self.turn[chosen], self.matrix[chosen], self.tilted[chosen])


@cache
def turns(axes: int) -> tuple[Turn, ...]:
    """All rotations of a square (4) or a cube (24) onto itself; the first changes nothing."""
    found = []
    for order in itertools.permutations(range(axes)):
        odd = sum(order[i] > order[j] for i in range(axes) for j in range(i + 1, axes)) % 2
        for count in range(axes + 1):
            if count % 2 == odd:  # as many reversals as make the determinant 1
                found += [Turn(order, chosen) for chosen in itertools.combinations(range(axes), count)]
    return tuple(found)


def allowed_turns(config: ViewsConfig, size: tuple[int, ...]) -> list[int]:
    """Numbers of the turns that change something, fit a view of `size` voxels and respect `rot90_axes`."""
    keep = config.rot90_axes == "keep_left_right"
    return [
        number
        for number, turn in enumerate(turns(len(size)))
        if number
        and all(size[axis] == side for axis, side in zip(turn.order, size, strict=True))
        and not (keep and (turn.order[0] != 0 or 0 in turn.reversed_axes))
    ]


def draw_tilts(
    config: ViewsConfig, views: int, size: tuple[int, ...], generators: list[torch.Generator]
) -> Tilts | None:
    """Turns and tilts of all views of one size; None if the config has neither.

    They come from generators of their own, derived from the seeds of `generators`, which are left as they are.
    """
    if not config.rot90_probability and not config.tilt_probability:
        return None
    axes = len(size)
    keys = [generator("tilt", g.initial_seed()) for g in generators]
    uniform = torch.stack([torch.rand(views, 6 + axes * axes, generator=key, dtype=torch.float64) for key in keys])
    numbers = torch.tensor(allowed_turns(config, size) or [0])
    chosen = numbers[(uniform[..., 1] * len(numbers)).long()]
    turn = torch.where(uniform[..., 0] < config.rot90_probability, chosen, torch.zeros_like(chosen))
    tilted = uniform[..., 2] < config.tilt_probability
    angle = (2 * uniform[..., 3] - 1) * math.radians(config.tilt_degrees)
    shear = (2 * uniform[..., 6:] - 1) * config.tilt_shear
    identity = torch.eye(axes, dtype=torch.float64)
    shear = identity + shear.view(*shear.shape[:2], axes, axes) * (1 - identity)
    matrix = _rotation(angle, 2 * uniform[..., 4] - 1, 2 * math.pi * uniform[..., 5], axes) @ shear
    return Tilts(turn, torch.where(tilted[..., None, None], matrix, identity), tilted)


def _rotation(
    angle: Float[Tensor, "N V"], height: Float[Tensor, "N V"], around: Float[Tensor, "N V"], axes: int
) -> Float[Tensor, "N V A A"]:
    """By `angle`, in 3D about an axis that is uniform on the sphere when `height` and `around` are uniform."""
    sin, cos = angle.sin(), angle.cos()
    if axes == 2:
        return torch.stack([cos, -sin, sin, cos], -1).view(*angle.shape, 2, 2)
    ring = (1 - height**2).sqrt()
    x, y, z, zero = ring * around.cos(), ring * around.sin(), height, torch.zeros_like(height)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(*angle.shape, 3, 3)
    identity = torch.eye(3, dtype=angle.dtype)
    return identity + sin[..., None, None] * cross + (1 - cos)[..., None, None] * cross @ cross
