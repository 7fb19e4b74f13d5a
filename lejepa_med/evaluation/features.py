"""From prepared volumes to embeddings, by the inference geometry that travels with the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lejepa_med.backbones import Backbone
from lejepa_med.data.cache import CachedVolume
from lejepa_med.data.inference import Windows, windows
from lejepa_med.spec import InferenceSpec

_WINDOWS_PER_PASS = 32


@torch.no_grad()
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
    device = device or torch.device("cpu")
    backbone = backbone.to(device).eval()
    rows: list[Tensor] = []
    waiting: list[Windows] = []
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        for volume in volumes:
            waiting.append(windows(volume, inference))
            if sum(len(item.images) for item in waiting) >= _WINDOWS_PER_PASS:
                rows += _embed(backbone, waiting, inference, layers, device)
                waiting = []
                if progress is not None:
                    progress(len(rows))
        if waiting:
            rows += _embed(backbone, waiting, inference, layers, device)
    if progress is not None:
        progress(len(rows))
    return torch.stack(rows).numpy()


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
