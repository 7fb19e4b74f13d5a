"""Ranks: joining and leaving them, and the collectives of the product.

What autograd goes through is one thing: a mean over all samples of all ranks. The rest is agreement between hosts
(counts, flags, errors): it goes over gloo, so that no GPU is waited for.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lejepa_med.errors import UserError

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for another before it gives up: reading volumes into memory takes some ranks longer."""
_HOST = torch.device("cpu")
_alone = threading.local()


def num_ranks() -> int:
    """How many processes train together; 1 without a process group, and inside `alone`."""
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    """The number of this process; also before and after `join_ranks` under torchrun."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if started_ranks() > 1 else 0


def started_ranks() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _several() -> bool:
    return not getattr(_alone, "here", False) and dist.is_available() and dist.is_initialized()


@contextmanager
def join_ranks(device: torch.device) -> Iterator[None]:
    """The process group of what torchrun started, left at the end; one that is there stays, one rank has none."""
    if started_ranks() == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # after an error: that not all work was waited for
            dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, in this thread, this process counts as the only one: losses and moments are those of what it holds."""
    before, _alone.here = getattr(_alone, "here", False), True
    try:
        yield
    finally:
        _alone.here = before


@contextmanager
def together() -> Iterator[None]:
    """A UserError of one rank ends all of them here: rank 0 tells it, the others leave in silence (exit code 2).

    Raises:
        UserError: on rank 0, the first of any rank.
    """
    try:
        yield
    except UserError as error:
        agree(error)
    else:
        agree(None)


def agree(error: UserError | None) -> None:
    """All ranks meet; if one brings an error, all end with it (see `together`)."""
    if not _several():
        if error is not None:
            raise error
        return
    errors = [found for found in gather_objects(error) if found is not None]
    if errors:
        end_together(error or errors[0])


def end_together(error: UserError) -> None:
    """For an error that all ranks have: one sentence, not one per rank."""
    if num_ranks() > 1 and rank() != 0:
        raise SystemExit(2)
    raise error


@contextmanager
def said_once_per_machine() -> Iterator[None]:
    """Before ranks have joined: a UserError that all ranks of a machine meet alike, since they read the same files."""
    try:
        yield
    except UserError:
        if started_ranks() > 1 and int(os.environ.get("LOCAL_RANK", "0")) > 0:
            raise SystemExit(2) from None
        raise


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks, in their order; what can be pickled."""
    if not _several():
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def gather_samples(x: Tensor, dim: int) -> Tensor:
    """What all ranks hold, joined along the axis of samples, without gradient; shares may differ in size."""
    if not _several():
        return x
    parts = [part.to(x.device) for part in gather_objects(x.detach().cpu())]
    return torch.cat(parts, dim)


def mean_over_ranks(total: Tensor, count: int) -> Tensor:
    """`sum of totals / sum of counts` over ranks, the same on every rank; counts may differ between ranks.

    The gradient is summed over ranks, so that after the averaging of DistributedDataParallel it is exactly that of one
    process on the whole batch. One process: `total / count`.
    """
    if not _several():
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


def count_over_ranks(count: int, device: torch.device) -> Tensor:
    """The sum of a count over all ranks, float32, left on `device`: nothing waits for the host."""
    counts = torch.tensor(float(count), device=device, dtype=torch.float32)
    if _several():
        dist.all_reduce(counts)
    return counts


def total_over_ranks(count: int, device: torch.device) -> int:
    """The sum of a count over all ranks; `device` is where the samples are."""
    return _agreed_count(count, device, dist.ReduceOp.SUM)


def largest_over_ranks(count: int, device: torch.device) -> int:
    """The largest of the ranks' counts."""
    return _agreed_count(count, device, dist.ReduceOp.MAX)


def _agreed_count(count: int, device: torch.device, operation: Any) -> int:
    if not _several():
        return count
    agreed = torch.tensor(count, device=_meeting_place(device))
    dist.all_reduce(agreed, op=operation)
    return int(agreed)


def _meeting_place(device: torch.device) -> torch.device:
    """The host where its network is there: asking a GPU for a number would make the host wait for all it has to do."""
    return _HOST if "gloo" in str(dist.get_backend_config()) else device


class Flags:
    """Flags of which all ranks learn whether any has raised them, read later than given: nobody waits in between."""

    def __init__(self) -> None:
        self._flags = torch.zeros(0)
        self._work: Any = None

    def give(self, *flags: bool) -> None:
        self._flags = torch.tensor([float(flag) for flag in flags])
        if _several():
            self._work = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, async_op=True)

    def read(self) -> list[bool]:
        """What any rank has given."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return [flag > 0 for flag in self._flags.tolist()]
