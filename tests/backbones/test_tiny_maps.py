"""Convolutions on a CPU: every one that a network really makes, in its values and in its weight gradient."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from smallest_networks import rand, smallest
from torch import nn

from lejepa_med.backbones import build
from lejepa_med.backbones.convolution import Conv2d, keep_tiny_maps_in_float32
from lejepa_med.config import ModelConfig


def worst_convolution(config: ModelConfig, side: int, seed: int) -> dict[str, float]:
    """Largest relative error of any 3D convolution under bf16 autocast, in its values and in its weight gradient.

    Each convolution is judged on the input and the output gradient that it really had, against float64 on the same
    numbers (oneDNN has no kernel for it): what is left is the error of the kernel alone, about 0.2 %.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(config)
    seen: dict[nn.Module, list[torch.Tensor]] = {}

    def remember(conv: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen[conv] = [inputs[0].detach().clone(), output.detach().clone(), output]  # copies: some add in place

    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(remember)
    weights = rand(4, model.dim, seed=seed + 1) - 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model(rand(4, 1, side, side, side, seed=seed))
    for *_, output in seen.values():
        output.retain_grad()
    (features.float() * weights).sum().backward()
    worst = {"value": 0.0, "gradient": 0.0}
    for conv, (given, values, output) in seen.items():
        assert isinstance(conv, nn.Conv3d) and conv.weight.grad is not None and output.grad is not None
        bf16 = output.dtype == torch.bfloat16
        used = [x.to(torch.bfloat16).double() if bf16 else x.double() for x in (given, conv.weight.detach())]
        bias = None if conv.bias is None else conv.bias.detach().double()
        value = nn.functional.conv3d(used[0], used[1], bias, conv.stride, conv.padding, 1, conv.groups)
        shape, gradient = conv.weight.shape, output.grad.double()
        expected = nn.grad.conv3d_weight(used[0], shape, gradient, conv.stride, conv.padding, 1, conv.groups)
        for name, found, right in (("value", values, value), ("gradient", conv.weight.grad, expected)):
            error = float((found - right).norm() / right.norm())
            worst[name] = max(worst[name], math.inf if math.isnan(error) else error)
    return worst


STEEP = ModelConfig(name="resnet10_3d", width=0.25, stem_pool=False)
SIDES = {
    "densenet121": (32,), "efficientnet_b0": (32, 48), "segresnet": (16, 32), "unet": (24, 32), "swinunetr": (32,),
    "resnext50": (6, 32), "seresnet50": (7, 32), "convnext_tiny": (32, 48), "vit_tiny": (32,), "resenc_l": (33,),
}  # fmt: skip
CASES = [(STEEP, 12), (STEEP, 16), (STEEP, 32)]
CASES += [(smallest(f"{name}_3d"), side) for name, sides in SIDES.items() for side in sides]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("config", "side"), CASES, ids=lambda case: getattr(case, "name", str(case)))
def test_bf16_convolutions_of_tiny_maps_are_right(config: ModelConfig, side: int) -> None:
    """oneDNN's conv3d gives weight gradients from uninitialised memory for maps about as long as its kernel."""
    for trial in range(4 if config is STEEP else 1):
        worst = worst_convolution(config, side, trial)
        assert worst["value"] < 0.02
        assert worst["gradient"] < 0.02


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("sides", [(1, 1, 1), (5, 5, 5), (6, 6, 6), (7, 7, 7), (8, 8, 8), (6, 20, 20), (20, 9, 5)])
def test_a_strided_kernel_of_seven_on_a_small_map(sides: tuple[int, ...], autocast: bool) -> None:
    """In float32 oneDNN writes past an array for 5 voxels, and gives any weight gradient for 6 and 7."""
    conv = nn.Conv3d(2, 16, 7, stride=2, padding=3)
    keep_tiny_maps_in_float32(conv)
    exact = copy.deepcopy(conv).double()
    images, gradient = rand(4, 2, *sides) - 0.5, rand(4, 16, *((side + 1) // 2 for side in sides), seed=1) - 0.5
    given = [images.clone().requires_grad_(), images.double().requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = conv(given[0])
    expected = nn.functional.conv3d(given[1], exact.weight, exact.bias, stride=2, padding=3)
    found.backward(gradient.to(found.dtype))
    expected.backward(gradient.double())
    for name, ours, right in (
        ("values", found.detach(), expected.detach()),
        ("weights", conv.weight.grad, exact.weight.grad),
        ("bias", conv.bias.grad, exact.bias.grad),
        ("images", given[0].grad, given[1].grad),
    ):
        assert ours is not None and right is not None
        assert ours.shape == right.shape, name
        assert float((ours - right).norm() / right.norm()) < 1e-5, name


@pytest.mark.parametrize("sides", [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_bf16_gradients_of_strided_pictures_one_pixel_wide(sides: tuple[int, int]) -> None:
    """What a ResNet's last stage makes of a view of 16 pixels: oneDNN's weight gradient is of uninitialised memory."""
    conv = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
    keep_tiny_maps_in_float32(conv)
    images, gradient = rand(4, 16, *sides) - 0.5, rand(4, 32, *((side + 1) // 2 for side in sides), seed=1) - 0.5
    shape = conv.weight.shape
    expected = nn.grad.conv2d_weight(images.double(), shape, gradient.double(), stride=2, padding=1)
    for _ in range(4):
        garbage = [torch.full((size,), torch.nan) for size in (1000, 4608, 9216, 100000)]
        del garbage
        conv.weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = conv(images)
        found.backward(gradient.to(found.dtype))
        assert conv.weight.grad is not None
        assert float((conv.weight.grad - expected).norm() / expected.norm()) < 0.02


def test_networks_of_timm_are_kept_from_it() -> None:
    network = build(ModelConfig(name="timm/resnet10t"))
    assert {type(part) for part in network.modules() if isinstance(part, nn.Conv2d)} == {Conv2d}
