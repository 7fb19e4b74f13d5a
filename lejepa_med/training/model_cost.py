"""What a model costs by arithmetic: training steps of tensors that have a shape and no content.

FLOPs are those of convolutions, matrix products and attention, forward and backward. Memory is the most that is alive
at one time of a step, as the loop makes it, with what is run again (train.micro_batch, train.activation_checkpointing).
Nothing is allocated, so a model of billions of parameters is planned on a laptop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode

from lejepa_med.backbones import build
from lejepa_med.config import PretrainConfig
from lejepa_med.errors import ConfigError
from lejepa_med.training.live_memory import LiveMemory
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.speed import blocks_of, tune

_FEW, _MANY = 2, 8
"""Volumes to a pass that are traced; memory is straight in them."""


@dataclass(frozen=True)
class StepMemory:
    """The most bytes of a step above weights, moments and views; gradients and bf16 weights are in `fixed`."""

    fixed: float
    per_volume: float


@dataclass(frozen=True)
class ModelCost:
    """Numbers of parameters and buffers; FLOPs per volume with all its views; bytes of a step.

    `whole`: a step in one pass; `parted`: one in micro-batches, where others wait as features (None: not traced).
    `block_parameters` are of the largest block of a transformer, `other_parameters` of all that is in no block.
    """

    parameters: int
    backbone_parameters: int
    block_parameters: int
    other_parameters: int
    buffer_bytes: int
    forward_flops: float
    backward_flops: float
    whole: StepMemory
    parted: StepMemory | None

    def step_flops(self, recomputed: bool = False) -> float:
        """Of a volume in a training step; `recomputed`: micro-batches run the forward pass twice."""
        return self.forward_flops * (2 if recomputed else 1) + self.backward_flops


@dataclass(frozen=True)
class _Trace:
    """One step: its peak in bytes, and FLOPs."""

    peak: int
    forward_flops: int
    backward_flops: int


def model_cost(config: PretrainConfig, bf16: bool, on_gpu: bool, with_parts: bool = True) -> ModelCost:
    """The cost of a config's model; without `with_parts`, a third of the work, nothing is known of micro-batches.

    Raises:
        ConfigError: its forward pass depends on the values of an image, or it has no blocks to run again.
    """
    with torch.device("meta"):
        model = Pretrainer(build(config.model), config.projector).train()
    blocks = [_count(block) for block in blocks_of(model.backbone)]
    # Layout and compilation change no size that is known here.
    tune(model.backbone, config.train.model_copy(update={"channels_last": False, "compile": False}))

    try:
        with FakeTensorMode():
            _without_content(model)
            whole = [_trace(model, config, samples, None, bf16, on_gpu) for samples in (_FEW, _MANY)]
            sizes = (_FEW, _MANY) if with_parts else ()
            parted = [_trace(model, config, 2 * samples, samples, bf16, on_gpu) for samples in sizes]
    except (DataDependentOutputException, DynamicOutputShapeException):
        raise ConfigError(
            f"model {config.model.name}: what it computes depends on the values of an image; no plan without running it"
        ) from None
    return ModelCost(
        parameters=_count(model),
        backbone_parameters=_count(model.backbone),
        block_parameters=max(blocks, default=0),
        other_parameters=_count(model) - sum(blocks),
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
        forward_flops=whole[0].forward_flops / _FEW,
        backward_flops=whole[0].backward_flops / _FEW,
        whole=_line(whole),
        parted=_line(parted) if with_parts else None,
    )


def _line(traces: list[_Trace]) -> StepMemory:
    few, many = (trace.peak for trace in traces)
    slope = (many - few) / (_MANY - _FEW)
    return StepMemory(few - _FEW * slope, slope)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _without_content(model: nn.Module) -> None:
    """Weights of the `meta` device become tensors of the CPU that hold nothing, so that autocast applies to them."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _views(model: Pretrainer, config: PretrainConfig, samples: int) -> list[Tensor]:
    sizes = [(config.views.num_global, config.views.global_size), (config.views.num_local, config.views.local_size)]
    return [torch.empty(count, samples, model.backbone.in_channels, *size) for count, size in sizes if count]


def _trace(
    model: Pretrainer, config: PretrainConfig, samples: int, micro_batch: int | None, bf16: bool, on_gpu: bool
) -> _Trace:
    """As in the loop, gradients of the step before are forgotten between forward and backward."""
    views = _views(model, config, samples)
    gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    model.micro_batch = micro_batch
    with LiveMemory([*model.parameters(), *model.buffers(), *views], taken=gradients) as live, _casts(bf16, on_gpu):
        projections = _project(model, views, bf16)
        forward = int(live.flops)
        live.forget(gradients)
        loss = projections.float().sum()
        # Not loss.backward(): modes of functions are off inside, and blocks would run again in other types.
        _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)
    model.zero_grad(set_to_none=True)
    model.micro_batch = None
    return _Trace(live.peak, forward, live.flops - forward)


def _project(model: Pretrainer, views: list[Tensor], bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        projections: Tensor = model(views)[1]
    return projections


def _casts(bf16: bool, on_gpu: bool) -> AbstractContextManager[object]:
    """Around the backward pass, too, where blocks may run again."""
    return _CudaCasts() if on_gpu and bf16 else nullcontext()


class _CudaCasts(TorchFunctionMode):
    """Autocast of a CPU does as that of CUDA: pooling stays in bf16, LayerNorm runs in float32."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(function, "__name__", "")
        if "max_pool" in name:
            with torch.autocast("cpu", enabled=False):
                return function(*args, **(kwargs or {}))
        if name == "layer_norm":
            args = tuple(part.float() if isinstance(part, Tensor) else part for part in args)
        return function(*args, **(kwargs or {}))


def voxels_of_views(config: PretrainConfig) -> int:
    """Of all views of one volume."""
    views = config.views
    return views.num_global * math.prod(views.global_size) + views.num_local * math.prod(views.local_size)
