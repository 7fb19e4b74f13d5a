"""Every 3D network by name, at its smallest setting, keeps the whole protocol; large ones are counted on paper."""

from __future__ import annotations

import re
from math import ceil
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
from smallest_networks import make, rand, scans, smallest
from torch import nn

from lejepa_med.backbones import NAMES, Backbone, build
from lejepa_med.backbones.depth import layer_numbers
from lejepa_med.backbones.primus3d import Primus3d
from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.backbones.vit3d import SIZES, ViT3d
from lejepa_med.config import ModelConfig
from lejepa_med.errors import ConfigError
from lejepa_med.spec import InferenceSpec, Spec
from lejepa_med.weights import load_backbone, save_backbone
from lejepa_med.weights.programs import write_program

QUICK = ("resnet10", "resnet50", "resnext50", "seresnet50", "seresnext50", "densenet121", "efficientnet_b0")
QUICK += ("convnext_tiny", "segresnet", "unet", "resenc_l", "swinunetr", "vit_tiny", "primus_s")
TOO_LARGE = ("seresnet152_3d", *(f"efficientnet_b{number}_3d" for number in (5, 6, 7)))
TOO_LARGE += tuple(f"vit_{size}_3d" for size in ("large", "huge", "giant", "gigantic"))
TOO_LARGE += ("primus_l_3d",)
"""Of these only what the meta device can tell: parameters, layers, norms, sizes."""
EVERY = [
    pytest.param(name, marks=() if name.removesuffix("_3d") in QUICK else pytest.mark.long)
    for name in NAMES
    if name not in TOO_LARGE
]


def two_sizes(name: str) -> tuple[tuple[int, int, int], ...]:
    """Two views that this network takes; of those that need no multiples, one is odd."""
    if name.startswith("resenc"):
        return (33, 40, 48), (48, 33, 64)
    return ((32, 32, 32), (64, 32, 32) if name.startswith(("swin", "vit", "primus")) else (45, 32, 64))


def strides(backbone: Backbone) -> tuple[int, ...]:
    if isinstance(backbone, ViT3d | Primus3d):
        return backbone.patch_size
    assert isinstance(backbone, StagedBackbone)
    return (backbone.stride,) * 3


def gradients(backbone: Backbone, images: torch.Tensor, bf16: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The embedding, and the gradient of a random direction of it for every parameter."""
    backbone.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        embedding = backbone(images)
    (embedding.float() * (rand(*embedding.shape, seed=5) - 0.5)).sum().backward()
    found = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    missing = [name for name, gradient in found.items() if gradient is None]
    assert missing == []
    return embedding.detach().float(), {name: g.clone() for name, g in found.items() if g is not None}


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).norm() / right.norm())


@pytest.mark.parametrize("name", EVERY)
def test_protocol(name: str, tmp_path: Path) -> None:
    config = smallest(name, in_channels=2)
    backbone = make(config)
    for size in two_sizes(name):
        images = scans(2, 2, *size)
        with torch.no_grad():
            embedding, (tokens, grid), layers = backbone(images), backbone.tokens(images), backbone.intermediate(images)
        expected = tuple(ceil(side / stride) for side, stride in zip(size, strides(backbone), strict=True))
        floored = tuple(side // stride for side, stride in zip(size, strides(backbone), strict=True))
        assert grid in (expected, floored)
        assert tokens.shape == (2, grid[0] * grid[1] * grid[2], backbone.token_dim)
        assert embedding.shape == (2, backbone.dim)
        assert not torch.allclose(embedding[0], embedding[1])
        assert [layer.ndim for layer in layers] == [2, 2]
        with torch.no_grad():
            maps = backbone.feature_maps(images)
        torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), tokens)
        sides = [found.shape[2] for found in maps]
        assert sides == sorted(sides, reverse=True), "the deepest last"
        pooled = torch.cat([embedding, tokens.mean(1)], -1) if name.startswith("vit") else tokens.mean(1)
        torch.testing.assert_close(layers[-1], pooled)
        if not name.startswith("vit"):
            torch.testing.assert_close(embedding, pooled)
    save_backbone(tmp_path / "b.safetensors", backbone, config, Spec(inference=InferenceSpec()))
    loaded = load_backbone(tmp_path / "b.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(images), embedding)


@pytest.mark.long
@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.parametrize("name", [f"{name}_3d" for name in QUICK])
def test_export_as_a_program(name: str, form: Literal["torch", "onnx"], tmp_path: Path) -> None:
    """One member of each family; the export itself compares the program with the network."""
    backbone = make(smallest(name))
    size = two_sizes(name)[0]
    backbone.spec = Spec(inference=InferenceSpec(window=size))
    assert write_program(backbone, tmp_path, form).stat().st_size > 10_000


@pytest.mark.parametrize("name", EVERY)
def test_gradients_reach_every_parameter_and_bf16_is_close(name: str) -> None:
    """Close: as if every voxel had been rounded to bf16 (0.45 % RMS here), to which deep norms are sensitive by nature.

    What single convolutions add of their own is in test_tiny_maps.py.
    """
    backbone = make(smallest(name))
    images = scans(3, 1, *two_sizes(name)[0])
    right, wanted = gradients(backbone, images, bf16=False)
    dead = [name for name, gradient in wanted.items() if not gradient.any()]
    assert dead == []
    rounded = images * (1 + (rand(*images.shape, seed=3) - 0.5) / 64)
    found, moved = gradients(backbone, images, bf16=True), gradients(backbone, rounded, bf16=False)
    errors, sensitivities = ((relative(e, right), relative(flat(g), flat(wanted))) for e, g in (found, moved))
    for error, sensitivity in zip(errors, sensitivities, strict=True):
        assert error < 0.05 + 2 * sensitivity


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_counted_from_the_input(name: str) -> None:
    with torch.device("meta") if not name.startswith("swin") else torch.device("cpu"):
        backbone = build(smallest(name))
    numbers = layer_numbers(backbone)
    assert set(numbers) == {name for name, _ in backbone.named_parameters()}
    assert sorted(set(numbers.values())) == list(range(max(numbers.values()) + 1))
    first, last = next(iter(numbers)), list(numbers)[-1]
    assert numbers[first] == 0
    assert numbers[last] == max(numbers.values()) >= 4


NORMS = [name for name in NAMES if not name.startswith(("convnext", "swin", "vit", "primus"))]


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
@pytest.mark.parametrize("name", NORMS)
def test_every_norm_is_the_one_asked_for(name: str, norm: str) -> None:
    """And the names of the weights stay, so that only the statistics of BatchNorm come and go."""
    with torch.device("meta"):
        own, found = build(smallest(name)), build(smallest(name, norm=norm))
    kind = {"batch": nn.BatchNorm3d, "group": nn.GroupNorm, "instance": nn.InstanceNorm3d}[norm]
    norms = [m for m in found.modules() if isinstance(m, nn.BatchNorm3d | nn.GroupNorm | nn.InstanceNorm3d)]
    assert len(norms) >= 10
    assert all(type(module) is kind for module in norms)
    shapes = [{key: tuple(value.shape) for key, value in net.named_parameters()} for net in (own, found)]
    assert shapes[0] == shapes[1]
    assert any("running" in key for key in found.state_dict()) == (norm == "batch")


@pytest.mark.parametrize("name", ["seresnext50_3d", "densenet121_3d", "efficientnet_b0_3d", "segresnet_3d", "unet_3d"])
def test_group_mixes_no_samples(name: str) -> None:
    backbone = make(smallest(name, norm="group")).train()
    images = rand(3, 1, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[1:2], backbone(images[1:2]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "size", "sentence"),
    [
        ("swinunetr_3d", {}, (48, 48, 48), r"SwinUnetr3d: a view of 48 x 48 x 48 voxels; .*multiples of 32"),
        ("densenet121_3d", {}, (31, 32, 32), "at least 32 voxels"),
        ("segresnet_3d", {"norm": "instance"}, (16, 16, 16), "at least 17 voxels"),
        ("resenc_l_3d", {}, (32, 64, 64), "at least 33 voxels"),
        ("vit_tiny_3d", {}, (12, 16, 16), "multiples of 8 x 16 x 16"),
    ],
)
def test_views_that_do_not_fit_are_refused(
    name: str, settings: dict[str, Any], size: tuple[int, int, int], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make(smallest(name, **settings))(rand(1, 1, *size))


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_view_that_is_allowed_works(name: str) -> None:
    with torch.device("meta"):
        backbone = None if name.startswith(("swin", "vit", "primus")) else build(smallest(name)).eval()
        if isinstance(backbone, StagedBackbone):
            side = backbone.smallest
            assert backbone(torch.zeros(2, 1, side, side, side)).shape == (2, backbone.dim)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("seresnet50_3d", {"width": 0.5}, r"seresnet50_3d has no width: .* model.stem_stride, model.stem_pool"),
        ("vit_tiny_3d", {"norm": "group"}, "vit_tiny_3d has no norm: leave it out; .* model.patch_size"),
        ("convnext_tiny_3d", {"norm": "group", "registers": 4}, "has no norm, registers: leave them out"),
        ("timm/resnet18", {"width": 0.5}, "its settings: model.positions"),
        ("swinunetr_3d", {"width": 0.3}, "multiples of 0.25"),
        ("densenet121_3d", {"width": 0.3, "norm": "group"}, "no multiple of 8 groups"),
    ],
)
def test_settings_without_a_use_are_refused(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build(ModelConfig(name=name, **settings))


PUBLISHED = {f"resnet{depth}_3d": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}
PUBLISHED |= {f"resnext{depth}_3d": f"resnext{depth}_32x4d" for depth in (50, 101)}
PUBLISHED |= {f"seresnet{depth}_3d": f"legacy_seresnet{depth}" for depth in (50, 101, 152)}
PUBLISHED |= {f"seresnext{depth}_3d": f"legacy_seresnext{depth}_32x4d" for depth in (50, 101)}
PUBLISHED |= {f"densenet{depth}_3d": f"densenet{depth}" for depth in (121, 169, 201)}
PUBLISHED |= {f"efficientnet_b{number}_3d": f"efficientnet_b{number}" for number in range(8)}
PUBLISHED |= {f"convnext_{size}_3d": f"convnext_{size}" for size in ("tiny", "small")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_network_with_longer_kernels(name: str) -> None:
    """The 2D network's count, where a kernel of side k has k times as many weights."""
    with torch.device("meta"):
        network = timm.create_model(PUBLISHED[name], num_classes=0)
        found = {key: value.numel() for key, value in build(ModelConfig(name=name, in_channels=3)).named_parameters()}
    expected = sum(p.numel() * (p.shape[-1] if p.ndim == 4 else 1) for p in network.parameters())
    biases = [count for key, count in found.items() if re.search(r"layer\d\.0\.downsample\.0\.bias", key)]
    assert len(biases) == (4 if name in ("resnet50_3d", "resnet101_3d", "resnet152_3d") else 3) * (
        re.match(r"resnet\d", name) is not None
    )  # MONAI's ResNets have a bias in the projection of a shortcut
    assert sum(found.values()) - sum(biases) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [16, (8, 16, 12)])
def test_vit_parameters_are_those_of_the_formula(size: str, patch: int | tuple[int, int, int]) -> None:
    config = ModelConfig(name=f"vit_{size}_3d", patch_size=patch, registers=4, in_channels=2)
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in build(config).parameters())
    patches = (patch, patch, patch) if isinstance(patch, int) else patch
    assert counted == SIZES[size].num_parameters(2, patches, registers=4)


@pytest.mark.parametrize(
    ("size", "name"),
    [("base", "vit_base_patch16_224"), ("huge", "vit_huge_patch14_224"), ("giant", "vit_giant_patch14_224"),
     ("gigantic", "vit_gigantic_patch14_224")],
)  # fmt: skip
def test_vit_blocks_are_those_of_the_published_networks(size: str, name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build(ModelConfig(name=f"vit_{size}_3d")), timm.create_model(name, num_classes=0)
    assert isinstance(ours, ViT3d)
    shapes = [{k: v.shape for k, v in blocks.state_dict().items()} for blocks in (ours.blocks, theirs.blocks)]
    assert shapes[0] == shapes[1]


def test_registers_are_off_and_in_no_output() -> None:
    without, with_them = make(ModelConfig(name="vit_tiny_3d")), make(ModelConfig(name="vit_tiny_3d", registers=3))
    assert isinstance(without, ViT3d) and isinstance(with_them, ViT3d)
    assert not any("register" in key for key in without.state_dict())
    images = rand(1, 1, 32, 32, 48)
    assert with_them.tokens(images)[0].shape == without.tokens(images)[0].shape == (1, 12, 192)
    with torch.no_grad():
        before = with_them(images)
        with_them.register_tokens += 1
        assert not torch.allclose(with_them(images), before)
