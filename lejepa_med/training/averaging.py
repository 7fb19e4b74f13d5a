"""An exponential average of the backbone's weights: what the run leaves behind when `train.ema_decay` is set.

average <- d average + (1 - d) weights after every step, with d = min(decay, (1 + step) / (10 + step)), so that the
first, random weights are forgotten soon. Buffers (BatchNorm's running statistics) are copied as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lejepa_med.errors import WeightsError


class WeightAverage:
    """The average of all floating-point parameters of a module in float32, and its present buffers."""

    def __init__(self, backbone: nn.Module, decay: float) -> None:
        assert 0 < decay < 1
        self.decay = decay
        self._backbone = backbone
        self._average = {name: value.detach().float().clone() for name, value in backbone.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights as they are after step number `step`."""
        weights = [value.detach().float() for value in self._backbone.parameters()]
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)

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
