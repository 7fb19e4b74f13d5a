"""An average of the backbone's weights: what a run leaves behind with `train.ema_decay` or `swa_fraction`.

After every step: average <- average + share (weights - average), where the share depends on the step's number alone.
Exponential (Polyak & Juditsky 1992): 1 - min(decay, (1 + step) / (10 + step)), so that the first, random weights are
forgotten soon. Stochastic weight averaging (Izmailov et al. 2018): 1 up to a step, from then on 1/2, 1/3, ..., the
plain mean. Buffers (BatchNorm's running statistics) are copied as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lejepa_med.config.pretraining import TrainConfig
from lejepa_med.errors import WeightsError

Share = Callable[[int], float]
"""From the number of a step to what its weights count in the average from then on."""


def exponential(decay: float) -> Share:
    """The newest weights count `1 - decay`; more in the first steps."""
    assert 0 < decay < 1
    return lambda step: 1 - min(decay, (1 + step) / (10 + step))


def mean_from(first: int) -> Share:
    """The plain mean of the weights after step number `first` and after all later ones."""
    return lambda step: 1 / max(1, step - first + 1)


def average_of(config: TrainConfig) -> Share | None:
    """The average that a config asks for; None for none."""
    if config.ema_decay is not None:
        return exponential(config.ema_decay)
    return None if config.swa_fraction is None else mean_from(_first_averaged(config.swa_fraction, config.steps))


def describe_average(config: TrainConfig, steps: int) -> str | None:
    """What the weights are after so many steps, which may be fewer than planned; None: those of the last step."""
    if config.ema_decay is not None:
        return f"exponential average over steps, decay {config.ema_decay:g}"
    if config.swa_fraction is None:
        return None
    averaged = steps - _first_averaged(config.swa_fraction, config.steps)
    return f"mean over the last {averaged} steps" if averaged > 1 else None


def _first_averaged(fraction: float, steps: int) -> int:
    return steps - max(1, math.ceil(fraction * steps))


class WeightAverage:
    """The average of all floating-point parameters of a module in float32, and its present buffers."""

    def __init__(self, backbone: nn.Module, share: Share) -> None:
        self._share, self._backbone = share, backbone
        self._average = {name: value.detach().float().clone() for name, value in backbone.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights as they are after step number `step`."""
        weights = [value.detach().float() for value in self._backbone.parameters()]
        torch._foreach_lerp_(list(self._average.values()), weights, self._share(step))

    @torch.no_grad()
    def copy_to(self, backbone: nn.Module) -> None:
        """Gives a backbone the averaged weights, each in its own precision, and the buffers of the one averaged."""
        for name, parameter in backbone.named_parameters():
            parameter.copy_(self._average[name])
        buffers = dict(self._backbone.named_buffers())
        for name, buffer in backbone.named_buffers():
            if buffer is not buffers[name]:
                buffer.copy_(buffers[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The average by the name of its parameter. Buffers are in the state of the model."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """All weights, or none: raises WeightsError if these are not the average of such a network."""
        expected = {name: value.shape for name, value in self._average.items()}
        if {name: getattr(value, "shape", None) for name, value in state.items()} != expected:
            raise WeightsError("weight average: it is of another network; start a new run instead")
        for name, value in self._average.items():
            value.copy_(state[name])
