"""What makes steps cheaper leaves what they compute, and the names of weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small_run
from torch import Tensor

from lejepa_med.backbones import Backbone, build
from lejepa_med.config import ModelConfig, ProjectorConfig
from lejepa_med.config.pretraining import TrainConfig
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.training.devices import choose_device, deterministic_kernels
from lejepa_med.training.log import read_log
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.speed import blocks_of, tune

NAMES = ("resnet10_3d", "vit_tiny_3d", "timm/resnet10t", "timm/vit_tiny_patch16_224")


def network(name: str) -> Backbone:
    torch.manual_seed(0)
    own = {"resnet10_3d": {"width": 0.125}, "vit_tiny_3d": {"patch_size": 8}}
    return build(ModelConfig.model_validate({"name": name, **own.get(name, {})}))


def gradients(backbone: Backbone) -> dict[str, Tensor]:
    """Of a step on two sizes of views, in training mode."""
    torch.manual_seed(1)
    model = Pretrainer(backbone, ProjectorConfig(hidden=8, dim=4)).train()
    large, small = (32, 16) if backbone.spatial_dims == 3 else (64, 32)
    drawn = torch.Generator().manual_seed(2)
    views = [torch.rand(2, 3, 1, *(side,) * backbone.spatial_dims, generator=drawn) for side in (large, small)]
    model(views)[1].square().mean().backward()
    return {key: value.grad for key, value in model.named_parameters() if value.grad is not None}


def close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> bool:
    assert one.keys() == other.keys() and len(one) > 10
    scale = max(float(value.norm()) for value in one.values())
    return all(float((other[key] - value).norm()) <= tolerance * scale for key, value in one.items())


@pytest.mark.parametrize("name", NAMES)
def test_channels_last(name: str) -> None:
    expected, tuned = gradients(network(name)), network(name)
    keys = list(tuned.state_dict())
    tune(tuned, TrainConfig(channels_last=True))
    last = [p for p in tuned.parameters() if p.ndim >= 4 and p.shape[1] > 1 and p[0, 0].numel() > 1]
    assert all(p.stride(1) == 1 for p in last)
    assert bool(last) == ("resnet" in name), "ViTs of one channel have no convolution that could differ"
    assert close(expected, gradients(tuned), 1e-4)
    assert list(tuned.state_dict()) == keys


@pytest.mark.parametrize("name", ["vit_tiny_3d", "timm/vit_tiny_patch16_224"])
def test_activation_checkpointing(name: str) -> None:
    expected, tuned = gradients(network(name)), network(name)
    keys, blocks = list(tuned.state_dict()), blocks_of(tuned)
    tune(tuned, TrainConfig(activation_checkpointing=True))
    assert len(blocks) == 12 and list(tuned.state_dict()) == keys
    assert close(expected, gradients(tuned), 1e-6)
    kept, all_kept = saved_bytes(tuned), saved_bytes(network(name))
    assert kept < all_kept / 4, (kept, all_kept)
    with pytest.raises(ConfigError, match="ResNet3d has no blocks to run again"):
        tune(network("resnet10_3d"), TrainConfig(activation_checkpointing=True))
    with pytest.raises(ConfigError, match=r"blocks of ResEnc3d hold BatchNorm, .* model\.norm: group"):
        tune(
            build(ModelConfig(name="resenc_l_3d", width=0.25, norm="batch")), TrainConfig(activation_checkpointing=True)
        )


def saved_bytes(backbone: Backbone) -> int:
    """What autograd keeps of a forward pass besides the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.rand(2, 1, *(32,) * backbone.spatial_dims)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = backbone.train()(images)
    assert features.requires_grad
    return sum(kept.values())


COMPILED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_speed import TrainConfig, close, gradients, network, tune
expected, tuned = gradients(network("vit_tiny_3d")), network("vit_tiny_3d")
keys = list(tuned.state_dict())
tune(tuned, TrainConfig(compile=True))
assert close(expected, gradients(tuned), 1e-3)
assert list(tuned.state_dict()) == keys
"""


@pytest.mark.long
def test_compile() -> None:
    """It takes a minute: C++ code is built for both sizes of views. In a process without the type checks of the tests,
    which draw random items that torch.compile cannot trace."""
    subprocess.run([sys.executable, "-c", COMPILED, str(Path(__file__).parent)], check=True)


@pytest.fixture
def settings_of_torch() -> Iterator[None]:
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    if before is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("settings_of_torch")
def test_deterministic_kernels_only_inside(tmp_path: Path) -> None:
    with deterministic_kernels(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    for name in ("one", "two"):
        small_run(tmp_path / name, train={"deterministic": True})
    lines: list[list[dict[str, Any]]] = [read_log(tmp_path / name, "metrics") for name in ("one", "two")]
    assert lines[0] == lines[1] and len(lines[0]) == 4


def test_a_run_with_all_of_it(tmp_path: Path) -> None:
    """Resumed, too: the layout of weights and moments survives a checkpoint."""
    train = {"channels_last": True, "steps": 6, "checkpoint_every": 3}
    whole, plain = (
        small_run(tmp_path / "whole", train=train).path,
        small_run(tmp_path / "plain", train={"steps": 6}).path,
    )
    for before, after in zip(read_log(plain, "metrics"), read_log(whole, "metrics"), strict=True):
        assert after["total"] == pytest.approx(before["total"], rel=1e-3)
    (whole / "checkpoints" / "latest").write_text("step_3.pt")
    (whole / "DONE").unlink()
    expected = (whole / "metrics.jsonl").read_bytes(), (whole / "backbone.safetensors").read_bytes()
    assert small_run(whole, resume=True, train=train).finished
    assert expected == ((whole / "metrics.jsonl").read_bytes(), (whole / "backbone.safetensors").read_bytes())


def test_devices_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="every rank needs a GPU of its own"):
        choose_device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UserError, match="rank 3 of this node has no GPU, there are 2"):
        choose_device("auto")
