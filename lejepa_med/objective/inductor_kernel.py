"""The same sums and gradient through `torch.compile`, on any device: the yardstick for the kernels written by hand.

Compiling takes from ten seconds to a minute, once per process and number of knots; other shapes reuse it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lejepa_med.objective.eager_kernel import split_turn


def sums(x: Tensor, num_knots: int, step: float) -> Tensor:
    """As `eager_kernel.sums`."""
    result: Tensor = _compiled(_sums)(x.detach(), num_knots, *split_turn(step))
    return result


def gradient(x: Tensor, upstream: Tensor, step: float) -> Tensor:
    """As `eager_kernel.gradient`."""
    result: Tensor = _compiled(_gradient)(x.detach(), upstream.detach(), step, *split_turn(step))
    return result


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=True, fullgraph=True)


def _unit_circle(x: Tensor, turn: float, coarse: float, fine: float) -> tuple[Tensor, Tensor]:
    """cos and sin of step * x, the angle reduced to one turn without loss as in the eager kernel."""
    whole = x.round()
    turns = whole * coarse
    angle = ((turns - turns.round()) + (whole * fine + (x - whole) * turn)) * (2 * math.pi)
    return angle.cos(), angle.sin()


def _sums(x: Tensor, num_knots: int, turn: float, coarse: float, fine: float) -> Tensor:
    base_cosine, base_sine = _unit_circle(x, turn, coarse, fine)
    cosine, sine = torch.ones_like(x), torch.zeros_like(x)
    real, imaginary = [], []
    for _ in range(num_knots):
        real.append(cosine.sum(1))
        imaginary.append(sine.sum(1))
        cosine, sine = cosine * base_cosine - sine * base_sine, cosine * base_sine + sine * base_cosine
    return torch.stack((torch.stack(real), torch.stack(imaginary)))


def _gradient(x: Tensor, upstream: Tensor, step: float, turn: float, coarse: float, fine: float) -> Tensor:
    base_cosine, base_sine = _unit_circle(x, turn, coarse, fine)
    cosine, sine = torch.zeros_like(x), torch.zeros_like(x)
    for knot in range(upstream.shape[1] - 1, 0, -1):  # Horner's rule, as in the eager kernel
        frequency = knot * step
        cosine = cosine + frequency * upstream[1, knot].unsqueeze(1)
        sine = sine + frequency * upstream[0, knot].unsqueeze(1)
        cosine, sine = cosine * base_cosine - sine * base_sine, cosine * base_sine + sine * base_cosine
    return cosine
