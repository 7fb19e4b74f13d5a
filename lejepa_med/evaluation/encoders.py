"""From an encoder of the config to frozen features, kept on disk, or to a backbone that can be fine-tuned.

    OUT/features/<name>.npz    features [row, feature], series_key, patient_key, encoder, key

`key` is a hash of what the features depend on: weights, settings, the prepared volumes and, where something is fitted
(principal components, BatchNorm statistics of fresh weights), the training rows. Another key means computing anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.config.evaluation import (
    EncoderConfig,
    PixelsEncoder,
    RandomEncoder,
    RunEncoder,
    ScratchEncoder,
    ShapeEncoder,
    Timm2dEncoder,
    slug,
)
from lejepa_med.config.pretraining import ModelConfig
from lejepa_med.data.cache import Cache, file_digest
from lejepa_med.data.inference import windows
from lejepa_med.errors import UserError, WeightsError
from lejepa_med.evaluation.controls import pixel_features, shape_features
from lejepa_med.evaluation.device import use_bf16
from lejepa_med.evaluation.features import extract_features
from lejepa_med.evaluation.slices import load_timm2d, slice_features
from lejepa_med.evaluation.window_store import WindowStore
from lejepa_med.spec import InferenceSpec, Spec
from lejepa_med.weights import find_weights, load_backbone, read_description

_FEATURES_VERSION = 1
_NORM_VOLUMES = 128
_NORM_BATCH = 16
Progress = Callable[[int], None]
FROZEN = ("run", "random", "pixels", "shape", "timm2d")
FINETUNED = ("run", "scratch")


class NoWeightsError(UserError):
    """An encoder whose weights the user has not given; its rows say so."""


def methods_of(encoder: EncoderConfig) -> tuple[str, ...]:
    """The methods that an encoder takes part in."""
    frozen = ("linear", "knn") if encoder.kind in FROZEN else ()
    return (*frozen, "finetune") if encoder.kind in FINETUNED else frozen


def require_weights(encoder: EncoderConfig, position: int) -> None:
    """Raises NoWeightsError, which says how to give them."""
    if isinstance(encoder, Timm2dEncoder) and encoder.weights is None:
        raise NoWeightsError(
            f"encoder {encoder.name}: no weights given; give a local file, e.g. "
            f"encoders.{position}.weights=/path/to/dinov2_vits14_pretrain.pth"
        )


def weights_digest(encoder: EncoderConfig) -> str:
    """SHA-256 of the weight file an encoder depends on; empty where it has none or none is there."""
    try:
        match encoder:
            case RunEncoder():
                return file_digest(find_weights(encoder.path))
            case RandomEncoder() | ScratchEncoder():
                return hashlib.sha256(json.dumps(read_description(find_weights(encoder.like))).encode()).hexdigest()
            case Timm2dEncoder() if encoder.weights is not None:
                return file_digest(encoder.weights)
    except (WeightsError, OSError):
        return ""
    return ""


def table_digest(table: pd.DataFrame) -> str:
    """Hash of which prepared volumes a table holds."""
    text = "\n".join(f"{key} {entry}" for key, entry in zip(table["series_key"], table["entry"], strict=True))
    return hashlib.sha256(text.encode()).hexdigest()


def frozen_features(
    encoder: EncoderConfig,
    cache: Cache,
    table: pd.DataFrame,
    fit: NDArray[np.bool_],
    folder: Path,
    device: torch.device,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Features of the rows of `table`, from `folder` or computed; `fit` are the rows that anything is fitted on."""
    settings = encoder.model_dump(mode="json", exclude={"name", "path", "like", "weights"})
    text = json.dumps([_FEATURES_VERSION, settings, weights_digest(encoder), table_digest(table), fit.tolist()])
    key = hashlib.sha256(text.encode()).hexdigest()
    file = folder / f"{slug(encoder.name)}.npz"
    if file.exists():
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                return np.asarray(stored["features"])
    features = _compute(encoder, cache, table, fit, device, progress)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{file.name}.partial.npz"
    np.savez(
        temporary,
        features=features,
        series_key=table["series_key"].to_numpy(dtype=str),
        patient_key=table["patient_key"].to_numpy(dtype=str),
        encoder=np.array(encoder.name),
        key=np.array(key),
    )
    temporary.replace(file)
    return features


def _compute(
    encoder: EncoderConfig,
    cache: Cache,
    table: pd.DataFrame,
    fit: NDArray[np.bool_],
    device: torch.device,
    progress: Progress | None,
) -> NDArray[np.float32]:
    series = table["series_key"].tolist()
    volumes = (cache.read(key) for key in series)
    bf16 = device.type == "cuda" and use_bf16("auto", device)
    match encoder:
        case PixelsEncoder():
            return pixel_features(encoder, cache, series, fit, progress)
        case ShapeEncoder():
            return shape_features(encoder, cache, series, progress)
        case Timm2dEncoder():
            return slice_features(load_timm2d(encoder), volumes, encoder, device, bf16, progress)
        case RunEncoder():
            backbone = load_backbone(encoder.path)
        case RandomEncoder():
            backbone = fresh_backbone(encoder.like, encoder.seed).to(device)
            fitted = [key for key, used in zip(series, fit, strict=True) if used]
            reestimate_batchnorm(backbone, _norm_batches(cache, fitted, inference_of(backbone)))
        case ScratchEncoder():
            raise UserError(f"encoder {encoder.name}: fresh weights have no frozen features; use kind: random")
    return extract_features(
        backbone, volumes, inference_of(backbone), device=device, autocast=bf16, progress=progress
    ).astype(np.float32)


def fresh_backbone(like: Path, seed: int) -> Backbone:
    """The architecture and spec of a run with new weights; the global random state is left as it was."""
    file = find_weights(like)
    description = read_description(file)
    if description["model"] is None:
        raise WeightsError(f"weights {file}: made with a network of your own, whose fresh weights we cannot draw")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build(ModelConfig.model_validate(description["model"]))
    backbone.spec = Spec.model_validate(description["spec"])
    return backbone.eval()


def trainable_backbone(encoder: EncoderConfig, seed: int) -> Backbone:
    """The network that fine-tuning starts from: the run's, or fresh weights that differ between label seeds."""
    match encoder:
        case RunEncoder():
            return load_backbone(encoder.path)
        case ScratchEncoder():
            return fresh_backbone(encoder.like, 1000 * encoder.seed + seed)
    raise UserError(f"encoder {encoder.name}: a {encoder.kind} encoder is not fine-tuned")


def window_store(cache: Cache, backbone: Backbone) -> WindowStore:
    """Windows of the geometry that a backbone was trained for."""
    inference = inference_of(backbone)
    return WindowStore(cache, lambda volume: windows(volume, inference).images)


def inference_of(backbone: Backbone) -> InferenceSpec:
    """How volumes become windows for this backbone."""
    assert backbone.spec is not None, "saved weights carry their spec"
    return backbone.spec.inference


def _norm_batches(cache: Cache, series: list[str], inference: InferenceSpec) -> Iterator[Tensor]:
    """Batches of windows from evenly spaced training volumes."""
    step = max(1, len(series) // _NORM_VOLUMES)
    waiting: list[Tensor] = []
    for key in series[::step]:
        waiting += windows(cache.read(key), inference).images.unbind(0)
        while len(waiting) >= 2 * _NORM_BATCH:
            yield torch.stack(waiting[:_NORM_BATCH])
            waiting = waiting[_NORM_BATCH:]
    if len(waiting) > 1:
        yield torch.stack(waiting)
