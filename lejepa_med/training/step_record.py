"""Losses of a step on their way to metrics.jsonl, read one step late so that no step waits for its own numbers.

What is not finite never reaches the weights: the device itself leaves out that update. The host learns of it when it
reads, and then stops the run or counts a skipped step, as `train.on_nan` says. A finite loss that explodes always stops
it: the weights that gave it have been made already, and leaving out a step does not heal them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lejepa_med.config.pretraining import TrainConfig
from lejepa_med.errors import UserError
from lejepa_med.objective import LossParts
from lejepa_med.training.loss_history import PLATEAU, LossHistory

PARTS = ("total", "prediction", "sigreg")


class RunningStatistics:
    """Those of all BatchNorms as they were before a step, put back on the device where the step is left out."""

    def __init__(self, model: nn.Module, wanted: bool) -> None:
        norms = [module for module in model.modules() if isinstance(module, _NormBase)] if wanted else []
        self._buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._before: list[Tensor] = []

    def keep(self) -> None:
        self._before = [buffer.clone() for buffer in self._buffers]

    def put_back(self, unless: Tensor) -> None:
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(unless, buffer, before))


def update_if_finite(optimizer: torch.optim.Optimizer, loss: LossParts, grad_norm: Tensor) -> Tensor:
    """One step of the optimizer, which fused AdamW leaves out on the device unless loss and gradient are finite.

    Weights, moments and their count then stay as they are. Returns whether they are finite, on the device.
    """
    finite = torch.isfinite(loss.total.detach()) & torch.isfinite(grad_norm)
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    return finite


@dataclass(frozen=True)
class _Waiting:
    step: int
    lr: float
    numbers: Tensor
    copied: torch.cuda.Event | None


class StepRecord:
    """The lines of `metrics.jsonl` in order, each written when the next step is under way, or by `settle`.

    `write` takes the numbers of a line; `fail` is called with a step, what is wrong with it and the last step that had
    an ordinary loss; it raises. `history` is that of the steps before.
    """

    def __init__(
        self,
        config: TrainConfig,
        history: LossHistory,
        write: Callable[..., None],
        fail: Callable[[int, str, int], None],
    ) -> None:
        self.config, self.history, self._write, self._fail = config, history, write, fail
        self._waiting: _Waiting | None = None

    def __enter__(self) -> StepRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, UserError | KeyboardInterrupt):
            self.settle()

    def add(self, step: int, loss: LossParts, grad_norm: Tensor, lr: float) -> None:
        """Takes the numbers of this step and writes those of the step before."""
        numbers = torch.stack([*(getattr(loss, part).detach() for part in PARTS), grad_norm.detach()])
        copied = None
        if numbers.is_cuda:
            stream = torch.cuda.current_stream(numbers.device)  # not that of the current device, which may be another
            on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            numbers = on_host.copy_(numbers, non_blocking=True)
            copied = stream.record_event()
        self.settle()
        self._waiting = _Waiting(step, lr, numbers, copied)

    def settle(self) -> bool:
        """Writes what waits; whether that step was left out. The host waits: before a checkpoint, or at a stop."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return False
        if waiting.copied is not None:
            waiting.copied.synchronize()
        *losses, grad_norm = waiting.numbers.tolist()
        left_out = not (math.isfinite(losses[0]) and math.isfinite(grad_norm))
        wrong = self.history.take(waiting.step, None if left_out else losses[0])
        if left_out:
            wrong = self._too_many(waiting.step)
        if wrong is not None:
            self._fail(waiting.step, wrong, self.history.good_until)
        line: dict[str, Any] = dict(zip(PARTS, losses, strict=True)) | {"lr": waiting.lr, "grad_norm": grad_norm}
        line |= {"skipped": True} if left_out else {}
        line |= {"ended": PLATEAU} if self.history.has_ended else {}
        self._write("metrics", step=waiting.step, **line)
        return left_out

    def ends_with(self, step: int) -> bool:
        """Whether this step is the last one because the loss no longer falls; waits for its loss where that may be."""
        block = self.config.stop_on_plateau
        if block is None or (step + 1) % block:
            return False
        self.settle()
        return self.history.has_ended

    def _too_many(self, step: int) -> str | None:
        wrong = f"loss or gradient not finite at step {step}"
        if self.config.on_nan == "stop":
            return wrong
        if self.history.skipped > self.config.max_skips:
            return f"{wrong}, one more than train.max_skips {self.config.max_skips}"
        return None
