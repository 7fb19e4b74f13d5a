"""A training state copied to host memory, so that it can be written while training changes the original.

Tensors in shards are gathered on the way, one by one: no device holds more than one of them whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_PLAIN = (bool, int, float, str, bytes, type(None))


class HostCopy:
    """Copies dictionaries, lists and tuples of tensors and plain values; its memory is used again by the next copy.

    Tensors of a GPU go to pinned memory within the stream that computes on them: the host goes on at once, and what
    that stream changes later is not in the copy. `wait` returns when all of it is there. Where some are in shards the
    other ranks call `parallel.whole` on the same state meanwhile.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._events: list[torch.cuda.Event] = []

    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """Whole after `wait`, and valid until the next call."""
        buffers, devices = dict[tuple[Any, ...], Tensor](), set[torch.device]()

        def copied(value: Any, place: tuple[Any, ...]) -> Any:
            match value:
                case Tensor():
                    tensor = value.full_tensor() if isinstance(value, DTensor) else value
                    buffers[place] = self._buffer(tensor, place)
                    buffers[place].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
                    if tensor.is_cuda:
                        devices.add(tensor.device)
                    return buffers[place]
                case dict():
                    return {key: copied(item, (*place, key)) for key, item in value.items()}
                case list() | tuple():
                    return type(value)(copied(item, (*place, number)) for number, item in enumerate(value))
            if not isinstance(value, _PLAIN):
                name = ".".join(str(part) for part in place)
                raise TypeError(f"{name}: a {type(value).__name__} cannot be read back from a checkpoint")
            return value

        whole: dict[str, Any] = copied(state, ())
        self._buffers = buffers
        self._events = [torch.cuda.current_stream(device).record_event() for device in devices]
        return whole

    def wait(self) -> None:
        """Returns when the last copy is whole; any thread may wait."""
        for event in self._events:
            event.synchronize()

    def _buffer(self, value: Tensor, place: tuple[Any, ...]) -> Tensor:
        old = self._buffers.get(place)
        if old is not None and (old.shape, old.dtype, old.stride()) == (value.shape, value.dtype, value.stride()):
            return old
        return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
