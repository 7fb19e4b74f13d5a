"""The same sums and gradient as Triton kernels for CUDA: one pass over the projections each, no atomics.

A program holds one tile of samples x slices in registers. Its sums go to an array of partial sums that is added up
afterwards in a fixed order, so that results repeat to the bit. The array is 34/64 of the projections at 17 knots.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from lejepa_med.objective.eager_kernel import split_turn

_TILE: dict[str, Any] = {"ROWS": 64, "COLUMNS": 32}
"""Samples x slices of one program: 16 per thread, each with 4 numbers in registers."""


def sums(x: Tensor, num_knots: int, step: float) -> Tensor:
    """As `eager_kernel.sums`, for contiguous x on a CUDA device."""
    batch, samples, slices = x.shape
    grid = _grid(x)
    partial = x.new_empty(grid[1], 2, num_knots, batch, slices)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _sums[grid](x, partial, batch, samples, slices, num_knots, *split_turn(step), **_TILE)
    return partial.sum(0)


def gradient(x: Tensor, upstream: Tensor, step: float) -> Tensor:
    """As `eager_kernel.gradient`, for contiguous x on a CUDA device."""
    batch, samples, slices = x.shape
    result = torch.empty_like(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _gradient[_grid(x)](
            x, upstream, result, batch, samples, slices, upstream.shape[1], step, *split_turn(step), **_TILE
        )
    return result


def _grid(x: Tensor) -> tuple[int, int, int]:
    return triton.cdiv(x.shape[2], _TILE["COLUMNS"]), triton.cdiv(x.shape[1], _TILE["ROWS"]), x.shape[0]


@triton.jit  # type: ignore[untyped-decorator]
def _unit_circle(x, turn: tl.constexpr, coarse: tl.constexpr, fine: tl.constexpr):  # type: ignore[no-untyped-def]
    """cos and sin of step * x, the angle reduced to one turn without loss as in the eager kernel."""
    whole = tl.floor(x + 0.5)
    turns = whole * coarse
    turns = (turns - tl.floor(turns + 0.5)) + (whole * fine + (x - whole) * turn)
    turns -= tl.floor(turns + 0.5)
    half = turns * 3.141592653589793
    if x.dtype == tl.float64:
        sine, cosine = tl.sin(half), tl.cos(half)
    else:  # Taylor's series within pi / 2: CUDA's own functions carry a reduction of large angles along
        q = -half * half
        sine = 1 / 5040 + q * (1 / 362880 + q * (1 / 39916800 + q * (1 / 6227020800)))
        sine = half * (1 + q * (1 / 6 + q * (1 / 120 + q * sine)))
        cosine = 1 / 720 + q * (1 / 40320 + q * (1 / 3628800 + q * (1 / 479001600)))
        cosine = 1 + q * (1 / 2 + q * (1 / 24 + q * cosine))
    return 1 - 2 * sine * sine, 2 * sine * cosine


@triton.jit  # type: ignore[untyped-decorator]
def _tile(samples, slices, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offsets of this program's tile in x, which of them exist, and its slices with those that exist."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    exist = (rows < samples)[:, None] & (columns < slices)[None, :]
    row = tl.program_id(2).to(tl.int64) * samples + rows
    return row[:, None] * slices + columns[None, :], exist, columns, columns < slices


@triton.jit  # type: ignore[untyped-decorator]
def _sums(  # type: ignore[no-untyped-def]
    x,
    partial,  # [row tile, 2, knot, batch, slice]
    batch,
    samples,
    slices,
    num_knots,
    turn: tl.constexpr,
    coarse: tl.constexpr,
    fine: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    offsets, exist, columns, column_exists = _tile(samples, slices, ROWS, COLUMNS)
    projections = tl.load(x + offsets, mask=exist, other=0)
    base_cosine, base_sine = _unit_circle(projections, turn, coarse, fine)
    cosine = tl.where(exist, 1, 0).to(projections.dtype)  # z^0; samples that do not exist stay 0 in every power
    sine = cosine * 0
    real = partial + (tl.program_id(1).to(tl.int64) * 2 * num_knots * batch + tl.program_id(2)) * slices + columns
    imaginary = real + tl.cast(num_knots, tl.int64) * batch * slices
    for _ in range(num_knots):
        tl.store(real, tl.sum(cosine, 0), mask=column_exists)
        tl.store(imaginary, tl.sum(sine, 0), mask=column_exists)
        turned = cosine * base_cosine - sine * base_sine
        sine = cosine * base_sine + sine * base_cosine
        cosine = turned
        real += batch * slices
        imaginary += batch * slices


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(  # type: ignore[no-untyped-def]
    x,
    upstream,  # [2, knot, batch, slice]
    result,
    batch,
    samples,
    slices,
    num_knots,
    step: tl.constexpr,
    turn: tl.constexpr,
    coarse: tl.constexpr,
    fine: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    offsets, exist, columns, column_exists = _tile(samples, slices, ROWS, COLUMNS)
    projections = tl.load(x + offsets, mask=exist, other=0)
    base_cosine, base_sine = _unit_circle(projections, turn, coarse, fine)
    cosine = projections * 0
    sine = projections * 0
    stride = tl.cast(batch, tl.int64) * slices
    real = upstream + (num_knots - 1) * stride + tl.program_id(2).to(tl.int64) * slices + columns
    imaginary = real + num_knots * stride
    for done in range(num_knots - 1):  # Horner's rule from the last knot to the first; c_k = t_k (b_k + i a_k), c_0 = 0
        frequency = (num_knots - 1 - done).to(projections.dtype) * step
        cosine += frequency * tl.load(imaginary, mask=column_exists, other=0)[None, :]
        sine += frequency * tl.load(real, mask=column_exists, other=0)[None, :]
        turned = cosine * base_cosine - sine * base_sine
        sine = cosine * base_sine + sine * base_cosine
        cosine = turned
        real -= stride
        imaginary -= stride
    tl.store(result + offsets, cosine, mask=exist)
