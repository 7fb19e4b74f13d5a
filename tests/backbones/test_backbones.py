"""Every network keeps the protocol: sizes, row-major tokens, layers, gradients, channels, and its weights on disk."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from lejepa_med.backbones import Backbone, build, build_projector
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.backbones.vit3d import sine_cosine_positions
from lejepa_med.config import ModelConfig, ProjectorConfig
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.spec import InferenceSpec, Spec
from lejepa_med.training.model import Pretrainer
from lejepa_med.weights import load_backbone, save_backbone

TIMM = ("timm/resnet18", "timm/convnext_atto", "timm/vit_tiny_patch16_224", "timm/vit_small_patch14_dinov2")
TINY_PROJECTOR = ProjectorConfig(hidden=16, dim=4)


def smallest(name: str, in_channels: int = 1) -> ModelConfig:
    own = {"resnet": {"width": 0.125, "stem_pool": False}, "vit": {"patch_size": 8}}
    settings = next((own[family] for family in own if name.startswith(family)), {})
    return ModelConfig.model_validate({"name": name, "in_channels": in_channels, **settings})


def make(name: str, in_channels: int = 1) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(smallest(name, in_channels)).eval()


def stride(name: str) -> int:
    """Voxels per token."""
    if name.startswith("timm/"):
        return 14 if "patch14" in name else 16 if "patch16" in name else 32
    return 8 if name.startswith("vit") else 16  # ResNet without pooling: stem 2, stages 8


def size(name: str, *tokens: int) -> tuple[int, ...]:
    """An image that gives so many tokens along each axis (the last one dropped in 2D)."""
    return tuple(stride(name) * count for count in (tokens[:2] if name.startswith("timm/") else tokens))


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TIMM)
def test_protocol(name: str, tmp_path: Path) -> None:
    backbone = make(name, in_channels=2)
    for tokens in ((2, 3, 2), (3, 2, 4)):
        images = rand(2, 2, *size(name, *tokens))
        grid = tokens[: images.ndim - 2]
        embedding = backbone(images)
        assert embedding.shape == (2, backbone.dim)
        assert not torch.allclose(embedding[0], embedding[1])
        found, given = backbone.tokens(images)
        assert given == grid
        assert found.shape == (2, int(torch.tensor(grid).prod()), backbone.token_dim)
        layers = backbone.intermediate(images, last=2)
        assert [layer.ndim for layer in layers] == [2, 2]
        maps = backbone.feature_maps(images)
        assert tuple(maps[-1].shape[2:]) == grid
        if "vit" in name:
            assert len(maps) == 1 and torch.equal(maps[0].flatten(2).transpose(1, 2), found)
        else:
            sides = [one.shape[2] for one in maps]
            assert sides == sorted(sides, reverse=True) and sides[-4] == 8 * sides[-1], "strides 4 to 32"
    backbone(images).square().sum().backward()
    gradients = {key: value.grad for key, value in backbone.named_parameters()}
    unused = [key for key, value in gradients.items() if value is None and not key.endswith("mask_token")]
    assert unused == []
    assert float(next(value for value in gradients.values() if value is not None and value.ndim > 3).abs().sum()) > 0
    save_backbone(tmp_path / "b.safetensors", backbone, smallest(name, 2), Spec(inference=InferenceSpec()))
    with torch.no_grad():
        assert torch.equal(load_backbone(tmp_path / "b.safetensors")(images), backbone(images))


@pytest.mark.parametrize("name", ["resnet10_3d", "vit_tiny_3d", *TIMM])
def test_tokens_are_row_major_over_their_grid(name: str) -> None:
    """A token in a corner of the grid looks at that corner of the image: the centroid of its gradient is there."""
    backbone = make(name)
    tokens = (3, 4, 5)
    images = rand(1, 1, *size(name, *tokens)).requires_grad_()
    grid = tokens[: images.ndim - 2]
    for corner in itertools.product((0, -1), repeat=len(grid)):
        number = int(torch.arange(int(torch.tensor(grid).prod())).reshape(grid)[corner])
        (gradient,) = torch.autograd.grad(backbone.tokens(images)[0][0, number].square().sum(), images)
        weight = gradient[0, 0].square() / gradient.square().sum()
        for axis, end in enumerate(corner):
            side = weight.shape[axis]
            others = tuple(other for other in range(len(grid)) if other != axis)
            centroid = float((weight.sum(others) * torch.arange(side)).sum()) / (side - 1)
            assert centroid < 0.49 if end == 0 else centroid > 0.51


@pytest.mark.parametrize("name", ["resnet10_3d", "vit_tiny_3d", *TIMM])
def test_layers_end_in_what_the_embedding_is_made_of(name: str) -> None:
    backbone = make(name)
    images = rand(2, 1, *size(name, 2, 2, 2))
    with torch.no_grad():
        deepest, embedding, tokens = backbone.intermediate(images)[-1], backbone(images), backbone.tokens(images)[0]
    if "vit" in name:
        torch.testing.assert_close(deepest, torch.cat([embedding, tokens.mean(1)], dim=-1))
    else:
        pooled = tokens.mean(1)
        if "convnext" in name:  # its head normalises
            pooled = nn.functional.layer_norm(pooled, pooled.shape[1:], eps=1e-6)
        torch.testing.assert_close(embedding, pooled)
        assert deepest.shape[1] == backbone.dim


def test_reestimated_batchnorm_has_the_moments_of_the_images() -> None:
    backbone = make("resnet10_3d")
    images = rand(12, 1, 32, 32, 32) * 3 + 1
    reestimate_batchnorm(backbone, [images[:6], images[6:]])
    first = backbone.net.bn1
    maps = backbone.net.conv1(images)
    torch.testing.assert_close(first.running_mean, maps.mean((0, 2, 3, 4)), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first.running_var, maps.var((0, 2, 3, 4)), rtol=1e-3, atol=1e-5)
    assert not backbone.training
    assert first.momentum is not None


def test_one_sample_on_a_map_of_one_voxel_is_refused_with_a_sentence() -> None:
    with pytest.raises(UserError, match=r"BatchNorm got one value per channel .* or model\.norm=group"):
        reestimate_batchnorm(make("resnet10_3d"), [rand(1, 1, 16, 16, 16)])


def test_position_codes_know_distance_and_not_the_size_of_the_view() -> None:
    small, large = sine_cosine_positions((3, 3, 3), 96), sine_cosine_positions((5, 5, 5), 96)
    centre = large.reshape(5, 5, 5, 96)[1:4, 1:4, 1:4].reshape(27, 96)
    torch.testing.assert_close(small, centre)
    assert len(torch.unique(small, dim=0)) == 27
    assert sine_cosine_positions((2, 2, 2), 100).shape == (8, 100)


def test_views_of_one_size_share_a_pass_and_all_meet_in_the_projector() -> None:
    model = Pretrainer(make("resnet10_3d"), TINY_PROJECTOR).eval()
    views = [rand(2, 3, 1, 32, 32, 32), rand(4, 3, 1, 16, 16, 16)]
    with torch.no_grad():
        features, projections = model(views)
        one = model.backbone(views[1][2])
    assert features.shape == (6, 3, model.backbone.dim)
    assert projections.shape == (6, 3, TINY_PROJECTOR.dim)
    torch.testing.assert_close(features[4], one)


@pytest.mark.parametrize(("name", "norms"), [("resnet10_3d", 2), ("vit_tiny_3d", 3)])
def test_layernorm_backbones_get_a_batchnorm_before_the_projector(name: str, norms: int) -> None:
    model = Pretrainer(make(name), TINY_PROJECTOR)
    assert sum(isinstance(module, nn.BatchNorm1d) for module in model.projector.modules()) == norms


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_group_leaves_no_batchnorm(depth: int) -> None:
    """Nor anything else that mixes samples: a scan's embedding does not depend on its neighbours in the batch."""
    config = ModelConfig(name=f"resnet{depth}_3d", width=0.125, stem_pool=False, norm="group")
    backbone, images = build(config).train(), rand(3, 1, 32, 32, 32)
    batch = build(config.model_copy(update={"norm": "batch"}))
    convolutions = [[m.weight.shape for m in b.modules() if isinstance(m, nn.Conv3d)] for b in (backbone, batch)]
    assert convolutions[0] == convolutions[1]
    assert not any("running" in key for key in backbone.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[1:2], backbone(images[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_projector_has_the_layers_asked_for(layers: int) -> None:
    projector = build_projector(8, 16, 4, layers, normalise_input=False)
    assert sum(isinstance(module, nn.Linear) for module in projector) == layers
    assert projector(rand(5, 8)).shape == (5, 4)


@pytest.mark.parametrize("name", ["resnet19_3d", "vit_colossal_3d", "resnet18", "timm/resnet180", "vit_tiny"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"resnet18_3d|near it: \w*resnet"):
        build(ModelConfig(name=name))
