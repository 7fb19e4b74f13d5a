"""Micro-batches are the whole batch: loss and gradients, with random numbers replayed and statistics moved once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lejepa_med
from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.batchnorm import one_value_refused
from lejepa_med.config import ModelConfig, ProjectorConfig
from lejepa_med.config.pretraining import TrainConfig
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.objective import LeJEPALoss
from lejepa_med.training import micro_batch as module
from lejepa_med.training.log import read_log
from lejepa_med.training.model import Pretrainer

SAMPLES = 16
MODELS = {
    "resnet, group": ModelConfig(name="resnet10_3d", width=0.125, stem_pool=False, norm="group"),
    "vit": ModelConfig(name="vit_tiny_3d", patch_size=8),
    "resnet, batch": ModelConfig(name="resnet10_3d", width=0.125, stem_pool=False, norm="batch"),
    "timm": ModelConfig(name="timm/vit_tiny_patch16_224"),
}
EXACT = [name for name in MODELS if "batch" not in name]


class Noisy(Backbone):
    """Any backbone with dropout on its input and on its features."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(0.3)
        self.dim, self.token_dim, self.spatial_dims = inner.dim, inner.token_dim, inner.spatial_dims

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.inner(self.dropout(images)))

    def tokens(self, images: Tensor) -> Any:
        raise NotImplementedError

    def intermediate(self, images: Tensor, last: int = 2) -> Any:
        raise NotImplementedError


def make(name: str, micro_batch: int | None, dropout: bool = False) -> Pretrainer:
    torch.manual_seed(0)
    backbone = build(MODELS[name])
    return Pretrainer(Noisy(backbone) if dropout else backbone, ProjectorConfig(hidden=16, dim=8), micro_batch).train()


def views(name: str) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(0)
    shapes = [(2, 32), (1, 16)] if name == "timm" else [(2, 16), (3, 8)]
    axes = 2 if name == "timm" else 3
    return [torch.rand(count, SAMPLES, 1, *(side,) * axes, generator=drawn) for count, side in shapes]


def gradients(model: Pretrainer, images: list[Tensor], bf16: bool = False) -> dict[str, Tensor]:
    """Losses, projections and every gradient of one step."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        features, projections = model(images)
    loss = LeJEPALoss(num_slices=32)(projections, num_global=2, step=5)
    loss.total.backward()
    found = {"total": loss.total.detach(), "sigreg": loss.sigreg.detach(), "features": features.detach()}
    return found | {key: value.grad for key, value in model.named_parameters() if value.grad is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(value.norm()) for key, value in expected.items() if "weight" in key)
    for key, value in expected.items():
        scale = max(float(value.float().norm()), 1e-2 * largest)
        assert float((found[key] - value).float().norm()) / scale < tolerance, key


def without_forgetting(function: Any, group: Tensor, **_: object) -> Tensor:
    """`checkpoint` that keeps the graph: the plain reference with the same draws of random numbers."""
    result: Tensor = function(group)
    return result


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("micro_batch", [2, 5])
def test_micro_batches_equal_the_whole_batch(name: str, micro_batch: int) -> None:
    """2 of 16: an eighth; 5: parts of different sizes."""
    images = views(name)
    assert_equal(gradients(make(name, micro_batch), images), gradients(make(name, None), images), 1e-5)


def test_another_group_than_the_first_is_not_ignored() -> None:
    """The comparison can fail: one small view of one sample is changed."""
    images = views("vit")
    expected = gradients(make("vit", None), images)
    images[1][2, 13] += 0.5
    with pytest.raises(AssertionError):
        assert_equal(gradients(make("vit", 2), images), expected, 1e-5)


@pytest.mark.parametrize("name", ["resnet, group", "resnet, batch"])
@pytest.mark.parametrize("bf16", [False, True])
def test_with_dropout_running_again_is_the_same_run(name: str, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against micro-batches that keep their graph: the draws are replayed, also of the state after the step."""
    model, plain = make(name, 2, dropout=True), make(name, 2, dropout=True)
    found = gradients(model, views(name), bf16)
    state = torch.get_rng_state()
    monkeypatch.setattr(module, "checkpoint", without_forgetting)
    expected = gradients(plain, views(name), bf16)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(found, expected, 1e-5)
    for key, value in plain.named_buffers():
        assert torch.equal(dict(model.named_buffers())[key], value), key


def test_without_replay_dropout_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail."""
    original = module.checkpoint
    monkeypatch.setattr(module, "checkpoint", lambda *a, **k: original(*a, **k, preserve_rng_state=False))
    found = gradients(make("resnet, group", 2, dropout=True), views("resnet, group"))
    monkeypatch.setattr(module, "checkpoint", without_forgetting)
    expected = gradients(make("resnet, group", 2, dropout=True), views("resnet, group"))
    with pytest.raises(AssertionError):
        assert_equal(found, expected, 1e-5)


def test_running_statistics_move_once_per_micro_batch() -> None:
    model = make("resnet, batch", 4)
    norm = model.backbone.get_submodule("net.bn1")
    model(views("resnet, batch"))
    after_forward = {key: value.clone() for key, value in norm.named_buffers()}
    assert int(after_forward["num_batches_tracked"]) == 2 * 4
    gradients(make("resnet, batch", 4), views("resnet, batch"))
    fresh = make("resnet, batch", 4)
    gradients(fresh, views("resnet, batch"))
    for key, value in fresh.backbone.get_submodule("net.bn1").named_buffers():
        assert torch.equal(value, after_forward[key]), key
    assert norm.momentum == fresh.backbone.get_submodule("net.bn1").momentum == 0.1


def written_out(model: Pretrainer, images: list[Tensor], micro_batch: int, bf16: bool) -> dict[str, Tensor]:
    """Gradient caching by hand: features, the gradient at them, then every micro-batch once more, summed in float64."""
    autocast = {"device_type": "cpu", "dtype": torch.bfloat16, "enabled": bf16}
    parts = [(group, start) for group in images for start in range(0, SAMPLES, micro_batch)]

    def embed(group: Tensor, start: int) -> Tensor:
        part = group[:, start : start + micro_batch]
        with torch.autocast(**autocast):
            return model.backbone(part.flatten(0, 1)).unflatten(0, part.shape[:2])

    with torch.no_grad():
        features = torch.cat([torch.cat([embed(g, start) for g, start in parts if g is group], 1) for group in images])
    features.requires_grad_()
    with torch.autocast(**autocast):
        projections = model.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    LeJEPALoss(num_slices=32)(projections, num_global=2, step=5).total.backward()
    assert features.grad is not None
    sums = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in model.backbone.named_parameters()}
    for group, start in parts:
        first = 0 if group is images[0] else len(images[0])
        gradient = features.grad[first : first + len(group), start : start + micro_batch]
        again = embed(group, start)
        for total, term in zip(
            sums.values(), torch.autograd.grad(again, model.backbone.parameters(), gradient), strict=True
        ):
            total += term
    return {f"backbone.{key}": value for key, value in sums.items()}


@pytest.mark.parametrize("name", ["resnet, group", "resnet, batch", "vit"])
@pytest.mark.parametrize("bf16", [False, True])
def test_it_is_gradient_caching(name: str, bf16: bool) -> None:
    """In bf16 too: terms of micro-batches add up in float32, which autocast's cache of weights would prevent (1 %)."""
    expected = written_out(make(name, None), views(name), 2, bf16)
    found = gradients(make(name, 2), views(name), bf16)
    assert_equal({key: found[key] for key in expected}, expected, 1e-5)


def kept_bytes(model: Pretrainer, images: list[Tensor]) -> int:
    """Of the tensors that autograd keeps for the backward pass; each storage once, weights and views not counted."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *images)}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in known)


def test_activations_are_forgotten() -> None:
    """Between forward and backward only what the projector needs is kept: the backbone's share is gone."""
    whole, parted = (kept_bytes(make("resnet, group", size), views("resnet, group")) for size in (None, 2))
    assert parted < whole / 8


@pytest.mark.parametrize("micro_batch", [SAMPLES, SAMPLES + 1])
def test_a_micro_batch_as_large_as_the_batch_is_the_batch(micro_batch: int) -> None:
    found = gradients(make("resnet, batch", micro_batch), views("resnet, batch"))
    expected = gradients(make("resnet, batch", None), views("resnet, batch"))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


class Last(Noisy):
    """A network whose BatchNorm sees one value per image: of one image it has no variance."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self.norm = nn.BatchNorm1d(inner.dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.inner(images))


def test_one_value_per_channel_is_one_sentence() -> None:
    model = Pretrainer(Last(build(MODELS["resnet, group"])), ProjectorConfig(hidden=8, dim=4), 1).train()
    with pytest.raises(UserError, match=r"^BatchNorm got one value per channel in the whole batch") as caught:
        model([torch.rand(1, 4, 1, 16, 16, 16)])
    assert "train.micro_batch" in str(caught.value)


def test_other_mistakes_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="expected 5D input"), one_value_refused():
        nn.BatchNorm3d(1)(torch.rand(2, 1))


class Ramps(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Smooth volumes of different brightness."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        noise = torch.rand(1, 6, 6, 6, generator=torch.Generator().manual_seed(index))
        return {"image": nn.functional.interpolate(noise[None], size=(20, 20, 20))[0] * (0.3 + 0.1 * index)}


def pretrain(out: Path, micro_batch: int | None, **options: Any) -> list[dict[str, Any]]:
    lejepa_med.pretrain(
        Ramps(),
        MODELS["resnet, group"],
        out,
        projector={"hidden": 16, "dim": 8},
        objective={"num_slices": 16},
        views={"num_local": 2, "global_size": [16] * 3, "local_size": [8] * 3, "min_body": 0.0},
        train={"steps": 4, "batch_size": 6, "precision": "float32", "micro_batch": micro_batch},
        optim={"lr": 1e-4},
        **options,
    )
    return read_log(out, "metrics")


def test_a_run_in_micro_batches_is_the_run(tmp_path: Path) -> None:
    expected, found = pretrain(tmp_path / "whole", None), pretrain(tmp_path / "parts", 2)
    assert len(found) == len(expected) == 4
    for step, (before, after) in enumerate(zip(expected, found, strict=True)):
        for key in ("total", "prediction", "sigreg", "grad_norm"):
            # AdamW's first steps have the size of the learning rate whatever the gradient's: rounding grows quickly.
            assert after[key] == pytest.approx(before[key], rel=2e-2 if step else 1e-5), key
    with pytest.raises(ConfigError, match=r"cannot resume with another train\.micro_batch"):
        pretrain(tmp_path / "parts", 3, resume=True)


def test_settings_that_make_no_sense_are_refused() -> None:
    assert TrainConfig().micro_batch is None
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        TrainConfig(micro_batch=0)
