"""What a model costs per volume, by arithmetic: one pass of tensors that have a shape and no content.

FLOPs are those of convolutions, matrix products and attention, forward and backward. Activations are what autograd
keeps between the two. Nothing is allocated, so a model of billions of parameters is planned on a laptop.
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
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from lejepa_med.backbones import build
from lejepa_med.config import PretrainConfig
from lejepa_med.errors import ConfigError
from lejepa_med.training.micro_batch import embed_views
from lejepa_med.training.model import Pretrainer


@dataclass(frozen=True)
class ModelCost:
    """Numbers of parameters and buffers; FLOPs and bytes per volume with all its views.

    `largest_bytes` is the largest single activation of a volume, `cast_bytes` the weights in bf16, whatever the batch.
    """

    parameters: int
    backbone_parameters: int
    buffer_bytes: int
    forward_flops: float
    backward_flops: float
    backbone_bytes: float
    projector_bytes: float
    largest_bytes: float
    cast_bytes: float

    def step_flops(self, recomputed: bool = False) -> float:
        """Of a volume in a training step; `recomputed`: micro-batches run the forward pass twice."""
        return self.forward_flops * (2 if recomputed else 1) + self.backward_flops


@dataclass(frozen=True)
class _Trace:
    """Bytes of each tensor that autograd keeps, in the order in which it met them."""

    backbone: list[int]
    projector: list[int]
    forward_flops: int
    backward_flops: int


def model_cost(config: PretrainConfig, bf16: bool, on_gpu: bool) -> ModelCost:
    """The cost of a config's model. Raises ConfigError where its forward pass depends on the values of an image."""
    with torch.device("meta"):
        model = Pretrainer(build(config.model), config.projector).train()
    try:
        with FakeTensorMode():
            _without_content(model)
            few, many = (_trace(model, config, samples, bf16, on_gpu, samples == 2) for samples in (2, 4))
    except (DataDependentOutputException, DynamicOutputShapeException):
        raise ConfigError(
            f"model {config.model.name}: what it computes depends on the values of an image; no plan without running it"
        ) from None
    of_backbone, of_projector = (_per_sample(getattr(few, part), getattr(many, part)) for part in _PARTS)
    kept = sum(few.backbone) + sum(few.projector)
    return ModelCost(
        parameters=_count(model),
        backbone_parameters=_count(model.backbone),
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
        forward_flops=few.forward_flops / 2,
        backward_flops=few.backward_flops / 2,
        backbone_bytes=sum(of_backbone),
        projector_bytes=sum(of_projector),
        largest_bytes=max(of_backbone),
        cast_bytes=max(0.0, kept - 2 * (sum(of_backbone) + sum(of_projector))),
    )


_PARTS = ("backbone", "projector")


def _per_sample(few: list[int], many: list[int]) -> list[float]:
    assert len(few) == len(many)
    return [(four - two) / 2 for two, four in zip(few, many, strict=True)]


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


def _trace(model: Pretrainer, config: PretrainConfig, samples: int, bf16: bool, on_gpu: bool, back: bool) -> _Trace:
    sizes = [(config.views.num_global, config.views.global_size), (config.views.num_local, config.views.local_size)]
    channels = model.backbone.in_channels
    views = [torch.empty(count, samples, channels, *size) for count, size in sizes if count]
    not_kept = [*model.parameters(), *model.buffers(), *views]
    casts: AbstractContextManager[object] = _CudaCasts() if on_gpu and bf16 else nullcontext()
    kept = _Kept(not_kept)
    with FlopCounterMode(display=False) as counter:
        with casts, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with kept:
                features = embed_views(model.backbone, views, None)
            in_backbone = kept.bytes
            with kept:
                projections = model.projector(features.flatten(0, 1))
        forward = counter.get_total_flops()
        if back:
            projections.float().sum().backward()
    model.zero_grad(set_to_none=True)
    return _Trace(in_backbone, kept.bytes[len(in_backbone) :], forward, counter.get_total_flops() - forward)


class _Kept:
    """The tensors that autograd keeps within `with` blocks, each memory once, without those that are there anyway."""

    def __init__(self, present: list[Tensor]) -> None:
        self._present = {_memory(tensor) for tensor in present}
        self._found: dict[int, Tensor] = {}

    @property
    def bytes(self) -> list[int]:
        return [tensor.untyped_storage().nbytes() for tensor in self._found.values()]

    def __enter__(self) -> None:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._hooks.__enter__()

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()

    def _keep(self, tensor: Tensor) -> Tensor:
        if _memory(tensor) not in self._present:
            self._found[_memory(tensor)] = tensor
        return tensor


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


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
