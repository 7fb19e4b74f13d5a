"""Layers are counted from the input, without gaps, for every parameter."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.depth import layer_numbers
from lejepa_med.config import ModelConfig


@pytest.mark.parametrize(
    ("name", "layers", "of"),
    [
        ("resnet18_3d", 5, {"net.conv1.weight": 0, "net.layer1.0.conv1.weight": 1, "net.layer4.1.bn2.bias": 4}),
        ("vit_tiny_3d", 13, {"class_token": 0, "embed.weight": 0, "blocks.0.norm1.bias": 1, "norm.weight": 12}),
        ("timm/vit_tiny_patch16_224", 13, {"net.cls_token": 0, "net.pos_embed": 0, "net.blocks.0.norm1.bias": 1,
                                           "net.blocks.11.mlp.fc2.bias": 12}),
        ("timm/resnet18", None, {"net.conv1.weight": 0}),
    ],
)  # fmt: skip
def test_layers_of_known_networks(name: str, layers: int | None, of: dict[str, int]) -> None:
    width = 0.125 if name == "resnet18_3d" else 1.0
    backbone = build(ModelConfig(name=name, width=width))
    numbers = layer_numbers(backbone)
    assert set(numbers) == {name for name, _ in backbone.named_parameters()}
    assert sorted(set(numbers.values())) == list(range(layers or max(numbers.values()) + 1))
    assert max(numbers.values()) >= 4
    for parameter, layer in of.items():
        assert numbers[parameter] == layer, parameter


class Own(Backbone):
    dim = token_dim = 1
    spatial_dims, in_channels = 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return images

    def tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        return images, ()

    def intermediate(self, images: Tensor, last: int = 2) -> list[Tensor]:
        return [images]


def test_a_network_of_your_own_is_one_layer() -> None:
    assert layer_numbers(Own()) == {"a.weight": 0, "a.bias": 0, "b.weight": 0, "b.bias": 0}
