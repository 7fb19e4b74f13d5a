"""The most memory that tensors take at one time, and their FLOPs, by sizes alone: also of tensors that hold nothing.

Counted is what comes to be inside the `with` block, until it is forgotten; each storage once, however many views of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`peak`: bytes above `taken`, and above what is `present` anyway (weights, say), which is not counted.

    `flops`: those of convolutions, matrix products and attention. (torch's FlopCounterMode would keep tensors alive.)
    """

    def __init__(self, present: Iterable[Tensor], taken: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.live = taken
        self.flops = 0
        self._known: dict[int, object] = {_storage(tensor): None for tensor in present}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry:
            self.flops += int(flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=result))
        for part in tree_iter(result):
            if isinstance(part, Tensor) and _storage(part) not in self._known:
                self._count(part)
        return result

    def forget(self, size: int) -> None:
        """What was `taken` is given back."""
        self.live -= size

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _storage(tensor)
        size = storage.nbytes()

        def freed(_: object) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
