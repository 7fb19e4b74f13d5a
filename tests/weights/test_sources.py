"""2D weights of Meta, transformers, timm and EfficientNet-Lite compute here what they compute at home."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.positions2d import resized_positions
from lejepa_med.config import ModelConfig, PretrainConfig
from lejepa_med.errors import ConfigError, WeightsError
from lejepa_med.training.initial_weights import load_initial_weights, start_from
from lejepa_med.weights import downloading, load_dinov2, read_tensors, timm_names

WEIGHTS = Path(os.environ.get("LEJEPA_MED_WEIGHTS", Path(__file__).parents[3] / "shared" / "weights"))
LITE = WEIGHTS / "efficientnet_lite0_imagenet" / "efficientnet-lite0-57934424.pth"
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
V2 = SMALL | {"image_size": 518, "patch_size": 14}
V3 = SMALL | {"intermediate_size": 1536, "num_register_tokens": 4}


def make(name: str, in_channels: int = 3, seed: int = 5, positions: str = "timm") -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"name": f"timm/{name}", "in_channels": in_channels, "positions": positions}
        return build(ModelConfig.model_validate(settings)).eval()


def theirs(kind: str, settings: dict[str, Any]) -> Any:
    """A network of transformers with random weights, none of them zero or one."""
    library = pytest.importorskip("transformers")
    net = getattr(library, f"{kind}Model")(getattr(library, f"{kind}Config")(**settings)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in net.parameters():
            noise = 0.05 * torch.randn(value.shape, generator=generator)
            value.copy_(noise if value.ndim > 1 else value + noise)
    return net


@pytest.mark.parametrize(
    ("name", "kind", "settings", "rule", "sizes"),
    [
        pytest.param("vit_small_patch14_dinov2", "Dinov2", V2, "huggingface", [(518, 518), (56, 70)], id="dinov2"),
        pytest.param(
            "vit_small_patch14_reg4_dinov2",
            "Dinov2WithRegisters",
            V2 | {"num_register_tokens": 4},
            "timm",
            [(518, 518), (56, 70)],
            id="dinov2 with registers",
        ),
        pytest.param("vit_small_patch16_dinov3_qkvb", "DINOv3ViT", V3, "timm", [(64, 96)], id="dinov3"),
        pytest.param(
            "vit_small_plus_patch16_dinov3_qkvb",
            "DINOv3ViT",
            V3 | {"use_gated_mlp": True, "hidden_act": "silu"},
            "timm",
            [(64, 96)],
            id="dinov3 with gates",
        ),
    ],
)
@pytest.mark.parametrize("written", ["save_pretrained", "state_dict"])
@torch.no_grad()
def test_transformers(
    name: str,
    kind: str,
    settings: dict[str, Any],
    rule: str,
    sizes: list[tuple[int, int]],
    written: str,
    tmp_path: Path,
) -> None:
    """Class and patch tokens of every size, the native one among them; two layouts of the same keys."""
    net, ours = theirs(kind, settings), make(name, positions=rule)
    if written == "save_pretrained":
        net.save_pretrained(tmp_path)
    else:
        safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    load_dinov2(ours, tmp_path / "model.safetensors")
    for size in sizes if written == "save_pretrained" else sizes[-1:]:
        images = torch.rand(1, 3, *size)
        expected = net(pixel_values=images).last_hidden_state
        torch.testing.assert_close(ours(images), expected[:, 0], rtol=1e-4, atol=1e-4)
        tokens, _ = ours.tokens(images)
        torch.testing.assert_close(tokens, expected[:, -tokens.shape[1] :], rtol=1e-4, atol=1e-4)


def test_gated_blocks_of_dinov2_giant() -> None:
    """Its SwiGLU, in three layouts, becomes timm's packed one: gates in front."""
    net = theirs(
        "Dinov2",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "use_swiglu_ffn": True,
            "patch_size": 14,
            "image_size": 28,
        },
    )
    block = net.encoder.layer[0].mlp
    hidden = block.gate_proj.out_features
    own = timm.create_model(
        "vit_giant_patch14_dinov2",
        pretrained=False,
        img_size=28,
        embed_dim=64,
        depth=2,
        num_heads=2,
        mlp_ratio=2 * hidden / 64,
        num_classes=0,
    ).eval()
    split = net.state_dict()
    packed = {key: value for key, value in split.items() if ".mlp." not in key}
    for start in ("encoder.layer.0.mlp.", "encoder.layer.1.mlp."):
        for kind in ("weight", "bias"):
            gates = [split[f"{start}{name}_proj.{kind}"] for name in ("gate", "up")]
            packed[f"{start}weights_in.{kind}"] = torch.cat(gates)
            packed[f"{start}weights_out.{kind}"] = split[f"{start}down_proj.{kind}"]
    images = torch.rand(1, 3, 28, 28)
    for state in (split, packed):
        own.load_state_dict(timm_names(state, own.state_dict()))
        with torch.no_grad():
            torch.testing.assert_close(
                own.forward_features(images), net(pixel_values=images).last_hidden_state, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("masked", [True, False])
def test_metas_dinov3_files(tmp_path: Path, masked: bool) -> None:
    """One bias for queries, keys and values, that of keys masked; rotary periods; gates as w1 and w2."""
    expected = make("vit_small_plus_patch16_dinov3_qkvb", seed=1)
    state = {key.removeprefix("net."): value.clone() for key, value in expected.state_dict().items()}
    renamed = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    renamed |= {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}
    official = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for key, value in state.items():
        if key.endswith("q_bias"):
            start, keys = key.removesuffix("q_bias"), torch.full_like(value, math.nan if masked else 0.0)
            official[f"{start}qkv.bias"] = torch.cat([value, keys, state[f"{start}v_bias"]])
            if masked:
                mask = torch.cat([torch.ones_like(value), torch.zeros_like(value), torch.ones_like(value)])
                official[f"{start}qkv.bias_mask"] = mask
        elif not key.endswith("v_bias"):
            for ours, meta in renamed.items():
                key = key.replace(ours, meta)
            official[key] = value
    torch.save(official, tmp_path / "dinov3.pth")
    loaded = make("vit_small_plus_patch16_dinov3_qkvb")
    load_dinov2(loaded, tmp_path / "dinov3.pth")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in expected.state_dict().items())
    with pytest.raises(WeightsError, match=r"unexpected  net\.blocks\.0\.attn\.qkv\.bias"):
        official["blocks.0.attn.qkv.bias"] = torch.ones(1152)
        torch.save(official, tmp_path / "dinov3.pth")
        load_dinov2(make("vit_small_plus_patch16_dinov3"), tmp_path / "dinov3.pth")


def metas_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """`interpolate_pos_encoding` of DINOv2 without registers, as its formula says: source = (x + .5) / factor - .5."""
    side = math.isqrt(positions.shape[1])
    grid = positions.reshape(side, side, -1)

    def along(values: Tensor, new: int) -> Tensor:
        factor, rows = (new + 0.1) / side, []
        for target in range(new):
            source = (target + 0.5) / factor - 0.5
            first = math.floor(source)
            weights = [cubic(source - (first + step)) for step in (-1, 0, 1, 2)]
            taken = [values[min(max(first + step, 0), side - 1)] for step in (-1, 0, 1, 2)]
            rows.append(sum(weight * row for weight, row in zip(weights, taken, strict=True)))
        return torch.stack(rows)

    return along(along(grid, height).transpose(0, 1), width).transpose(0, 1).reshape(1, height * width, -1)


def cubic(distance: float, a: float = -0.75) -> float:
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a


@pytest.mark.parametrize("grid", [(4, 5), (16, 16), (40, 3)])
def test_positions_by_metas_formula(grid: tuple[int, int]) -> None:
    positions = torch.randn(1, 37 * 37, 3)
    found = resized_positions(positions, (37, 37), grid, "dinov2")
    torch.testing.assert_close(found, metas_positions(positions, *grid), rtol=1e-3, atol=1e-3)
    others = [resized_positions(positions, (37, 37), grid, rule) for rule in ("timm", "huggingface")]
    assert not any(torch.allclose(found, other, atol=1e-2) for other in others)
    for rule in ("timm", "dinov2", "huggingface"):
        assert torch.equal(resized_positions(positions, (37, 37), (37, 37), rule), positions)


@torch.no_grad()
def test_a_network_follows_the_rule_that_its_config_names() -> None:
    images = torch.rand(1, 3, 56, 70)
    plain, ruled = make("vit_small_patch14_dinov2"), make("vit_small_patch14_dinov2", positions="dinov2")
    plain.net.pos_embed.normal_()
    ruled.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain.tokens(images)[0], ruled.tokens(images)[0], atol=0.1)
    grid = metas_positions(ruled.net.pos_embed[:, 1:], 4, 5)
    patches = ruled.net.patch_embed(images).flatten(1, 2) + grid
    x = torch.cat([ruled.net.cls_token + ruled.net.pos_embed[:, :1], patches], dim=1)
    expected = ruled.net.norm(ruled.net.blocks(x))
    torch.testing.assert_close(ruled(images), expected[:, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ruled.tokens(images)[0], expected[:, 1:], rtol=1e-3, atol=1e-3)


def test_a_rule_needs_positions() -> None:
    for name in ("resnet18", "vit_small_patch16_dinov3"):
        with pytest.raises(ConfigError, match=f"model.positions dinov2: timm/{name} has no learnt positions"):
            make(name, positions="dinov2")


def lite0(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """EfficientNet-Lite0 (Liu 2020; Tan & Le 2019) written down by the names of its file: pooled features."""

    def convolve(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        pads = []
        for side, kernel in zip(reversed(x.shape[2:]), reversed(weight.shape[2:]), strict=True):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)  # TensorFlow's SAME
            pads += [total // 2, total - total // 2]
        return nn.functional.conv2d(nn.functional.pad(x, pads), weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return nn.functional.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3)

    relu6 = nn.functional.relu6
    x = relu6(norm(convolve(images, "_conv_stem", 2), "_bn0"))
    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    for number in range(16):
        start, before = f"_blocks.{number}.", x
        if f"{start}_expand_conv.weight" in state:
            x = relu6(norm(convolve(x, f"{start}_expand_conv"), f"{start}_bn0"))
        x = relu6(norm(convolve(x, f"{start}_depthwise_conv", strides.get(number, 1), x.shape[1]), f"{start}_bn1"))
        x = norm(convolve(x, f"{start}_project_conv"), f"{start}_bn2")
        x = x + before if x.shape == before.shape else x
    return relu6(norm(convolve(x, "_conv_head"), "_bn1")).mean((2, 3))


@pytest.mark.skipif(not LITE.is_file(), reason="needs LEJEPA_MED_WEIGHTS to name the folder of real weights")
@torch.no_grad()
def test_efficientnet_lite0() -> None:
    """The real file in timm's definition, on normalised colours; then as a start, on grey values in [0, 1]."""
    state, ours = read_tensors(LITE), make("tf_efficientnet_lite0")
    load_dinov2(ours, LITE)
    smooth = nn.functional.interpolate(torch.rand(2, 3, 9, 9), size=(96, 128), mode="bicubic").clamp(0, 1)
    colours = (255 * smooth - 127) / 128
    expected = lite0(state, colours)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(colours), expected, rtol=1e-4, atol=1e-4)
    grey = make("tf_efficientnet_lite0", in_channels=1)
    assert load_initial_weights(grey, LITE) == []
    image = smooth[:, :1]
    padded = nn.functional.pad(image, (64,) * 4, value=127 / 255)  # the border sees black here, the mean colour there
    normalised = (255 * padded.expand(-1, 3, -1, -1) - 127) / 128
    found, wanted = grey(padded), lite0(state, normalised)
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.98


def test_a_classifier_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    net = timm.create_model("resnet18", pretrained=False, num_classes=7)
    torch.save(net.state_dict() | {"other.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"0 missing, 1 unexpected, 0 of another shape\):\n  unexpected  net.other"):
        load_dinov2(make("resnet18"), tmp_path / "w.pth")


def test_the_network_is_reached_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    source = timm.create_model("resnet18", pretrained=False, num_classes=3)

    def fetch(name: str, pretrained: bool) -> nn.Module:
        asked.append(name)
        assert pretrained
        return source

    ours = make("resnet18")
    monkeypatch.setattr(downloading.timm, "create_model", fetch)
    views = {"global_size": [32, 32], "local_size": [32, 32]}
    model = {"name": "timm/resnet18.a1_in1k", "in_channels": 3}
    settings: dict[str, Any] = {"views": views, "model": model, "data": {"kind": "images"}}
    assert start_from(ours, PretrainConfig.model_validate(settings)) == [] and asked == []
    assert start_from(ours, PretrainConfig.model_validate({**settings, "init_download": True})) == []
    assert asked == ["resnet18.a1_in1k"]
    assert torch.equal(ours.state_dict()["net.layer1.0.conv1.weight"], source.state_dict()["layer1.0.conv1.weight"])


def test_a_machine_without_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, pretrained: bool) -> nn.Module:
        raise ConnectionError("secret proxy")

    monkeypatch.setattr(downloading.timm, "create_model", fail)
    with pytest.raises(WeightsError, match=r"cannot be fetched \(ConnectionError\); fetch them on a machine") as caught:
        downloading.fetch_timm_weights("resnet18.a1_in1k")
    assert "secret" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"timm names no weights for resnet10t\.mine"):
        downloading.fetch_timm_weights("resnet10t.mine")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"init_adapt": ["positions"]}, "init_adapt changes weights that are loaded, but init_from is null"),
        ({"init_download": True, "init_from": "a"}, "init_from names others"),
        ({"init_download": True}, "only timm's weights are fetched"),
        ({"init_from": "a", "init_adapt": ["width"]}, "init_adapt"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PretrainConfig.model_validate(changes)
