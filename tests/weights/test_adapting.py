"""Only what is named changes, by the stated rule, and what has changed is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import nn

from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.positions2d import PositionRule, resized_positions
from lejepa_med.config import ModelConfig
from lejepa_med.errors import WeightsError
from lejepa_med.spec import InferenceSpec, Spec
from lejepa_med.training.initial_weights import load_initial_weights
from lejepa_med.weights import adapted, load_backbone, save_backbone
from lejepa_med.weights.adapting import resized_kernel

VIT = "timm/vit_tiny_patch16_224"


def make(seed: int = 0, **settings: object) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(ModelConfig.model_validate(settings)).eval()


def saved(folder: Path, **settings: object) -> Path:
    spec = Spec(inference=InferenceSpec(window=(16, 16)))
    file = folder / "backbone.safetensors"
    save_backbone(file, make(**settings), ModelConfig.model_validate(settings), spec)
    return file


@pytest.mark.parametrize("name", ["resnet10_3d", "vit_tiny_3d", "timm/resnet18", VIT])
@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (2, 4)])
@torch.no_grad()
def test_equal_channels_give_what_they_gave(tmp_path: Path, name: str, old: int, new: int) -> None:
    settings = {"name": name} | {"resnet10_3d": {"width": 0.125}, "vit_tiny_3d": {"patch_size": 8}}.get(name, {})
    file = saved(tmp_path, in_channels=old, **settings)
    target = make(1, in_channels=new, **settings)
    with pytest.raises(WeightsError, match="0 missing, 0 unexpected, 1 of another shape"):
        load_backbone(file, target)
    with pytest.warns(UserWarning, match=rf"{old} input channels to {new}, each the sum / {new}") as told:
        loaded = load_backbone(file, target, adapt=["in_channels"])
    assert len(told) == 1
    images = torch.rand(2, 1, *(32,) * 3) if name.endswith("_3d") else torch.rand(2, 1, 32, 32)
    repeated = [images.expand(-1, count, *images.shape[2:]) for count in (old, new)]
    expected = make(in_channels=old, **settings)(repeated[0])
    torch.testing.assert_close(loaded(repeated[1]), expected, rtol=1e-4, atol=1e-4)


def test_weights_that_fit_are_not_touched() -> None:
    backbone = make(name="resnet10_3d", width=0.125)
    state, changes = adapted(backbone.state_dict(), backbone, ["in_channels", "patch_size", "positions"])
    assert changes == []
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_nothing_but_what_is_named_changes(tmp_path: Path) -> None:
    """Width is no adaptation, and neither is a first convolution of another kernel."""
    file = saved(tmp_path, name="resnet10_3d", width=0.125)
    with pytest.raises(WeightsError, match="of another shape"):
        load_backbone(file, make(name="resnet10_3d", width=0.25), adapt=["in_channels", "patch_size", "positions"])
    backbone = make(name="resnet10_3d", width=0.125)
    state = backbone.state_dict() | {"net.conv1.weight": torch.zeros(8, 1, 5, 5, 5)}
    assert adapted(state, backbone, ["patch_size"])[0]["net.conv1.weight"].shape == (8, 1, 5, 5, 5)


def test_an_unknown_adaptation_is_named() -> None:
    with pytest.raises(WeightsError, match="adapt: width is not known; known: in_channels, patch_size"):
        adapted({}, make(name="resnet10_3d", width=0.125), ["width"])


@pytest.mark.parametrize(("old", "new"), [(8, 16), (16, 8), (7, 14), (16, 14)])
def test_patches_are_resized_as_timm_does_it(old: int, new: int) -> None:
    weight = torch.randn(5, 3, old, old)
    expected = resample_patch_embed(weight, [new, new])
    torch.testing.assert_close(resized_kernel(weight, (new, new)), expected, rtol=1e-3, atol=1e-4)


def test_an_enlarged_kernel_sees_in_enlarged_patches_what_it_saw() -> None:
    """FlexiViT's identity <w', B x> = <w, x>, in 3D and with another factor along each axis."""
    weight, patch = torch.randn(4, 2, 4, 6, 5), torch.randn(2, 4, 6, 5)
    enlarged = patch
    for axis, side in enumerate((8, 9, 10), start=1):
        moved = enlarged.movedim(axis, -1)
        flat = moved.reshape(1, 1, -1, moved.shape[-1])
        flat = nn.functional.interpolate(flat, size=(flat.shape[2], side), mode="bicubic", antialias=True)
        enlarged = flat.reshape(*moved.shape[:-1], side).movedim(-1, axis)
    found = torch.einsum("oiabc,iabc->o", resized_kernel(weight, (8, 9, 10)), enlarged)
    torch.testing.assert_close(found, torch.einsum("oiabc,iabc->o", weight, patch), rtol=1e-3, atol=1e-3)


def test_a_3d_vit_takes_another_patch_size(tmp_path: Path) -> None:
    file = saved(tmp_path, name="vit_tiny_3d", patch_size=8)
    with pytest.warns(UserWarning, match="embed.weight: patch 8x8x8 to 16x16x16, pseudo-inverse resize"):
        loaded = load_backbone(file, make(1, name="vit_tiny_3d", patch_size=16), adapt=["patch_size"])
    state, before = loaded.state_dict(), make(name="vit_tiny_3d", patch_size=8).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in before.items() if key != "embed.weight")
    torch.testing.assert_close(state["embed.weight"], resized_kernel(before["embed.weight"], (16, 16, 16)))


@pytest.mark.parametrize("rule", ["timm", "dinov2", "huggingface"])
def test_positions_of_a_file_for_larger_images(tmp_path: Path, rule: PositionRule) -> None:
    """timm's files of one architecture for 224 and 384 pixels differ in positions alone."""
    theirs = timm.create_model("vit_tiny_patch16_384", pretrained=False, num_classes=5).state_dict()
    safetensors.torch.save_file(theirs, tmp_path / "timm.safetensors")
    ours = make(1, name=VIT, in_channels=3, positions=rule)
    with pytest.raises(WeightsError, match="0 missing, 0 unexpected, 1 of another shape"):
        load_initial_weights(ours, tmp_path / "timm.safetensors")
    told = load_initial_weights(ours, tmp_path / "timm.safetensors", ["positions"])
    assert told == [f"net.pos_embed: positions of 24x24 patches to 14x14, rule {rule}"]
    expected = resample_abs_pos_embed(theirs["pos_embed"], [14, 14], num_prefix_tokens=1)
    assert torch.allclose(ours.state_dict()["net.pos_embed"], expected, atol=1e-5) == (rule == "timm")
    assert torch.equal(ours.state_dict()["net.pos_embed"][:, 0], theirs["pos_embed"][:, 0])
    patches = resized_positions(theirs["pos_embed"][:, 1:], (24, 24), (14, 14), rule)
    assert torch.equal(ours.state_dict()["net.pos_embed"][:, 1:], patches)


def test_patches_and_positions_together(tmp_path: Path) -> None:
    """A ViT of 16-pixel patches becomes one of 32-pixel patches for 384 pixels."""
    theirs = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=0)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    ours = make(1, name="timm/vit_small_patch32_384", in_channels=1)
    assert sorted(load_initial_weights(ours, tmp_path / "timm.safetensors", ["patch_size", "positions"])) == [
        "net.patch_embed.proj.weight: patch 16x16 to 32x32, pseudo-inverse resize",
        "net.pos_embed: positions of 14x14 patches to 12x12, rule timm",
    ]
    assert torch.equal(ours.state_dict()["net.blocks.3.mlp.fc1.weight"], theirs.state_dict()["blocks.3.mlp.fc1.weight"])


@pytest.mark.parametrize("allowed", ["in_channels", "positions"])
def test_one_permission_is_not_another(tmp_path: Path, allowed: str) -> None:
    file = saved(tmp_path, name="vit_tiny_3d", patch_size=8)
    target = make(1, name="vit_tiny_3d", patch_size=16)
    with pytest.raises(WeightsError, match="1 of another shape"):
        load_backbone(file, target, adapt=[allowed])
