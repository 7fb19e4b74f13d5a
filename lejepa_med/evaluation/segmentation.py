"""Segmentation as an evaluation: one fixed recipe on labelled volumes, Dice and HD95 on the others, for any encoder.

`linear`: a linear map of each patch token, enlarged to voxels. `decoder`: a small convolutional decoder on tokens or
stages, the same for every encoder. Both see the windows of the backbone's inference geometry; scores are of the voxels
of the prepared volume. No validation set: every labelled volume trains, and no encoder is tuned more than another.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.losses import DiceCELoss
from numpy.typing import NDArray
from torch import nn

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.config.segmentation import SegmentationRecipe
from lejepa_med.data.cache import Cache
from lejepa_med.errors import DataError, UserError
from lejepa_med.evaluation.device import use_bf16
from lejepa_med.evaluation.mask_labels import foreground_classes
from lejepa_med.evaluation.segmentation_cases import Case, Geometry, load_case, stitched, training_windows
from lejepa_med.evaluation.segmentation_heads import Segmenter
from lejepa_med.evaluation.segmentation_metrics import dice, hd95_mm

SegmentationMethod = Literal["linear", "decoder"]


def segment(
    backbone: Backbone,
    cache: Cache,
    train_keys: Sequence[str],
    test_keys: Sequence[str],
    recipe: SegmentationRecipe,
    device: torch.device,
    seed: int,
    method: SegmentationMethod,
    fitted: bool = False,
) -> NDArray[np.float64]:
    """`[case, 2 * class]`: Dice of every class, then HD95 in mm (pictures: pixels); NaN where it is not defined.

    `backbone` is left as it is. `fitted`: it sees planes enlarged to its window, see `Geometry`. Dice is not defined
    where the truth has no voxel of the class, HD95 nor where the prediction has none.

    Raises:
        DataError: a series has no mask, or the training masks hold no class.
        UserError: training diverged.
    """
    values = tuple(foreground_classes(cache))
    for keys, which in ((train_keys, "training"), (test_keys, "test")):
        if bare := [key for key in keys if not cache.has_mask(key)]:
            raise DataError(
                f"segmentation: {len(bare)} of {len(keys)} {which} series have no mask, the first {bare[0]}"
            )
    assert backbone.spec is not None
    geometry = Geometry(backbone.spec.inference, values, fitted)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        cases = [load_case(cache, key, geometry) for key in train_keys]
        if not any(case.has_foreground for case in cases):
            raise DataError(f"segmentation: none of {len(cases)} training masks holds a voxel of a class")
        model = Segmenter(copy.deepcopy(backbone), len(values) + 1, method, recipe).to(device)
        bf16 = use_bf16(recipe.precision, device)
        _train(model, cases, geometry, recipe, np.random.default_rng([seed, 1]), bf16)
        return np.stack([_scores(model, load_case(cache, key, geometry), geometry, recipe, bf16) for key in test_keys])


def _train(
    model: Segmenter,
    cases: Sequence[Case],
    geometry: Geometry,
    recipe: SegmentationRecipe,
    generator: np.random.Generator,
    bf16: bool,
) -> None:
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    )
    loss_of = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    model.train()
    for _ in range(recipe.steps):
        images, target = training_windows(cases, geometry, recipe, generator)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(images.to(device))
        loss = loss_of(logits.float(), target.to(device)[:, None])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise UserError("segmentation: training diverged to weights that are no numbers; try a lower segmentation.lr")
    if recipe.finetune_backbone:
        batches = (training_windows(cases, geometry, recipe, generator)[0] for _ in range(8))
        reestimate_batchnorm(model.backbone, batches)
    model.eval()


def _parameter_groups(model: Segmenter, recipe: SegmentationRecipe) -> list[dict[str, Any]]:
    """Head and, if it is trained, backbone; no weight decay on biases and norms."""
    parts: list[tuple[nn.Module, float]] = [(model.head, recipe.lr)]
    if recipe.finetune_backbone:
        parts.append((model.backbone, recipe.lr * recipe.backbone_lr_factor))
    return [
        {
            "params": [parameter for parameter in part.parameters() if (parameter.ndim > 1) == decayed],
            "lr": lr,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for part, lr in parts
        for decayed in (True, False)
    ]


@torch.no_grad()
def _scores(
    model: Segmenter, case: Case, geometry: Geometry, recipe: SegmentationRecipe, bf16: bool
) -> NDArray[np.float64]:
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = stitched(lambda images: model(images.to(device)).float().cpu(), case, geometry, recipe.overlap)
    predicted = logits.argmax(0).numpy()
    classes = range(1, len(geometry.values) + 1)
    overlaps = [dice(predicted == value, case.truth == value) for value in classes]
    distances = [hd95_mm(predicted == value, case.truth == value, case.spacing_mm) for value in classes]
    return np.array(overlaps + distances)
