"""Sizes of views that a network cannot take are told from shapes alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.view_sizes import require_sizes
from lejepa_med.config import ModelConfig
from lejepa_med.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "taken", "refused", "sentence"),
    [
        ("vit_tiny_3d", (32, 48, 16), (32, 40, 16), "multiples of 16"),
        ("swinunetr_3d", (32, 64, 32), (48, 48, 48), "multiples of 32"),
        ("timm/swin_tiny_patch4_window7_224", (224, 224), (96, 96), "takes no view of 96 x 96 .* views.global_size"),
        ("timm/vit_tiny_patch16_224", (32, 48), (40, 48), "takes no view of 40 x 48 .* divisible by patch size"),
    ],
)
def test_of_networks_by_name(name: str, taken: tuple[int, ...], refused: tuple[int, ...], sentence: str) -> None:
    backbone = build(ModelConfig(name=name)).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    require_sizes(backbone, [taken], name)
    with pytest.raises(ConfigError, match=sentence):
        require_sizes(backbone, [taken, refused], name)
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_network_without_shape_rules_is_left_to_real_images() -> None:
    class Counting(Backbone):
        dim = token_dim = in_channels = 1
        spatial_dims = 2

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.scale * float(images.mean())  # a number that shapes do not have

        def tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
            raise NotImplementedError

        def intermediate(self, images: torch.Tensor, last: int = 2) -> list[torch.Tensor]:
            raise NotImplementedError

    require_sizes(Counting(), [(8, 8)], "own")
