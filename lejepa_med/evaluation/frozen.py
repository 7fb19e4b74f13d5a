"""Frozen features and tokens of an encoder: by volume in a store, and together in a file that the report reads.

    OUT/features/<name>.npz    features [row, feature] (features_1, ...: of other aggregations), series_key, ...
    STORE/                     see `volume_store`

`key` is a hash of what the features depend on: weights, settings, the prepared volumes and, where something is fitted
(principal components, BatchNorm statistics of fresh weights), the training rows. Another key means computing anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.config.evaluation import (
    NOT_IN_IDENTITY,
    EncoderConfig,
    PixelsEncoder,
    RandomEncoder,
    RunEncoder,
    ShapeEncoder,
    Timm2dEncoder,
    slug,
)
from lejepa_med.data.cache import Cache, CachedVolume
from lejepa_med.data.inference import windows
from lejepa_med.errors import DataError, UserError
from lejepa_med.evaluation.controls import pixel_features, shape_features
from lejepa_med.evaluation.device import use_bf16
from lejepa_med.evaluation.encoders import fresh_backbone, inference_of, table_digest, weights_digest
from lejepa_med.evaluation.features import window_features
from lejepa_med.evaluation.slices import aggregated, load_timm2d, slice_features
from lejepa_med.evaluation.volume_store import Arrays, Parts, VolumeStore, complete, volume_keys
from lejepa_med.spec import InferenceSpec
from lejepa_med.weights import load_backbone

_FEATURES_VERSION = 2
_NORM_VOLUMES = 128
_NORM_BATCH = 16
Progress = Callable[[int], None]
Features = dict[str, NDArray[np.float32]]
"""Rows by aggregation; the first is the one that serves where none can be chosen."""
Network = RunEncoder | RandomEncoder | Timm2dEncoder


@dataclass(frozen=True)
class FeatureSource:
    """What features are computed of, and where they are kept. `fit` are the rows that anything is fitted on.

    `most_tokens` of a volume are kept beside its row; None: none.
    """

    cache: Cache
    table: pd.DataFrame
    fit: NDArray[np.bool_]
    folder: Path
    store: Path
    device: torch.device
    most_tokens: int | None = None


def frozen_features(encoder: EncoderConfig, source: FeatureSource, progress: Progress | None = None) -> Features:
    """Features of the rows of the table, read or computed.

    Raises:
        DataError: volumes whose features differ in length.
    """
    key = _digest(encoder, table_digest(source.table), source.fit.tolist())
    file = source.folder / f"{slug(encoder.name)}.npz"
    found = _read(file, key)
    if found is None or (source.most_tokens is not None and isinstance(encoder, Network)):
        found = _compute(encoder, source, progress)
        _write(file, found, encoder, source, key)
    return found


def frozen_tokens(encoder: EncoderConfig, source: FeatureSource) -> Callable[[str], NDArray[np.float16]]:
    """From a series to its tokens, `[token, dim]`, which `frozen_features` with `most_tokens` has put in the store."""
    assert isinstance(encoder, Network) and source.most_tokens is not None
    store, part = _store(encoder, source), _token_part(source.most_tokens)
    volume = dict(zip(source.table["series_key"], volume_keys(source.table), strict=True))

    def read(series: str) -> NDArray[np.float16]:
        arrays = store.read(volume[series], part)
        if arrays is None:
            raise DataError(f"encoder {encoder.name}: tokens of series {series} are damaged; run the benchmark again")
        return np.asarray(arrays["tokens"], dtype=np.float16)

    return read


def _digest(encoder: EncoderConfig, *more: object) -> str:
    settings = encoder.model_dump(mode="json", exclude=NOT_IN_IDENTITY)
    text = json.dumps([_FEATURES_VERSION, settings, weights_digest(encoder), *more])
    return hashlib.sha256(text.encode()).hexdigest()


def _read(file: Path, key: str) -> Features | None:
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as stored:
        if str(stored["key"]) != key:
            return None
        return {name: np.asarray(stored[f"features{_suffix(n)}"]) for n, name in enumerate(stored["names"].tolist())}


def _suffix(number: int) -> str:
    return f"_{number}" if number else ""


def _write(file: Path, found: Features, encoder: EncoderConfig, source: FeatureSource, key: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.partial.npz")
    np.savez(
        temporary,
        **{f"features{_suffix(number)}": rows for number, rows in enumerate(found.values())},  # type: ignore[arg-type]
        names=np.array(list(found), dtype=str),
        series_key=source.table["series_key"].to_numpy(dtype=str),
        patient_key=source.table["patient_key"].to_numpy(dtype=str),
        encoder=np.array(encoder.name),
        key=np.array(key),
    )
    temporary.replace(file)


def _compute(encoder: EncoderConfig, source: FeatureSource, progress: Progress | None) -> Features:
    series = source.table["series_key"].tolist()
    match encoder:
        case PixelsEncoder():
            return {"components": pixel_features(encoder, source.cache, series, source.fit, progress)}
        case ShapeEncoder():
            return {"numbers": shape_features(encoder, source.cache, source.table, progress)}
        case Timm2dEncoder() | RunEncoder() | RandomEncoder():
            pooled = _pooled(encoder, source, progress)
            _check_lengths(encoder, series, pooled)
            if isinstance(encoder, Timm2dEncoder):
                return aggregated(pooled, encoder)
            return {"pooled": np.stack([found["features"] for found in pooled]).astype(np.float32)}
    raise UserError(f"encoder {encoder.name}: fresh weights have no frozen features; use kind: random")


def _pooled(encoder: Network, source: FeatureSource, progress: Progress | None) -> list[Arrays]:
    """The pooled arrays of every row; what the store lacks, or holds damaged, is computed."""
    store = _store(encoder, source)
    parts = ["pooled"] + ([] if source.most_tokens is None else [_token_part(source.most_tokens)])
    compute = partial(_compute_parts, encoder, source)
    keys = volume_keys(source.table)
    complete(store, source.cache, source.table, parts, compute, progress)
    found = [store.read(key, "pooled") for key in keys]
    if any(arrays is None for arrays in found):
        damaged = [key for key, arrays in zip(keys, found, strict=True) if arrays is None]
        for key in damaged:
            store.remove(key, "pooled")
        complete(store, source.cache, source.table, parts, compute, progress)
        found = [store.read(key, "pooled") for key in keys]
    return [arrays for arrays in found if arrays is not None]


def _store(encoder: Network, source: FeatureSource) -> VolumeStore:
    """Features of fresh weights depend on the volumes that gave their BatchNorm statistics."""
    fitted: list[object] = []
    if isinstance(encoder, RandomEncoder):
        fitted = [source.fit.tolist(), table_digest(source.table)]
    if isinstance(encoder, Timm2dEncoder):  # which of them are wanted changes nothing but whether to project
        used = ("mean_max", "random") if "random" in encoder.aggregations else ("mean_max",)
        encoder = encoder.model_copy(update={"aggregations": used})
    bf16 = _bf16(source.device)
    return VolumeStore(source.store, _digest(encoder, *fitted, "bf16" if bf16 else "float32"))


def _token_part(most: int) -> str:
    return f"tokens{most}"


def _bf16(device: torch.device) -> bool:
    return device.type == "cuda" and use_bf16("auto", device)


def _compute_parts(encoder: Network, source: FeatureSource, volumes: Iterable[CachedVolume]) -> Iterator[Parts]:
    device, bf16, most = source.device, _bf16(source.device), source.most_tokens
    match encoder:
        case Timm2dEncoder():
            found = slice_features(load_timm2d(encoder), volumes, encoder, device, bf16, most)
        case RunEncoder():
            backbone = load_backbone(encoder.path)
            found = window_features(backbone, volumes, inference_of(backbone), device, bf16, most)
        case RandomEncoder():
            backbone = normalised_fresh_backbone(encoder, source)
            found = window_features(backbone, volumes, inference_of(backbone), device, bf16, most)
    for parts in found:
        yield {name if name == "pooled" else _token_part(most or 0): arrays for name, arrays in parts.items()}


def normalised_fresh_backbone(encoder: RandomEncoder, source: FeatureSource) -> Backbone:
    """Fresh weights with the BatchNorm statistics of training volumes."""
    backbone = fresh_backbone(encoder.like, encoder.seed).to(source.device)
    fitted = [key for key, used in zip(source.table["series_key"], source.fit, strict=True) if used]
    reestimate_batchnorm(backbone, _norm_batches(source.cache, fitted, inference_of(backbone)))
    return backbone


def _check_lengths(encoder: EncoderConfig, series: Sequence[str], pooled: Sequence[Arrays]) -> None:
    """Rows of several lengths cannot be one table: pictures beside volumes, say."""
    by_length: dict[tuple[int, ...], str] = {}
    for key, arrays in zip(series, pooled, strict=True):
        by_length.setdefault(tuple(sorted(array.size for array in arrays.values())), key)
    if len(by_length) > 1:
        lengths = "; ".join(f"{max(sizes)} (series {key})" for sizes, key in by_length.items())
        raise DataError(
            f"encoder {encoder.name}: features of {len(by_length)} lengths: {lengths}; volumes and 2D images need "
            "benchmarks of their own (data.modalities)"
        )


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
