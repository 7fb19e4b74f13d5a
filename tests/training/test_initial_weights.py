"""Files of others start a network of ours that computes what theirs did, or are refused as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from small_runs import SETTINGS, Patterns
from torch import Tensor

import lejepa_med
from lejepa_med.backbones import Backbone, build
from lejepa_med.config import ModelConfig
from lejepa_med.errors import WeightsError
from lejepa_med.training.initial_weights import load_initial_weights

IMAGENET = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
SMALL = "timm/vit_small_patch14_reg4_dinov2"


def make(name: str, in_channels: int, seed: int) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(ModelConfig(name=name, in_channels=in_channels)).eval()


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Path]:
    """A DINOv2 ViT with random weights, and a file of them with Meta's names."""
    theirs = make(SMALL, 3, 0)
    state = {key.removeprefix("net."): value.clone() for key, value in theirs.state_dict().items()}
    position = torch.rand(1, 1, state["cls_token"].shape[-1])
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - position
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, state["cls_token"].shape[-1])
    file = tmp_path_factory.mktemp("official") / "dinov2_vits14_reg4_pretrain.pth"
    torch.save(state, file)
    return theirs, file


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_dinov2_sees_in_0_to_1_what_it_saw_normalised(official: tuple[Backbone, Path], channels: int) -> None:
    theirs, file = official
    ours = make(SMALL, channels, 5)
    load_initial_weights(ours, file)
    images = torch.rand(2, channels, 56, 42)
    mean, std = IMAGENET
    expected = theirs((images.expand(-1, 3, -1, -1) - mean) / std)
    torch.testing.assert_close(ours(images), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(ours(images), theirs(images.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-3)


def test_a_file_of_timm_with_its_classifier(tmp_path: Path) -> None:
    """The first convolution is padded and has no bias: its weights change, and the norm behind it."""
    theirs = timm.create_model("resnet18", pretrained=False, num_classes=7).state_dict()
    safetensors.torch.save_file(theirs, tmp_path / "timm.safetensors")
    ours = make("timm/resnet18", 1, 5)
    load_initial_weights(ours, tmp_path / "timm.safetensors")
    loaded = ours.state_dict()
    assert "net.fc.weight" not in loaded
    expected = (theirs["conv1.weight"] / IMAGENET[1]).sum(1, keepdim=True)
    torch.testing.assert_close(loaded["net.conv1.weight"], expected)
    mean, std = IMAGENET
    shift = (theirs["conv1.weight"] * mean / std).sum((1, 2, 3))
    torch.testing.assert_close(loaded["net.bn1.running_mean"], theirs["bn1.running_mean"] + shift)
    others = {key for key in loaded if key not in ("net.conv1.weight", "net.bn1.running_mean")}
    assert all(torch.equal(loaded[key], theirs[key.removeprefix("net.")]) for key in others)


@torch.no_grad()
def test_a_cnn_sees_in_0_to_1_what_it_saw_normalised(tmp_path: Path) -> None:
    """Exactly so where no padding is in sight: in the middle of the first stage's maps."""
    theirs = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    torch.nn.init.normal_(theirs.bn1.running_mean)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = make("timm/resnet18", 1, 5)
    load_initial_weights(ours, tmp_path / "timm.pth")
    images = torch.rand(1, 1, 96, 96)
    mean, std = IMAGENET
    colours = (images.expand(-1, 3, -1, -1) - mean) / std
    found, expected = (
        net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(x)))))[..., 8:-8, 8:-8]
        for net, x in ((ours.net, images), (theirs, colours))
    )
    assert found.shape[-1] == 8 and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("damage", ["missing", "other channels", "other network"])
def test_what_does_not_fit_is_refused_as_a_whole(official: tuple[Backbone, Path], tmp_path: Path, damage: str) -> None:
    state, file = torch.load(official[1], weights_only=True), tmp_path / "w.pth"
    name, channels, match = SMALL, 1, "1 missing, 0 unexpected"
    match damage:
        case "missing":
            del state["blocks.3.norm1.weight"]
        case "other channels":
            channels, match = 2, "of colour images, but model.in_channels is 2; it can be 1 or 3"
        case "other network":
            name, match = "timm/resnet10t", "do not fit the network"
    torch.save(state, file)
    ours = make(name, channels, 5)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(WeightsError, match=match):
        load_initial_weights(ours, file)
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


class Slices(torch.utils.data.Dataset[Tensor]):
    """Middle planes of `Patterns`."""

    def __init__(self) -> None:
        self.volumes = Patterns([str(number) for number in range(4)])

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> Tensor:
        return torch.nn.functional.interpolate(self.volumes[index][None, :, :, :, 5], size=(42, 42))[0]


def test_a_run_continues_from_it_and_another_from_that(official: tuple[Backbone, Path], tmp_path: Path) -> None:
    """With no learning rate to speak of, weights stay where they started."""
    views = SETTINGS["views"] | {"global_size": [28, 28], "local_size": [14, 14], "base_crop_mm": None, "num_local": 1}
    settings = {**SETTINGS, "views": views, "train": SETTINGS["train"] | {"steps": 1, "batch_size": 2}}
    settings["data.kind"], settings["optim"] = "images", {"lr": 1e-12, "weight_decay": 0.0}
    del settings["data"]
    starts = make(SMALL, 1, 5)
    load_initial_weights(starts, official[1])
    run = lejepa_med.pretrain(Slices(), SMALL, tmp_path / "a", init_from=str(official[1]), **settings)
    again = lejepa_med.pretrain(Slices(), SMALL, tmp_path / "b", init_from=str(run.path), **settings)
    for finished in (run, again):
        for key, value in finished.backbone().state_dict().items():
            torch.testing.assert_close(value, starts.state_dict()[key], rtol=0, atol=1e-8)
