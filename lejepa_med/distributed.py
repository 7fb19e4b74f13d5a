"""The collectives of the product: a mean over all samples of all ranks that autograd can go through, and counts."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(total: Tensor, count: int) -> Tensor:
    """`sum of totals / sum of counts` over ranks, the same on every rank; counts may differ between ranks.

    The gradient is summed over ranks, so that after the averaging of DistributedDataParallel it is exactly that of one
    process on the whole batch. One process: `total / count`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return total / count
    summed: Tensor = _SumOverRanks.apply(total)
    return summed / count_over_ranks(count, total.device)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous().clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def num_ranks() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def count_over_ranks(count: int, device: torch.device) -> Tensor:
    """The sum of a count over all ranks, float32, left on `device`: nothing waits for the host."""
    counts = torch.tensor(float(count), device=device, dtype=torch.float32)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts


def total_over_ranks(count: int, device: torch.device) -> int:
    """The sum of a count over all ranks; `device` is where the ranks talk (NCCL: their GPU)."""
    if not (dist.is_available() and dist.is_initialized()):
        return count
    total = torch.tensor(count, device=device)
    dist.all_reduce(total)
    return int(total)


def largest_over_ranks(count: int, device: torch.device) -> int:
    """The largest of the ranks' counts."""
    if not (dist.is_available() and dist.is_initialized()):
        return count
    largest = torch.tensor(count, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)
