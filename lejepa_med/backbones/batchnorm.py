"""BatchNorm (Ioffe & Szegedy 2015) whose moments are those of the samples of all ranks, on any device.

torch's SyncBatchNorm refuses the CPU. Here the moments go through `mean_over_ranks`, so that any split of a batch over
ranks, even or not, is one process on the whole batch. In evaluation mode, and with one process, torch's own code runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d as TimmBatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lejepa_med.distributed import count_over_ranks, mean_over_ranks, num_ranks
from lejepa_med.errors import UserError


def convert_batchnorm(module: nn.Module) -> None:
    """Every BatchNorm inside `module` takes its moments over all ranks from now on.

    Parameters, buffers, their names in the state dict and the mode stay; `isinstance(_, nn.BatchNorm3d)` and the like
    still hold. In training mode every rank must then call the module equally often. torch's SyncBatchNorm is left.

    Raises:
        UserError: a BatchNorm of another library, which has a forward pass of its own.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    norms = [norm for norm in norms if not isinstance(norm, _OverRanks | nn.SyncBatchNorm)]
    foreign = sorted({type(norm).__name__ for norm in norms if type(norm) not in _OVER_RANKS})
    if foreign:
        raise UserError(
            f"{', '.join(foreign)}: moments over all ranks are not possible here; use nn.BatchNorm, or one process"
        )
    for norm in norms:
        norm.__class__ = _OVER_RANKS[type(norm)]  # in place: no parent, hook or optimizer has to be told


def moments_over_ranks(
    x: Float[Tensor, "sample channel *spatial"],
) -> tuple[Float[Tensor, " channel"], Float[Tensor, " channel"], Float[Tensor, ""]]:
    """Mean, variance (divided by the count) and the count of values per channel, over all ranks, without gradient.

    In float32 (float64 stays), by two passes: E[x^2] - E[x]^2 has no digits left where the mean is large.
    """
    x = x.detach()
    count, others = x.numel() // x.shape[1], _all_but_channels(x)
    wide = _at_least_float32(x)
    mean = mean_over_ranks(x.sum(others, dtype=wide), count)
    variance = mean_over_ranks((x.to(wide) - _per_channel(mean, x)).square_().sum(others), count)
    return mean, variance, count_over_ranks(count, x.device)


class _OverRanks(_BatchNorm):
    """What the classes below share. `forward` differs from torch's only in training mode on several ranks."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        count = input.numel() // input.shape[1]
        if not self.training or num_ranks() == 1:
            if self.training and count == 1:
                raise UserError(_ONE_VALUE)
            output: Tensor = super().forward(input)
            return output
        mean, variance, total = moments_over_ranks(input)
        if count <= 1 and total == 1:  # in this order: asking for the total makes the host wait
            raise UserError(_ONE_VALUE)
        self._track(mean, variance * total / (total - 1))
        scale = torch.rsqrt(variance + self.eps)
        return self._finish(_Normalise.apply(input, self.weight, self.bias, mean, scale))

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Running statistics, as torch does it; `variance` is the unbiased one. Momentum None: cumulative average."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(variance.to(self.running_var), momentum)

    def _finish(self, normalised: Tensor) -> Tensor:
        return normalised


@contextmanager
def one_value_refused() -> Iterator[None]:
    """A BatchNorm of torch or timm that gets one value per channel says so in the sentence of the classes here.

    Raises:
        UserError: instead of torch's ValueError.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(_ONE_VALUE) from None


_ONE_VALUE = (
    "BatchNorm got one value per channel in the whole batch, which has no variance; use larger views, more samples per "
    "pass (train.batch_size, train.micro_batch) or model.norm=group"
)


class BatchNorm1d(_OverRanks, nn.BatchNorm1d):
    """nn.BatchNorm1d over all ranks."""


class BatchNorm2d(_OverRanks, nn.BatchNorm2d):
    """nn.BatchNorm2d over all ranks."""


class BatchNorm3d(_OverRanks, nn.BatchNorm3d):
    """nn.BatchNorm3d over all ranks."""


class BatchNormAct2d(_OverRanks, TimmBatchNormAct2d):  # type: ignore[misc]
    """timm's BatchNorm with an activation, over all ranks."""

    def _finish(self, normalised: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(normalised))  # type: ignore[operator]
        return activated


_OVER_RANKS: dict[type[nn.Module], type[_OverRanks]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    TimmBatchNormAct2d: BatchNormAct2d,
}


class _Normalise(torch.autograd.Function):
    """y = (x - mean) * scale * weight + bias, where mean and scale are the moments of x over all ranks.

    With g = dL/dy, h = (x - mean) * scale and means over all ranks: dL/dx = scale * weight * (g - mean g - h mean gh).
    Only x is kept, in its own dtype; inside, everything is float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale)
        normalised = (x.to(mean.dtype) - _per_channel(mean, x)).mul_(_per_channel(scale, x))
        if weight is not None:
            normalised.mul_(_per_channel(weight.to(mean.dtype), x))
        if bias is not None:
            normalised.add_(_per_channel(bias.to(mean.dtype), x))
        return normalised.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        gradient, others = gradients[0].to(mean.dtype), _all_but_channels(x)
        normalised = (x.to(mean.dtype) - _per_channel(mean, x)).mul_(_per_channel(scale, x))
        sums = torch.stack([gradient.sum(others), (gradient * normalised).sum(others)])
        means = mean_over_ranks(sums, x.numel() // x.shape[1])
        to_x = gradient - _per_channel(means[0], x) - normalised.mul_(_per_channel(means[1], x))
        to_x.mul_(_per_channel(scale if weight is None else scale * weight.to(mean.dtype), x))
        to_weight, to_bias = (
            total if needed else None for total, needed in zip(sums.flip(0), ctx.needs_input_grad[1:3], strict=True)
        )
        return to_x.to(x.dtype), to_weight, to_bias, None, None


def _all_but_channels(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (x.ndim - 2))


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
