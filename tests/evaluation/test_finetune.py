"""Fine-tuning learns what is plain to see, is the same twice, and leaves the network it started from alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.config.evaluation import FinetuneRecipe
from lejepa_med.evaluation.encoders import window_store
from lejepa_med.evaluation.finetune import Classifier, FinetuneTask, finetune, parameter_groups, shifted
from lejepa_med.evaluation.metrics import r2, scores
from lejepa_med.evaluation.window_store import WindowStore

from .conftest import Archive, tiny_backbone

CPU = torch.device("cpu")


def task_of(archive: Archive, column: str) -> tuple[FinetuneTask, list[str], np.ndarray]:
    truth, train = archive.truth, 36
    target = (truth["bright"] == "yes").to_numpy(np.int64) if column == "bright" else truth["radius"].to_numpy()
    series = truth["series_key"].tolist()
    task = FinetuneTask(tuple(series[:train]), target[:train], 2 if column == "bright" else 0, seed=0)
    return task, series[train:], target[train:]


def test_classes_are_learned(archive: Archive) -> None:
    backbone = tiny_backbone()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    task, test, truth = task_of(archive, "bright")
    recipe = FinetuneRecipe(epochs=20, min_steps=0, batch_size=12, lr=3e-3, precision="float32")
    found = finetune(backbone, window_store(archive.cache, backbone), task, test, recipe, CPU)
    assert found.shape == (len(test), 2) and found.sum(1) == pytest.approx(1, abs=1e-5)
    assert scores("classification", truth, found)["balanced_accuracy"] == 1.0
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_values_are_learned_in_their_own_unit(archive: Archive) -> None:
    backbone = tiny_backbone()
    task, test, truth = task_of(archive, "radius")
    recipe = FinetuneRecipe(epochs=25, min_steps=0, batch_size=12, lr=3e-3, shift_voxels=1, precision="float32")
    found = finetune(backbone, window_store(archive.cache, backbone), task, test, recipe, CPU)
    assert r2(truth, found, np.ones((1, len(truth))))[0] > 0.8


def test_same_seed_same_result(archive: Archive) -> None:
    backbone = tiny_backbone()
    store = window_store(archive.cache, backbone)
    task, test, _ = task_of(archive, "bright")
    recipe = FinetuneRecipe(epochs=1, min_steps=3, batch_size=8, precision="float32")
    torch.manual_seed(1)
    first = finetune(backbone, store, task, test, recipe, CPU)
    drawn = torch.rand(1)
    again = finetune(backbone, store, task, test, recipe, CPU)
    assert np.array_equal(first, again)
    other = FinetuneTask(task.series, task.target, task.classes, seed=1)
    assert not np.array_equal(first, finetune(backbone, store, other, test, recipe, CPU))
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # the caller's random state is left alone


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
    images, counts = store.batch([first, second, first, second])
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
