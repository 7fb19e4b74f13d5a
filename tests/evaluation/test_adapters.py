"""LoRA: the layers it is said to adapt, nothing changed at the start, nothing else trained; W + (alpha / rank) B A."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lejepa_med.backbones import Backbone, build
from lejepa_med.config.evaluation import LoraRecipe
from lejepa_med.config.pretraining import ModelConfig
from lejepa_med.evaluation.adapters import adapted_layers, add_adapters

NETWORKS = {
    "vit_tiny_3d": (ModelConfig(name="vit_tiny_3d", patch_size=8), (1, 16, 16, 16), 12 * 4),
    "timm/vit_tiny_patch16_224": (ModelConfig(name="timm/vit_tiny_patch16_224", in_channels=3), (3, 32, 32), 12 * 4),
    "resnet10_3d": (ModelConfig(name="resnet10_3d", width=0.125), (1, 32, 32, 32), None),
    "timm/tf_efficientnet_lite0": (ModelConfig(name="timm/tf_efficientnet_lite0", in_channels=3), (3, 64, 64), None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_starts_as_it_was_and_trains_the_adapters_alone(name: str) -> None:
    config, shape, count = NETWORKS[name]
    torch.manual_seed(0)
    backbone = build(config).eval()
    images = torch.rand(2, *shape)
    with torch.no_grad():
        before = backbone(images)
    names = adapted_layers(backbone)
    assert count is None or len(names) == count
    frozen = {key: value.clone() for key, value in backbone.state_dict().items()}
    trained = add_adapters(backbone, LoraRecipe())
    assert len(trained) == 2 * len(names)
    assert torch.allclose(backbone(images), before, atol=1e-5)
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):  # B is zero at first, so that A moves in the second step only
        backbone(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(backbone(images), before, atol=1e-5)
    after = {key.replace(".base_layer", ""): value for key, value in backbone.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in frozen.items())


def test_an_adapter_is_a_low_rank_sum() -> None:
    torch.manual_seed(0)
    backbone = build(ModelConfig(name="vit_tiny_3d", patch_size=8)).eval()
    plain = copy.deepcopy(backbone.blocks[0].attn.qkv)
    add_adapters(backbone, LoraRecipe(rank=4, alpha=12))
    layer = backbone.blocks[0].attn.qkv
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(up)
    assert down.shape == (4, 192) and up.shape == (576, 4)
    tokens = torch.randn(3, 192)
    expected = nn.functional.linear(tokens, plain.weight + 3 * up @ down, plain.bias)
    torch.testing.assert_close(layer(tokens), expected, rtol=1e-3, atol=1e-3)


def test_patch_embeddings_and_depthwise_convolutions_are_left_alone() -> None:
    vit: Backbone = build(ModelConfig(name="vit_tiny_3d", patch_size=8))
    assert not [name for name in adapted_layers(vit) if "embed" in name]
    network = build(ModelConfig(name="timm/tf_efficientnet_lite0", in_channels=3))
    layers = dict(network.named_modules())
    left = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert left and not set(left) & set(adapted_layers(network))
    assert "net.conv_stem" in adapted_layers(network)
