"""One model on many ranks: replicas (DDP) or shards (FSDP2); and one form of its state, whatever it is trained on.

Backbone and projector are sharded each by itself, so that diagnostics may call them one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from lejepa_med.config.pretraining import TrainConfig
from lejepa_med.distributed import num_ranks, rank
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.speed import blocks_of

State = dict[str, Any]


def distribute(model: Pretrainer, config: TrainConfig) -> nn.Module:
    """What is called in the loop instead of the model, on its device: replicated, sharded in place, or itself."""
    if num_ranks() == 1:
        return model
    if config.parallel == "fsdp":
        mesh = init_device_mesh(next(model.parameters()).device.type, (num_ranks(),))
        for part in (*blocks_of(model.backbone), model.backbone, model.projector):
            fully_shard(part, mesh=mesh)
        return model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # Running statistics are those of all ranks already; one rank's must not be sent around.
        return DistributedDataParallel(model, broadcast_buffers=False)


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(value: Any) -> Any:
    """A state as one process has it, for the first rank; others get None for what is in shards. All ranks call it.

    Tensors in shards are gathered one by one and kept in the first rank's host memory: no device ever holds more than
    one of them whole.
    """

    def gathered(tensor: Tensor) -> Tensor | None:
        if not isinstance(tensor, DTensor):
            return tensor
        full = tensor.full_tensor()
        return full.cpu() if rank() == 0 else None

    return _mapped(value, gathered)


def load_whole(model: nn.Module, optimizer: torch.optim.Optimizer, model_state: State, optimizer_state: State) -> None:
    """Gives every rank its part of a state that `whole` made, on any number of ranks."""
    now = model.state_dict()
    model.load_state_dict({key: _as(value, now.get(key)) for key, value in model_state.items()})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {key: _as(value, parameters[number]) for key, value in state.items()}
        for number, state in optimizer_state["state"].items()
    }
    optimizer.load_state_dict({**optimizer_state, "state": moments})


def clip_gradients(model: nn.Module, largest: float | None) -> Tensor:
    """The norm of the gradient before it was scaled to be at most `largest`; None: it is left as it is."""
    return norm_of(torch.nn.utils.clip_grad_norm_(model.parameters(), largest or float("inf")))


def local(value: Tensor) -> Tensor:
    """What of a tensor is on this rank."""
    return value.to_local() if isinstance(value, DTensor) else value


def norm_of(value: Tensor) -> Tensor:
    """A norm over shards as a plain tensor."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _as(value: Any, like: Any) -> Any:
    """Sharded as `like`, where that is sharded and has the same shape."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _mapped(value: Any, change: Callable[[Tensor], Tensor | None]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return value


def random_state(device: torch.device) -> State:
    """Of torch's generators on this rank."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: State, device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
