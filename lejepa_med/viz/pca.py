"""Principal components of patch tokens as colours: what the backbone holds to be alike, over several volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lejepa_med.backbones import Backbone
from lejepa_med.data.cache import CachedVolume
from lejepa_med.data.inference import centred, to_unit
from lejepa_med.resampling import resize
from lejepa_med.spec import InferenceSpec
from lejepa_med.viz.canvas import Tile, save_image, tile_sheet
from lejepa_med.viz.slices import PLANE_AXES, Plane, grey, plane_slice, turn

_SMALLEST_GRID = 6
_MAX_FACTOR, _MAX_VOXELS = 4, 8_000_000
_BODY = 0.05
Array = NDArray[np.float32]


@dataclass(frozen=True)
class TokenMap:
    """One input: `image` `[*spatial]` in [0, 1], padded to whole windows from `content`, and tokens `[*grid, dim]`."""

    image: Array
    content: tuple[int, ...]
    tokens: Array

    @property
    def foreground(self) -> NDArray[np.bool_]:
        """Tokens that hold some body, `[*grid]`."""
        return resize(torch.from_numpy(self.image)[None], self.tokens.shape[:-1])[0].numpy() > _BODY


def pca_picture(backbone: Backbone, volumes: Sequence[CachedVolume], file: Path) -> tuple[float, float, float]:
    """Writes the slices and, below them, the first three components of their tokens as red, green and blue.

    Components are fitted on the tokens of all volumes together. Inputs whose token grid is smaller than 6 along an
    axis are enlarged 2 to 4 times first. Returns the share of the tokens' variance in each component.
    """
    maps = token_maps(backbone, volumes)
    colours, shares = token_colours(maps)
    rows: list[list[Tile]] = []
    planes: tuple[Plane | None, ...] = ("axial", "coronal") if maps[0].image.ndim == 3 else (None,)
    turned = volumes[0].array.ndim == 3
    for plane in planes:
        rows.append([Tile(_shown(_cut(item.image, item), plane, turned)) for item in maps])
        rows.append(
            [
                Tile(_shown(_cut(_painted(item, rgb), item), plane, turned))
                for item, rgb in zip(maps, colours, strict=True)
            ]
        )
    titles = [title for plane in planes for title in (f"{plane or 'image'}", "tokens")]
    save_image(tile_sheet(rows, row_titles=titles), file)
    return shares


@torch.no_grad()
def token_maps(backbone: Backbone, volumes: Sequence[CachedVolume]) -> list[TokenMap]:
    """Tokens of every volume by the backbone's inference geometry, each volume in one pass."""
    assert backbone.spec is not None, "trained backbones carry their spec"
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()
    factor, maps = 0, []
    for volume in volumes:
        image, content = whole_image(volume, backbone.spec.inference)
        factor = factor or _factor(backbone, image.to(device))
        large = _enlarged(image, factor).to(device)
        tokens, grid = backbone.tokens(large.expand(backbone.in_channels, *large.shape[1:])[None])
        maps.append(TokenMap(image[0].numpy(), content, tokens[0].float().cpu().reshape(*grid, -1).numpy()))
    backbone.train(was_training)
    return maps


def whole_image(volume: CachedVolume, spec: InferenceSpec) -> tuple[Float[Tensor, " 1 *spatial"], tuple[int, ...]]:
    """The volume at the backbone's pitch, padded to whole windows, and its size before that.

    For 2D backbones the middle slice of their plane.
    """
    image = to_unit(volume.array, volume.modality, spec.ct_window_hu)
    if volume.spacing_mm is None:
        return resize(image, spec.window), tuple(spec.window)
    if spec.pitch_mm is not None:
        sides = zip(image.shape[1:], volume.spacing_mm, strict=True)
        image = resize(image, [max(1, round(side * mm / spec.pitch_mm)) for side, mm in sides])
    if image.ndim == 4 and len(spec.window) == 2:
        axis = 1 + PLANE_AXES[spec.planes[0]]
        image = image.select(axis, image.shape[axis] // 2)
    counts = [max(1, math.ceil(side / want - 0.1)) for side, want in zip(image.shape[1:], spec.window, strict=True)]
    extent = tuple(count * want for count, want in zip(counts, spec.window, strict=True))
    return centred(image, extent), tuple(min(have, want) for have, want in zip(image.shape[1:], extent, strict=True))


def token_colours(maps: Sequence[TokenMap]) -> tuple[list[Array], tuple[float, float, float]]:
    """Colours `[*grid, 3]` in [0, 1] per map, and the share of variance of the three components.

    Fitted on foreground tokens; each component is stretched from its 2nd to its 98th percentile, its sign chosen so
    that its distribution leans to the right.
    """
    flat = [item.tokens.reshape(-1, item.tokens.shape[-1]).astype(np.float64) for item in maps]
    kept = [tokens[item.foreground.reshape(-1)] for tokens, item in zip(flat, maps, strict=True)]
    fit = np.concatenate(kept if sum(map(len, kept)) > 3 else flat)
    mean = fit.mean(0)
    values, vectors = np.linalg.eigh(np.cov(fit - mean, rowvar=False))
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.where((((fit - mean) @ axes) ** 3).sum(0) < 0, -1.0, 1.0)
    low, high = np.percentile((fit - mean) @ axes, (2, 98), axis=0)
    colours = []
    for item, tokens in zip(maps, flat, strict=True):
        scores = ((tokens - mean) @ axes - low) / np.maximum(high - low, 1e-9)
        colours.append(np.clip(scores, 0, 1).astype(np.float32).reshape(*item.tokens.shape[:-1], 3))
    shares = values[::-1][:3] / max(values.sum(), 1e-12)
    return colours, (float(shares[0]), float(shares[1]), float(shares[2]))


def _factor(backbone: Backbone, image: Float[Tensor, " 1 *spatial"]) -> int:
    """How much inputs are enlarged so that the token grid is worth looking at."""
    factor = 1
    while True:
        large = _enlarged(image, factor)
        _, grid = backbone.tokens(large.expand(backbone.in_channels, *large.shape[1:])[None])
        too_many = image.numel() * (2 * factor) ** (image.ndim - 1) > _MAX_VOXELS
        if min(grid) >= _SMALLEST_GRID or 2 * factor > _MAX_FACTOR or too_many:
            return factor
        factor *= 2


def _enlarged(image: Float[Tensor, " 1 *spatial"], factor: int) -> Float[Tensor, " 1 *larger"]:
    return image if factor == 1 else resize(image, [side * factor for side in image.shape[1:]])


def _painted(item: TokenMap, colours: Array) -> Array:
    """Colours at the size of the image `[*spatial, 3]`, black where there is air."""
    smooth = resize(torch.from_numpy(np.moveaxis(colours, -1, 0).copy()), item.image.shape).numpy()
    body = np.clip(item.image / (2 * _BODY), 0, 1)
    return np.moveaxis(smooth * body, 0, -1)


def _cut(image: Array, item: TokenMap) -> Array:
    """The middle of the image, without the padding that filled the windows."""
    starts = [(have - want) // 2 for have, want in zip(item.image.shape, item.content, strict=True)]
    return image[tuple(slice(low, low + want) for low, want in zip(starts, item.content, strict=True))]


def _shown(image: Array, plane: Plane | None, turned: bool) -> NDArray[np.uint8]:
    if plane is not None:
        return grey(plane_slice(image, plane))
    return grey(turn(image) if turned else image)
