"""From prepared volumes to embeddings, by the inference geometry that travels with the backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from lejepa_med.backbones import Backbone
from lejepa_med.data.cache import CachedVolume
from lejepa_med.data.inference import Windows, windows
from lejepa_med.evaluation.slices import evenly
from lejepa_med.evaluation.volume_store import Parts
from lejepa_med.spec import InferenceSpec

_WINDOWS_PER_PASS = 32


def extract_features(
    backbone: Backbone,
    volumes: Iterable[CachedVolume],
    inference: InferenceSpec,
    *,
    layers: int | None = 2,
    device: torch.device | None = None,
    autocast: bool = False,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """One row per volume, `[volume, feature]`.

    `layers` last blocks or stages are concatenated, as probes want them; None gives `backbone(images)`, what `embed`
    writes. Windows of several volumes share a pass.
    """
    rows: list[Tensor] = []
    for group in _groups(volumes, inference):
        rows += embed_windows(backbone, group, inference, layers, device or torch.device("cpu"), autocast)
        if progress is not None:
            progress(len(rows))
    return torch.stack(rows).numpy()


def window_features(
    backbone: Backbone,
    volumes: Iterable[CachedVolume],
    inference: InferenceSpec,
    device: torch.device,
    autocast: bool,
    most_tokens: int | None = None,
) -> Iterator[Parts]:
    """Per volume `pooled`, its row as `extract_features` gives it, and with `most_tokens` its `tokens`."""
    for group in _groups(volumes, inference):
        rows = embed_windows(backbone, group, inference, 2, device, autocast)
        for item, row in zip(group, rows, strict=True):
            parts: Parts = {"pooled": {"features": row.numpy()}}
            if most_tokens is not None:
                tokens = window_tokens(backbone, item, most_tokens, device, autocast)
                parts["tokens"] = {"tokens": tokens.to(torch.float16).numpy()}
            yield parts


def _groups(volumes: Iterable[CachedVolume], inference: InferenceSpec) -> Iterator[list[Windows]]:
    """Windows of consecutive volumes, until they fill a pass."""
    waiting: list[Windows] = []
    for volume in volumes:
        waiting.append(windows(volume, inference))
        if sum(len(item.images) for item in waiting) >= _WINDOWS_PER_PASS:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


@torch.no_grad()
def embed_windows(
    backbone: Backbone,
    waiting: Sequence[Windows],
    inference: InferenceSpec,
    layers: int | None,
    device: torch.device,
    autocast: bool,
) -> list[Tensor]:
    """One row per volume."""
    backbone = backbone.to(device).eval()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        return _embed(backbone, waiting, inference, layers, device)


@torch.no_grad()
def window_tokens(
    backbone: Backbone, item: Windows, most: int, device: torch.device, autocast: bool
) -> Float[Tensor, "token dim"]:
    """The patch tokens of a volume's windows, neighbouring ones averaged until at most `most` are left.

    2D windows that are slices of a volume give one token each: class token and mean patch of the last block (CNN: the
    mean of the last stage). Too many windows are taken evenly spaced.
    """
    backbone = backbone.to(device).eval()
    images = item.images[evenly(len(item.images), most)]
    found = []
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        for piece in torch.split(images, _WINDOWS_PER_PASS):
            if item.are_slices:
                found.append(backbone.intermediate(piece.to(device), last=1)[0][:, None].float())
                continue
            tokens, grid = backbone.tokens(piece.to(device))
            found.append(coarser(tokens.float(), grid, max(1, most // len(images))))
    return torch.cat(found).flatten(0, 1).cpu()


def coarser(
    tokens: Float[Tensor, "window token dim"], grid: tuple[int, ...], most: int
) -> Float[Tensor, "window fewer dim"]:
    """Means over boxes of neighbours: the longest axis of the grid is halved until at most `most` tokens are left."""
    smaller = list(grid)
    while math.prod(smaller) > most:
        longest = smaller.index(max(smaller))
        smaller[longest] = -(-smaller[longest] // 2)
    if tuple(smaller) == tuple(grid):
        return tokens
    maps = tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
    pool: Callable[[Tensor, list[int]], Tensor] = adaptive_avg_pool3d if len(grid) == 3 else adaptive_avg_pool2d  # type: ignore[assignment]
    return pool(maps, smaller).flatten(2).transpose(1, 2)


def _embed(
    backbone: Backbone, waiting: Sequence[Windows], inference: InferenceSpec, layers: int | None, device: torch.device
) -> list[Tensor]:
    images = torch.cat([item.images for item in waiting])
    counts = [len(item.images) for item in waiting]
    parts = []
    for piece in torch.split(images, _WINDOWS_PER_PASS):
        piece = piece.to(device)
        if inference.pooling == "grid2":
            tokens, grid = backbone.tokens(piece)
            parts.append(tokens.float().cpu().flatten(1))
        else:
            features = [backbone(piece)] if layers is None else backbone.intermediate(piece, last=layers)
            parts.append(torch.cat([feature.float().cpu() for feature in features], dim=-1))
    per_volume = torch.split(torch.cat(parts), counts)
    if inference.pooling == "max":
        return [rows.amax(0) for rows in per_volume]
    if inference.pooling == "mean":
        return [rows.mean(0) for rows in per_volume]
    size = tuple(waiting[0].images.shape[2:])
    return [
        octants(rows.reshape(len(rows), -1, backbone.token_dim), item, grid, size)
        for rows, item in zip(per_volume, waiting, strict=True)
    ]


def octants(
    tokens: Float[Tensor, "window token dim"], item: Windows, grid: tuple[int, ...], size: tuple[int, ...]
) -> Float[Tensor, " feature"]:
    """Mean token of every half along every axis (8 octants in 3D), concatenated; one on the middle counts in both."""
    axes = [(torch.arange(side) + 0.5) * length / side for side, length in zip(grid, size, strict=True)]
    within = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(grid))
    side = item.starts[:, None] + within - torch.tensor(item.extent) / 2  # [window, token, axis], 0 = middle
    means = []
    for corner in range(2 ** len(grid)):
        signs = torch.tensor([1.0 if corner >> axis & 1 else -1.0 for axis in range(len(grid))])
        inside = (side * signs >= -1e-6).all(-1).float()
        means.append((tokens * inside[..., None]).sum((0, 1)) / inside.sum().clamp(min=1))
    return torch.cat(means)
