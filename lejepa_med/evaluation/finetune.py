"""Full fine-tuning of a backbone with a linear head: one fixed recipe for pretrained and fresh weights alike.

No validation set and no early stopping: every label of the budget trains, and no encoder is tuned more than another.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.depth import layer_numbers
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.config.evaluation import FinetuneRecipe
from lejepa_med.evaluation.device import use_bf16
from lejepa_med.evaluation.metrics import Array
from lejepa_med.evaluation.window_store import WindowStore


@dataclass(frozen=True)
class FinetuneTask:
    """`series` and `target` of the labelled subset; `classes` is the number of classes, 0 for a regression."""

    series: tuple[str, ...]
    target: NDArray[np.int64] | NDArray[np.float64]
    classes: int
    seed: int


class Classifier(nn.Module):
    """A linear head on the mean embedding of a volume's windows; zero at the start."""

    def __init__(self, backbone: Backbone, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, images: Float[Tensor, "window channel *size"], counts: Sequence[int]
    ) -> Float[Tensor, "volume output"]:
        features = torch.split(self.backbone(images), list(counts))
        outputs: Tensor = self.head(torch.stack([rows.mean(0) for rows in features]))
        return outputs


def finetune(
    backbone: Backbone,
    store: WindowStore,
    task: FinetuneTask,
    test: Sequence[str],
    recipe: FinetuneRecipe,
    device: torch.device,
) -> Array:
    """Scores of the test series after training on a copy of `backbone`: `[row, class]` or `[row]`, as probes give."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(task.seed)
        model = Classifier(copy.deepcopy(backbone), task.classes or 1).to(device)
        target, mean, std = _prepared(task)
        bf16 = use_bf16(recipe.precision, device)
        _train(model, store, task, target.to(device), recipe, bf16)
        batches = (store.batch(task.series[i : i + 32])[0] for i in range(0, len(task.series), 32))
        reestimate_batchnorm(model.backbone, (batch for batch in batches if len(batch) > 1))
        outputs = _predict(model.eval(), store, test, device, bf16).to(torch.float64)
    if task.classes:
        return outputs.softmax(-1).numpy()
    return (outputs[:, 0] * std + mean).numpy()


def _prepared(task: FinetuneTask) -> tuple[Tensor, float, float]:
    if task.classes:
        return torch.from_numpy(task.target.astype(np.int64)), 0.0, 1.0
    mean, std = float(task.target.mean()), float(task.target.std()) or 1.0
    return torch.from_numpy((task.target - mean) / std).to(torch.float32), mean, std


def _train(
    model: Classifier, store: WindowStore, task: FinetuneTask, target: Tensor, recipe: FinetuneRecipe, bf16: bool
) -> None:
    generator = np.random.default_rng([task.seed, 1])
    per_epoch = max(1, min(round(len(target) / recipe.batch_size), len(target) // 2))
    steps = max(recipe.epochs * per_epoch, recipe.min_steps)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    class_weight = None
    if task.classes:
        present = torch.bincount(target, minlength=task.classes)
        class_weight = len(target) / (present.clamp(min=1) * (present > 0).sum()).to(torch.float32)
    model.train()
    for rows in _batches(generator, len(target), per_epoch, steps):
        images, counts = store.batch([task.series[row] for row in rows])
        images = shifted(images, counts, recipe.shift_voxels, generator).to(target.device)
        with torch.autocast(target.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = model(images, counts)
        outputs, wanted = outputs.float(), target[torch.from_numpy(rows).to(target.device)]
        if task.classes:
            loss = functional.cross_entropy(outputs, wanted, weight=class_weight)
        else:
            loss = functional.mse_loss(outputs[:, 0], wanted)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def _batches(generator: np.random.Generator, rows: int, per_epoch: int, steps: int) -> Iterator[NDArray[np.int64]]:
    """Near-equal parts of a new permutation per epoch; never a single row, which BatchNorm cannot use."""
    done = 0
    while True:
        for batch in np.array_split(generator.permutation(rows), per_epoch):
            if done == steps:
                return
            yield batch
            done += 1


def parameter_groups(model: Classifier, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """Head, then the backbone by layer: the last learns at `backbone_lr_factor` of the head, each before it slower."""
    layer = layer_numbers(model.backbone)
    rate = recipe.lr * recipe.backbone_lr_factor
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.head.parameters():
        groups.setdefault((recipe.lr, parameter.ndim > 1), []).append(parameter)
    for name, parameter in model.backbone.named_parameters():
        lr = rate * recipe.layer_decay ** (max(layer.values()) - layer[name])
        groups.setdefault((lr, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": recipe.weight_decay if decayed else 0.0}
        for (lr, decayed), parameters in groups.items()
    ]


def shifted(
    images: Float[Tensor, "window channel *size"], counts: Sequence[int], most: int, generator: np.random.Generator
) -> Float[Tensor, "window channel *size"]:
    """Every volume moved by up to `most` voxels along each axis, all its windows alike; air moves in."""
    if most == 0:
        return images
    out = torch.zeros_like(images)
    start = 0
    for count in counts:
        source: list[slice] = [slice(start, start + count), slice(None)]
        target = list(source)
        for side in images.shape[2:]:
            shift = int(generator.integers(-most, most + 1))
            source.append(slice(max(0, -shift), side - max(0, shift)))
            target.append(slice(max(0, shift), side - max(0, -shift)))
        out[tuple(target)] = images[tuple(source)]
        start += count
    return out


@torch.no_grad()
def _predict(
    model: Classifier, store: WindowStore, series: Sequence[str], device: torch.device, bf16: bool
) -> Float[Tensor, "volume output"]:
    outputs = []
    for start in range(0, len(series), 16):
        images, counts = store.batch(series[start : start + 16])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs.append(model(images.to(device), counts).float().cpu())
    return torch.cat(outputs)
