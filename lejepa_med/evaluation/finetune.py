"""Fine-tuning of a backbone with a new head, in full or by LoRA: one recipe for pretrained and fresh weights alike.

Factors on the learning rate (`finetune.grid`) are compared on a validation share of the budget, the same for every
encoder; then all labels of the budget train. Below five labels per class the first factor serves. No early stopping.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.depth import layer_numbers
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.config.evaluation import FinetuneRecipe, LoraRecipe
from lejepa_med.errors import UserError
from lejepa_med.evaluation.adapters import add_adapters
from lejepa_med.evaluation.batches import batches_per_epoch, epochs_of_batches
from lejepa_med.evaluation.classifier import Classifier, Colouring
from lejepa_med.evaluation.criteria import Choice, Criterion, Members, TrainedTask, error, validation_share
from lejepa_med.evaluation.device import use_bf16
from lejepa_med.evaluation.metrics import Array
from lejepa_med.evaluation.window_store import WindowStore

_NORM_SAMPLES = 32


@dataclass(frozen=True)
class Tuner:
    """What fine-tuning starts from and how it goes; `lora` in place of training all weights.

    `colour` turns the windows of `store` into what the backbone sees.
    """

    backbone: Backbone
    store: WindowStore
    recipe: FinetuneRecipe
    device: torch.device
    lora: LoraRecipe | None = None
    colour: Colouring | None = None


def finetune(tuner: Tuner, task: TrainedTask, test: Sequence[Members]) -> tuple[Array, Choice]:
    """Scores of the test samples after training on a copy of the backbone, as probes give them."""
    device, grid = tuner.device, tuner.recipe.grid
    factor, tuned = grid[0], 1
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        share = validation_share(task) if len(grid) > 1 else None
        if share is not None:
            fit, held = (task.part(rows) for rows in share)
            errors = [_validation_error(tuner, fit, held, one) for one in grid]
            factor, tuned = grid[int(np.argmin(errors))], len(grid)
        scores, trained = _fitted(tuner, task, test, factor)
    return scores, Choice(tuned, {"lr": tuner.recipe.lr * factor, "trained_parameters": float(trained)})


class _DivergedError(UserError):
    """Training ended in predictions that are no numbers."""


def _validation_error(tuner: Tuner, fit: TrainedTask, held: TrainedTask, factor: float) -> float:
    """Infinite where training with that factor diverges: another factor is chosen."""
    try:
        return error(held.kind, held.target, _fitted(tuner, fit, held.members, factor)[0])
    except _DivergedError:
        return math.inf


def _fitted(tuner: Tuner, task: TrainedTask, test: Sequence[Members], factor: float) -> tuple[Array, int]:
    """Scores after training with the learning rates times `factor`, and how many parameters were trained."""
    torch.manual_seed(task.seed)
    backbone, recipe = copy.deepcopy(tuner.backbone), tuner.recipe.model_copy(update={"lr": tuner.recipe.lr * factor})
    criterion = Criterion(task.kind, task.target, task.classes)
    model = Classifier(backbone, criterion.outputs, slices=tuner.store.are_slices, colour=tuner.colour)
    adapters = None if tuner.lora is None else add_adapters(backbone, tuner.lora)
    model = model.to(tuner.device)
    if adapters is None:
        groups = parameter_groups(model, recipe)
    else:
        assert tuner.lora is not None
        groups = [*_head_groups(model, recipe), {"params": adapters, "lr": recipe.lr * tuner.lora.lr_factor}]
    bf16 = use_bf16(recipe.precision, tuner.device)
    _train(model, tuner, task, criterion, torch.optim.AdamW(groups, weight_decay=recipe.weight_decay))
    _renormalise(model, tuner, task)
    outputs = _predict(model.eval(), tuner.store, test, tuner.device, bf16)
    if not outputs.isfinite().all():
        raise _DivergedError("fine-tuning diverged: predictions are no numbers; try a lower lr")
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    return criterion.scores(outputs), trained


def _train(
    model: Classifier, tuner: Tuner, task: TrainedTask, criterion: Criterion, optimizer: torch.optim.Optimizer
) -> None:
    generator, recipe = np.random.default_rng([task.seed, 1]), tuner.recipe
    wanted = criterion.encode(task.target, tuner.device)
    steps = max(recipe.epochs * batches_per_epoch(len(wanted), recipe.batch_size), recipe.min_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    bf16 = use_bf16(recipe.precision, tuner.device)
    model.train()
    for rows in epochs_of_batches(generator, len(wanted), recipe.batch_size, steps):
        images, counts = tuner.store.drawn([task.members[row] for row in rows], recipe.slices_per_step, generator)
        images = shifted(images, counts, recipe.shift_voxels, generator)
        target = wanted[torch.from_numpy(rows).to(tuner.device)]
        weight = criterion.weights(target).sum().clamp(min=1e-12)
        optimizer.zero_grad(set_to_none=True)
        pieces = torch.split(images, counts)
        for part in model.passes(counts):
            with torch.autocast(tuner.device.type, dtype=torch.bfloat16, enabled=bf16):
                outputs = model(torch.cat(pieces[part]).to(tuner.device), counts[part])
            torch.autograd.backward(criterion.terms(outputs.float(), target[part]).sum() / weight)
        optimizer.step()
        schedule.step()


def _renormalise(model: Classifier, tuner: Tuner, task: TrainedTask) -> None:
    """BatchNorm statistics of the trained weights, on training samples as they are tested."""
    generator, most = np.random.default_rng([task.seed, 3]), tuner.recipe.slices_per_step
    at_once = max(1, 64 // most) if tuner.store.are_slices else _NORM_SAMPLES
    starts = range(0, len(task.members), at_once)
    batches = (tuner.store.drawn(task.members[i : i + at_once], most, generator)[0] for i in starts)
    reestimate_batchnorm(model.backbone, (model.coloured(batch) for batch in batches if len(batch) > 1))


def _head_groups(model: Classifier, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """All that is new, but for adapters."""
    new = [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]
    decayed, free = ([p for p in new if (p.ndim > 1) == wanted] for wanted in (True, False))
    return [
        {"params": decayed, "lr": recipe.lr, "weight_decay": recipe.weight_decay},
        {"params": free, "lr": recipe.lr, "weight_decay": 0.0},
    ]


def parameter_groups(model: Classifier, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """Head, then the backbone by layer: the last learns at `backbone_lr_factor` of the head, each before it slower."""
    layer = layer_numbers(model.backbone)
    rate = recipe.lr * recipe.backbone_lr_factor
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.backbone.named_parameters():
        lr = rate * recipe.layer_decay ** (max(layer.values()) - layer[name])
        groups.setdefault((lr, parameter.ndim > 1), []).append(parameter)
    of_backbone = [
        {"params": parameters, "lr": lr, "weight_decay": recipe.weight_decay if decayed else 0.0}
        for (lr, decayed), parameters in groups.items()
    ]
    return [*_head_groups(model, recipe), *of_backbone]


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
    model: Classifier, store: WindowStore, samples: Sequence[Members], device: torch.device, bf16: bool
) -> Float[Tensor, "volume output"]:
    outputs, at_once = [], 1 if store.are_slices else 16
    for start in range(0, len(samples), at_once):
        images, counts = store.batch(samples[start : start + at_once])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs.append(model.predict(images, counts).float().cpu())
    return torch.cat(outputs)
