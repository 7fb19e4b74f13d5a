"""Sums of exp(i t_k x_n) and their gradient in plain PyTorch: no compiler, any device, blocks of rows at a time.

With z_n = exp(i step x_n) and knots t_k = k step, the terms are the powers z_n^k: one sine and cosine per projection,
then a complex product per knot. The other kernels compute the same and take the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 2**17
"""Projections of one block: its two complex arrays (2 MB in float32) stay in a processor's cache."""


def sums(x: Tensor, num_knots: int, step: float) -> Tensor:
    """Real and imaginary part of sum_n exp(i t_k x_n): `[batch, sample, slice]` -> `[2, knot, batch, slice]`."""
    complex_type = torch.complex128 if x.dtype == torch.float64 else torch.complex64
    total = torch.zeros(num_knots, x.shape[0], x.shape[2], dtype=complex_type, device=x.device)
    total[0] = x.shape[1]
    for rows in _blocks(x):
        z = unit_circle(rows, step)
        power = z.clone()
        for knot in range(1, num_knots):
            total[knot] += power.sum(1)
            power *= z
    return torch.stack((total.real, total.imag))


def gradient(x: Tensor, upstream: Tensor, step: float) -> Tensor:
    """Gradient at x `[batch, sample, slice]`, given that at the sums `[2, knot, batch, slice]`.

    sum_k t_k (b_k cos(t_k x) - a_k sin(t_k x)) = Re sum_k c_k z^k with c_k = t_k (b_k + i a_k): Horner's rule.
    """
    coefficients = _coefficients(upstream, step).unsqueeze(-2)
    result = torch.empty_like(x)
    for rows, target in zip(_blocks(x), _blocks(result), strict=True):
        z = unit_circle(rows, step)
        value = torch.zeros_like(z)
        for knot in range(len(coefficients) - 1, 0, -1):
            value.add_(coefficients[knot]).mul_(z)
        target.copy_(value.real)
    return result


def _coefficients(upstream: Tensor, step: float) -> Tensor:
    """c_k = t_k (b_k + i a_k), with a and b the gradients at the real and the imaginary sums."""
    knots = step * torch.arange(upstream.shape[1], device=upstream.device, dtype=upstream.dtype)
    real, imaginary = (knots.view(-1, 1, 1) * upstream).unbind(0)
    return torch.complex(imaginary, real)


def unit_circle(x: Tensor, step: float) -> Tensor:
    """exp(i step x), the angle reduced to one turn without loss: its error is multiplied by up to num_knots later.

    step * x itself is off by 1e-5 at |x| = 1e3 in float32. The whole part of x times `coarse` is exact up to 2^12.
    """
    turn, coarse, fine = split_turn(step)
    whole = x.round()
    turns = whole * coarse
    turns = (turns - turns.round()) + (whole * fine + (x - whole) * turn)
    angle = turns.mul_(2 * math.pi)
    return torch.complex(angle.cos(), angle.sin())


def split_turn(step: float) -> tuple[float, float, float]:
    """Turns per unit of x, step / (2 pi), and that number as a coarse part of 12 bits plus the fine rest."""
    turn = step / (2 * math.pi)
    mantissa, exponent = math.frexp(turn)
    coarse = math.ldexp(round(math.ldexp(mantissa, 12)), exponent - 12)
    return turn, coarse, turn - coarse


def _blocks(x: Tensor) -> Iterator[Tensor]:
    """Rows of all batch entries, `_BLOCK` projections at a time."""
    rows = max(1, _BLOCK // (x.shape[0] * x.shape[2]))
    for start in range(0, x.shape[1], rows):
        yield x[:, start : start + rows]
