"""Encoders inside MONAI's networks compute what the backbone computes; 2D networks become 3D ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from monai.networks.nets import FlexibleUNet, SegResNet, SwinUNETR
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.convnext3d import ConvNeXt3d
from lejepa_med.backbones.resnet3d import ResNet3d
from lejepa_med.backbones.vit3d import ViT3d
from lejepa_med.config import ModelConfig
from lejepa_med.errors import WeightsError
from lejepa_med.spec import InferenceSpec, Spec
from lejepa_med.training.initial_weights import load_initial_weights
from lejepa_med.weights import load_into, save_backbone


def make(name: str, seed: int = 0, **settings: object) -> Backbone:
    """A network whose BatchNorms have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = build(ModelConfig.model_validate({"name": name, **settings})).eval()
        _unlike_fresh(backbone)
    return backbone


def _unlike_fresh(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)


def saved(folder: Path, name: str, **settings: object) -> tuple[Backbone, Path]:
    backbone = make(name, **settings)
    with torch.no_grad():
        for key, value in backbone.named_parameters():
            if key.endswith("downsample.0.bias"):
                value.normal_()
    save_backbone(folder / "backbone.safetensors", backbone, None, Spec(inference=InferenceSpec()))
    return backbone, folder


def unet(backbone: str) -> FlexibleUNet:
    return FlexibleUNet(1, 2, backbone, spatial_dims=3, pretrained=False).eval()


@torch.no_grad()
def test_flexible_unet(tmp_path: Path) -> None:
    backbone, folder = saved(tmp_path, "resnet10_3d")
    network = unet("resnet10")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    done = load_into(network, folder)
    images = torch.rand(1, 1, 32, 32, 32)
    assert isinstance(backbone, ResNet3d)
    for found, expected in zip(network.encoder(images)[1:], backbone.stages(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert done.prefix == "encoder"
    assert {*done.filled, *done.fresh} == set(before) and all(key.startswith("encoder.") for key in done.filled)
    assert all(torch.equal(network.state_dict()[key], before[key]) for key in done.fresh)
    assert done.changes == ("3 biases of convolutions, which the network has not, are in the running means behind",)
    table = str(done).splitlines()
    assert table[0] == f"encoder at `encoder`: {len(done.filled)} tensors filled"
    assert table[1].split() == ["filled", "encoder", str(len(done.filled))]
    assert table[2].split()[:2] == ["fresh", "decoder"]


@pytest.mark.long
def test_an_encoder_of_another_kind_is_refused_as_a_whole(tmp_path: Path) -> None:
    """ResNet-18 of FlexibleUNet has shortcuts without weights."""
    _, folder = saved(tmp_path, "resnet18_3d")
    network = unet("resnet18")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"at `encoder`: do not fit the network \(0 missing, 21 unexpected"):
        load_into(network, folder)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_two_places_need_a_name(tmp_path: Path) -> None:
    backbone, folder = saved(tmp_path, "resnet10_3d", width=0.125)
    twins = nn.ModuleDict({"left": make("resnet10_3d", 1, width=0.125), "right": make("resnet10_3d", 2, width=0.125)})
    with pytest.raises(WeightsError, match=r"fit at left.net, right.net; name one as prefix="):
        load_into(twins, folder)
    done = load_into(twins, folder, prefix="right.net")
    state = twins.state_dict()
    assert all(torch.equal(state[f"right.{key}"], value) for key, value in backbone.state_dict().items())
    assert not torch.equal(state["left.net.conv1.weight"], state["right.net.conv1.weight"])
    assert all(key.startswith("left.") for key in done.fresh)
    with pytest.raises(WeightsError, match="unexpected"):
        load_into(twins, folder, prefix="middle")


@pytest.mark.parametrize("kind", ["SegResNet", "SwinUNETR"])
def test_other_networks_of_monai(tmp_path: Path, kind: str) -> None:
    """Their encoders lie beside the decoder, under names of their own."""

    def network(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return SegResNet(3, 8) if kind == "SegResNet" else SwinUNETR(1, 2, feature_size=12)

    encoder = ("convInit.", "down_layers.") if kind == "SegResNet" else ("swinViT.",)
    trained = {key: value for key, value in network(0).state_dict().items() if key.startswith(encoder)}
    safetensors.torch.save_file({f"net.{key}": value for key, value in trained.items()}, tmp_path / "w.safetensors")
    target = network(1)
    done = load_into(target, tmp_path / "w.safetensors")
    assert set(done.filled) == set(trained) and not any(key.startswith(encoder) for key in done.fresh)
    assert all(torch.equal(target.state_dict()[key], value) for key, value in trained.items())


@pytest.mark.long
@pytest.mark.parametrize(("name", "classifier"), [("resnet18", True), ("resnet50", False)])
@torch.no_grad()
def test_an_inflated_network_gives_the_maps_of_the_2d_one(tmp_path: Path, name: str, classifier: bool) -> None:
    """On a volume that is the same in every slice, in slices out of reach of the padding at both ends."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        flat = timm.create_model(name, pretrained=False, num_classes=5 if classifier else 0).eval()
        _unlike_fresh(flat)
    torch.save(flat.state_dict(), tmp_path / "flat.pth")
    deep = make(f"{name}_3d", 1)
    told = load_initial_weights(deep, tmp_path / "flat.pth", ["inflate"])
    assert (
        told[0]
        == f"{20 if name == 'resnet18' else 53} kernels inflated along the last axis, divided by their new length"
    )
    assert "biases of shortcut convolutions set to zero" in told[1]
    stem = flat.conv1.weight  # the 3D network sees grey in [0, 1]: compare behind the colours' normalisation
    mean, std = (torch.tensor(flat.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    grey = torch.rand(1, 1, 32, 32)
    x = nn.functional.conv2d(grey, (stem / std).sum(1, keepdim=True), stride=2, padding=3)
    x = flat.maxpool(flat.act1(flat.bn1(x - (stem * mean / std).sum((1, 2, 3))[:, None, None])))
    expected = [x := getattr(flat, f"layer{stage}")(x) for stage in (1, 2, 3, 4)]
    assert isinstance(deep, ResNet3d)
    found = deep.stages(grey[..., None].repeat(1, 1, 1, 1, 544))
    for volume, image in zip(found, expected, strict=True):
        middle = volume[..., volume.shape[-1] // 2]
        assert image.std() > 0.01
        torch.testing.assert_close(middle, image, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[0][..., 0], expected[0], atol=1e-2)  # at the end the padding is seen


def test_a_2d_run_is_inflated_too(tmp_path: Path) -> None:
    flat = make("timm/resnet18")
    model = ModelConfig(name="timm/resnet18")
    save_backbone(tmp_path / "backbone.safetensors", flat, model, Spec(inference=InferenceSpec(window=(32, 32))))
    deep = make("resnet18_3d", 1)
    load_initial_weights(deep, tmp_path, ["inflate"])
    kernel = deep.state_dict()["net.layer2.0.conv1.weight"]
    torch.testing.assert_close(kernel.sum(-1), flat.state_dict()["net.layer2.0.conv1.weight"])
    assert torch.equal(kernel[..., 0], kernel[..., 2])


@torch.no_grad()
def test_an_inflated_convnext_gives_the_maps_of_the_2d_one(tmp_path: Path) -> None:
    """In the middle of the volume; of the first stages, since the last ones see 1,600 slices."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        flat = timm.create_model("convnext_tiny", pretrained=False, num_classes=5).eval()
        for name, parameter in flat.named_parameters():
            if "conv_dw" in name or "downsample" in name or name.endswith("gamma"):
                nn.init.normal_(parameter, std=0.3)
    torch.save(flat.state_dict(), tmp_path / "flat.pth")
    deep = make("convnext_tiny_3d", 1)
    (told,) = load_initial_weights(deep, tmp_path / "flat.pth", ["inflate"])
    assert told == "22 kernels inflated along the last axis, divided by their new length"
    mean, std = (torch.tensor(flat.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    grey = torch.rand(1, 1, 32, 32)
    x = flat.stem((grey - mean) / std)
    expected = [x := flat.stages[stage](x) for stage in (0, 1)]
    assert isinstance(deep, ConvNeXt3d)
    found = deep.stages(grey[..., None].repeat(1, 1, 1, 1, 480))
    for volume, image in zip(found, expected, strict=False):
        assert image.std() > 0.1
        torch.testing.assert_close(volume[..., volume.shape[-1] // 2], image, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[1][..., 0], expected[1], atol=1e-2)  # at the end the padding is seen
    assert torch.equal(deep.net["norm"].weight, flat.head.norm.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch16_224"])
@torch.no_grad()
def test_an_inflated_vit_has_the_patches_and_blocks_of_the_2d_one(tmp_path: Path, name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        flat = timm.create_model(name, pretrained=False, num_classes=0, img_size=56 if "14" in name else 64).eval()
        for parameter in flat.parameters():
            nn.init.normal_(parameter, std=0.05)
    torch.save(flat.state_dict(), tmp_path / "flat.pth")
    patch = flat.patch_embed.patch_size[0]
    deep = make("vit_small_3d", 1, patch_size=patch)
    told = load_initial_weights(deep, tmp_path / "flat.pth", ["inflate"])
    assert told[:2] == [
        "1 kernels inflated along the last axis, divided by their new length",
        "learnt positions of patches left out: those of the 3D network are fixed",
    ]
    assert told[2:] == (["24 LayerScales multiplied into the weights that they scale"] if "dinov2" in name else [])
    mean, std = (torch.tensor(of)[:, None, None] for of in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    grey = torch.rand(1, 1, 4 * patch, 4 * patch)
    assert isinstance(deep, ViT3d)
    volume = deep.embed(grey[..., None].repeat(1, 1, 1, 1, 2 * patch)).flatten(2, 3)
    wanted = flat.patch_embed((grey - mean) / std).flatten(1, -2).transpose(1, 2)
    for part in volume.unbind(-1):
        torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-4)
    tokens = torch.rand(1, 7, 384)
    torch.testing.assert_close(deep.blocks[3](tokens), flat.blocks[3](tokens), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deep.class_token, flat.cls_token + flat.pos_embed[:, :1])


def test_what_cannot_be_inflated(tmp_path: Path) -> None:
    flat = timm.create_model("resnet18", pretrained=False, num_classes=0)
    torch.save(flat.state_dict(), tmp_path / "flat.pth")
    for name, match in (
        ("unet_3d", r"inflate is for resnet"),
        ("vit_tiny_3d", "do not fit the network"),
        ("resnet10_3d", "do not fit the network"),
    ):
        with pytest.raises(WeightsError, match=match):
            load_initial_weights(make(name), tmp_path / "flat.pth", ["inflate"])
    _, folder = saved(tmp_path, "resnet10_3d", width=0.125)
    with pytest.raises(WeightsError, match="inflate needs the weights of a 2D network; these are not"):
        load_initial_weights(make("resnet10_3d", width=0.125), folder, ["inflate"])
