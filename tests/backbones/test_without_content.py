"""`plan` builds networks whose tensors hold nothing: every one that has a name can be built so."""

from __future__ import annotations

import pytest
import torch

from lejepa_med.backbones import NAMES, build
from lejepa_med.config import ModelConfig


@pytest.mark.parametrize("name", NAMES)
def test_is_built_without_content(name: str) -> None:
    with torch.device("meta"):
        backbone = build(ModelConfig(name=name))
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}
