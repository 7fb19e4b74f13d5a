"""BatchNorm over ranks in one process: two ranks are played by a collective that knows both halves of the batch.

Real ranks are in tests/training/test_several_ranks.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from lejepa_med.backbones import batchnorm, build
from lejepa_med.backbones.batchnorm import convert_batchnorm, moments_over_ranks
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.config import ModelConfig
from lejepa_med.errors import UserError

LAYERS = [(nn.BatchNorm1d, (6, 4)), (nn.BatchNorm1d, (6, 4, 5)), (nn.BatchNorm2d, (3, 4, 5, 2))]
LAYERS += [(nn.BatchNorm3d, (2, 4, 3, 2, 2)), (BatchNormAct2d, (3, 4, 5, 2))]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The code of several ranks, alone: its mean over ranks is then that of this process."""
    monkeypatch.setattr(batchnorm, "num_ranks", lambda: 2)
    yield


def pair(kind: type[nn.Module], **settings: object) -> tuple[nn.Module, nn.Module]:
    """torch's layer and the converted one with the same weights."""
    layers = [kind(4, **settings) for _ in range(2)]
    for layer in layers:
        if layer.weight is not None:
            layer.weight.data, layer.bias.data = rand(4, seed=1), rand(4, seed=2)
    convert_batchnorm(layers[1])
    return layers[0], layers[1]


def outcome(layer: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Output, every gradient and every buffer after one step."""
    x = x.clone().requires_grad_()
    output = layer(x)
    (output.float() * y).sum().backward()
    values = {"output": output.detach(), "input": x.grad} | {key: p.grad for key, p in layer.named_parameters()}
    return {key: value for key, value in values.items() if value is not None} | dict(layer.named_buffers())


@pytest.mark.parametrize(("kind", "shape"), LAYERS)
@pytest.mark.parametrize(
    "settings", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str
)
def test_over_ranks_is_torch_s_batchnorm(
    group_of_one: None, kind: type[nn.Module], shape: tuple[int, ...], settings: dict[str, object]
) -> None:
    theirs, ours = pair(kind, **settings)
    for seed in range(3):
        x, y = 3 * rand(*shape, seed=seed) + 2, rand(*shape, seed=seed + 10)
        expected, found = outcome(theirs, x, y), outcome(ours, x, y)
        assert found.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("kind", "shape"), LAYERS)
def test_one_process_and_evaluation_are_torch_s_to_the_bit(
    kind: type[nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair(kind)
    x, y = rand(*shape), rand(*shape, seed=1)
    for mode, ranks in ((True, 1), (False, 1), (False, 2)):
        monkeypatch.setattr(batchnorm, "num_ranks", lambda ranks=ranks: ranks)
        expected, found = outcome(theirs.train(mode), x, y), outcome(ours.train(mode), x, y)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_gradient_is_exact(group_of_one: None) -> None:
    _, ours = pair(nn.BatchNorm2d)
    x = rand(3, 4, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ours.double()(x), (x,))


def test_large_means_keep_the_variance(group_of_one: None) -> None:
    """1000 +- 0.1: E[x^2] - E[x]^2 in float32 is wrong by a factor, in bf16 there is nothing left."""
    x = 1000 + 0.1 * rand(512, 4)
    mean, variance, count = moments_over_ranks(x)
    torch.testing.assert_close(variance.double(), x.double().var(0, correction=0), rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.double(), x.double().mean(0), rtol=1e-6, atol=0)
    assert int(count) == 512
    naive = x.square().mean(0) - x.mean(0).square()
    assert float((naive / variance - 1).abs().max()) > 0.1


def test_bf16_in_bf16_out_with_float32_moments(group_of_one: None) -> None:
    _, ours = pair(nn.BatchNorm3d)
    x = (50 + rand(4, 4, 5, 5, 5)).bfloat16()
    y = rand(*x.shape, seed=3).bfloat16().float()  # the gradient that arrives is bf16
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(ours, x, y)
    _, reference = pair(nn.BatchNorm3d)
    expected = outcome(reference, x.double(), y)
    assert (found["output"].dtype, found["input"].dtype) == (torch.bfloat16, torch.bfloat16)
    assert found["weight"].dtype == torch.float32
    for key in ("running_mean", "running_var", "weight", "bias"):
        torch.testing.assert_close(found[key].double(), expected[key].double(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["output"].double(), expected["output"], rtol=5e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["resnet10_3d", "timm/resnet18", "timm/efficientnet_b0", "timm/vit_tiny_patch16_224"])
def test_conversion_of_networks_keeps_names_and_types(name: str, group_of_one: None) -> None:
    config = ModelConfig.model_validate(
        {"name": name, **({"width": 0.125, "stem_pool": False} if "3d" in name else {})}
    )
    before, after = build(config), build(config)
    after.load_state_dict(before.state_dict())
    convert_batchnorm(after)
    convert_batchnorm(after)  # twice is once
    assert list(after.state_dict()) == list(before.state_dict())
    norms = [module for module in after.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(type(norm).__module__ == batchnorm.__name__ for norm in norms)
    assert len(norms) == {"resnet10_3d": 12, "timm/resnet18": 20, "timm/efficientnet_b0": 49}.get(name, 0)
    images = rand(2, 1, *(32,) * 3) if name.endswith("3d") else rand(2, 1, 224, 224)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        expected = before.train()(images)
        torch.manual_seed(0)
        found = after.train()(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    before.load_state_dict(after.state_dict())


def test_reestimation_is_that_of_torch(group_of_one: None) -> None:
    config = ModelConfig(name="resnet10_3d", width=0.125, stem_pool=False)
    before, after = build(config), build(config)
    after.load_state_dict(before.state_dict())
    convert_batchnorm(after)
    batches = [rand(3, 1, 32, 32, 32, seed=seed) for seed in range(3)]
    for backbone in (before, after):
        reestimate_batchnorm(backbone, batches)
    for key, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_value_per_channel_is_refused(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair(nn.BatchNorm3d)
    monkeypatch.setattr(batchnorm, "num_ranks", lambda: ranks)
    with pytest.raises(UserError, match="BatchNorm got one value per channel in the whole batch"):
        ours(rand(1, 4, 1, 1, 1))
    assert int(ours.num_batches_tracked) == 0


def test_foreign_batchnorm_is_named_and_nothing_is_changed() -> None:
    class Ghost(nn.BatchNorm1d):
        pass

    network = nn.Sequential(nn.BatchNorm1d(3), Ghost(3))
    with pytest.raises(UserError, match=r"^Ghost: moments over all ranks are not possible"):
        convert_batchnorm(network)
    assert type(network[0]) is nn.BatchNorm1d
