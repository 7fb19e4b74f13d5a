"""Fine-tuning learns what is plain to see, is the same twice, and leaves the network it started from alone."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from lejepa_med.backbones import build
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.config.evaluation import FinetuneRecipe, LoraRecipe, Timm2dEncoder
from lejepa_med.config.pretraining import ModelConfig
from lejepa_med.data.inference import windows
from lejepa_med.evaluation.classifier import Classifier
from lejepa_med.evaluation.criteria import Criterion, Members, TrainedTask
from lejepa_med.evaluation.finetune import Tuner, finetune, parameter_groups, shifted
from lejepa_med.evaluation.metrics import r2, scores
from lejepa_med.evaluation.slices import colour_input, plane_slices
from lejepa_med.evaluation.window_store import WindowStore

from .conftest import SPEC, Archive, tiny_backbone

CPU = torch.device("cpu")


def task_of(archive: Archive, column: str, kind: str = "") -> tuple[TrainedTask, list[Members], np.ndarray]:
    """The first 36 rows train; `kind` ordinal: thirds of the radius; multilabel: bright, and whether it is large."""
    truth, train = archive.truth, 36
    bright, radius = (truth["bright"] == "yes").to_numpy(np.int64), truth["radius"].to_numpy()
    kind = kind or ("classification" if column == "bright" else "regression")
    target = {
        "classification": bright,
        "regression": radius,
        "ordinal": np.digitize(radius, [4.3, 5.7]),
        "multilabel": np.stack([bright, radius > 5], 1).astype(np.float64),
    }[kind]
    classes = {"classification": 2, "regression": 0, "ordinal": 3, "multilabel": 2}[kind]
    strata = bright if kind != "ordinal" else target.astype(np.int64)
    members = [(key,) for key in truth["series_key"]]
    groups = tuple(truth["patient_key"][:train])
    task = TrainedTask(kind, tuple(members[:train]), target[:train], classes, strata[:train], groups, seed=0)
    return task, members[train:], target[train:]


def tuner_of(archive: Archive, recipe: FinetuneRecipe, seed: int = 0, lora: LoraRecipe | None = None) -> Tuner:
    store = WindowStore(archive.cache, lambda volume: windows(volume, SPEC.inference).images)
    return Tuner(tiny_backbone(seed), store, recipe, CPU, lora)


def test_classes_are_learned(archive: Archive) -> None:
    task, test, truth = task_of(archive, "bright")
    recipe = FinetuneRecipe(epochs=20, min_steps=0, batch_size=12, lr=3e-3, precision="float32", grid=(1.0,))
    tuner = tuner_of(archive, recipe)
    before = {key: value.clone() for key, value in tuner.backbone.state_dict().items()}
    found, choice = finetune(tuner, task, test)
    assert found.shape == (len(test), 2) and found.sum(1) == pytest.approx(1, abs=1e-5)
    assert scores("classification", truth, found)["balanced_accuracy"] == 1.0
    assert all(torch.equal(value, before[key]) for key, value in tuner.backbone.state_dict().items())
    assert choice.tuned == 1


def test_values_are_learned_in_their_own_unit(archive: Archive) -> None:
    task, test, truth = task_of(archive, "radius")
    recipe = FinetuneRecipe(
        epochs=25, min_steps=0, batch_size=12, lr=3e-3, shift_voxels=1, precision="float32", grid=(1.0,)
    )
    found, _ = finetune(tuner_of(archive, recipe), task, test)
    assert r2(truth, found, np.ones((1, len(truth))))[0] > 0.8


def test_a_useless_rate_is_not_chosen_and_few_labels_choose_nothing(archive: Archive) -> None:
    task, test, truth = task_of(archive, "bright")
    recipe = FinetuneRecipe(epochs=20, min_steps=0, batch_size=12, lr=3e-3, precision="float32", grid=(1e-6, 1.0))
    found, choice = finetune(tuner_of(archive, recipe), task, test)
    assert (choice.tuned, choice.chosen["lr"]) == (2, 3e-3)
    assert scores("classification", truth, found)["balanced_accuracy"] == 1.0
    few = task.part(np.arange(8))
    _, choice = finetune(tuner_of(archive, recipe.model_copy(update={"epochs": 1})), few, test)
    assert (choice.tuned, choice.chosen["lr"]) == (1, pytest.approx(3e-9))


def test_lora_learns_and_trains_little(archive: Archive) -> None:
    task, test, truth = task_of(archive, "bright")
    recipe = FinetuneRecipe(epochs=20, min_steps=0, batch_size=12, lr=1e-2, precision="float32", grid=(1.0,))
    tuner = tuner_of(archive, recipe, lora=LoraRecipe(rank=2))
    before = {key: value.clone() for key, value in tuner.backbone.state_dict().items()}
    found, choice = finetune(tuner, task, test)
    assert scores("classification", truth, found)["balanced_accuracy"] >= 0.9
    assert all(torch.equal(value, before[key]) for key, value in tuner.backbone.state_dict().items())
    full, _ = finetune(dataclasses.replace(tuner, lora=None), task, test)
    assert choice.chosen["trained_parameters"] < sum(p.numel() for p in tuner.backbone.parameters()) / 2
    assert full.shape == found.shape


def test_same_seed_same_result(archive: Archive) -> None:
    task, test, _ = task_of(archive, "bright")
    recipe = FinetuneRecipe(epochs=1, min_steps=3, batch_size=8, precision="float32")
    tuner = tuner_of(archive, recipe)
    torch.manual_seed(1)
    first, _ = finetune(tuner, task, test)
    drawn = torch.rand(1)
    again, _ = finetune(tuner, task, test)
    assert np.array_equal(first, again)
    other = dataclasses.replace(task, seed=1)
    assert not np.array_equal(first, finetune(tuner, other, test)[0])
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # the caller's random state is left alone


@pytest.fixture(scope="module")
def slices(archive: Archive) -> Tuner:
    """A 2D network on three planes of a volume."""
    torch.manual_seed(0)
    backbone = build(ModelConfig(name="timm/resnet10t", in_channels=3))
    config = Timm2dEncoder(model="resnet10t", image_size=32)
    store = WindowStore(archive.cache, lambda volume: torch.cat(plane_slices(volume, config)), are_slices=True)
    recipe = FinetuneRecipe(
        epochs=4, min_steps=0, batch_size=12, lr=1e-2, precision="float32", grid=(1.0,), slices_per_step=3
    )
    return Tuner(backbone, store, recipe, CPU, None, partial(colour_input, backbone))


@pytest.mark.parametrize("lora", [None, LoraRecipe()])
def test_a_2d_network_learns_from_drawn_slices_of_volumes(
    archive: Archive, slices: Tuner, lora: LoraRecipe | None
) -> None:
    task, test, truth = task_of(archive, "bright")
    found, _ = finetune(dataclasses.replace(slices, lora=lora), task, test)
    assert scores("classification", truth, found)["auroc"] > 0.9


def test_passes_of_a_few_volumes_add_up_to_the_gradient_of_the_batch(archive: Archive, slices: Tuner) -> None:
    torch.manual_seed(0)
    model = Classifier(copy.deepcopy(slices.backbone).eval(), 2, slices=True, colour=slices.colour)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.pool.query)
    task, _, _ = task_of(archive, "bright")
    images, counts = slices.store.batch(task.members[:4])
    assert model.passes(counts) == [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)]
    assert model.passes([30, 30, 30]) == [slice(0, 2), slice(2, 3)]
    criterion = Criterion(task.kind, task.target, 2)
    wanted = criterion.encode(task.target[:4], CPU)
    criterion.loss(model(images, counts), wanted).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    pieces, weight = torch.split(images, counts), criterion.weights(wanted).sum()
    for part in model.passes(counts):
        outputs = model(torch.cat(pieces[part]), counts[part])
        (criterion.terms(outputs, wanted[part]).sum() / weight).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(model.predict(images, counts), model(images, counts).detach(), rtol=1e-3, atol=1e-5)


def test_slices_are_drawn_without_repeats_from_each_volume(archive: Archive, slices: Tuner) -> None:
    first, second = ((key,) for key in archive.truth["series_key"].iloc[:2])
    images, counts = slices.store.drawn([first, second], 5, np.random.default_rng(0))
    assert counts == [5, 5]
    for part, members in zip(torch.split(images, counts), (first, second), strict=True):
        same = (part[:, None] == slices.store.batch([members])[0][None]).flatten(2).all(-1)
        assert same.any(1).all() and same.int().argmax(1).diff().gt(0).all()
    both, counts = slices.store.batch([first + second])
    assert counts == [96] and len(both) == 96


def test_shift_moves_all_windows_of_a_volume_alike() -> None:
    images = torch.rand(5, 1, 6, 7, 8)
    images[1] = images[0]
    out = shifted(images, [2, 3], 2, np.random.default_rng(0))
    assert torch.equal(out[0], out[1])
    generator = np.random.default_rng(0)
    move = [int(generator.integers(-2, 3)) for _ in range(3)]
    rolled = torch.roll(images[0], move, (1, 2, 3))
    kept = out[0] != 0
    assert torch.equal(out[0][kept], rolled[kept])
    assert int(kept.sum()) == np.prod([side - abs(step) for side, step in zip((6, 7, 8), move, strict=True)])
    assert shifted(images, [2, 3], 0, generator) is images


def test_window_store_reads_again_beyond_its_limit(archive: Archive) -> None:
    cuts = []

    def cut(volume):
        cuts.append(volume.series_key)
        return torch.from_numpy(np.array(volume.array)).float()[None, None] / 255

    first, second = archive.truth["series_key"].iloc[:2]
    store = WindowStore(archive.cache, cut, limit_bytes=2 * 16**3)
    images, counts = store.batch([(first,), (second,), (first,), (second,)])
    assert counts == [1, 1, 1, 1] and torch.equal(images[1], images[3])
    assert cuts == [first, second, second]


def test_batchnorm_statistics_are_the_mean_over_batches() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)).train()
    batches = [torch.randn(8, 3) * 2 + 5, torch.randn(8, 3)]
    reestimate_batchnorm(network, batches)
    norm = network[0]
    assert torch.allclose(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0), atol=1e-5)
    assert norm.momentum == 0.1 and network.training and norm.training
    before = norm.running_mean.clone()
    reestimate_batchnorm(network, [])
    assert torch.equal(norm.running_mean, before)


def test_layers_learn_slower_towards_the_input() -> None:
    model = Classifier(tiny_backbone(), 2)
    recipe = FinetuneRecipe(lr=1.0, backbone_lr_factor=0.5, layer_decay=0.1)
    rate = {id(p): group["lr"] for group in parameter_groups(model, recipe) for p in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    assert {rate[id(p)] for p in model.head.parameters()} == {1.0}
    for name, parameter in model.backbone.named_parameters():
        stage = int(name[len("net.layer")]) if name.startswith("net.layer") else 0
        assert rate[id(parameter)] == pytest.approx(0.5 * 0.1 ** (4 - stage)), name
    plain = parameter_groups(model, FinetuneRecipe(lr=1.0, backbone_lr_factor=0.5))
    assert {(group["lr"], group["weight_decay"]) for group in plain} == {(1, 0.01), (1, 0), (0.5, 0.01), (0.5, 0)}
