"""Where each view is cut: boxes in the base crop, drawn first, applied later.

Shapes: sample N, view V, axis A. A box is `start` and `length` in base-crop voxels; a negative length is a flip.
A tilted box turns about its centre, which is moved so that the box lies inside the base crop, as far as it can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lejepa_med.config import ViewsConfig
from lejepa_med.views.tilting import Tilts, draw_tilts

_CELLS = 8  # the body is measured on a coarse grid of this many cells per axis


@dataclass(frozen=True)
class Boxes:
    """One box per view; `blur` widens the filter along each axis (1 = plain antialiasing).

    `matrix` are the tilts in voxels. Without turns and tilts both are None.
    """

    start: Float[Tensor, "N V A"]
    length: Float[Tensor, "N V A"]
    blur: Float[Tensor, "N V A"]
    tilts: Tilts | None = None
    matrix: Float[Tensor, "N V A A"] | None = None

    def rows(self, chosen: slice) -> Boxes:
        """The same for some samples."""
        boxes = Boxes(self.start[chosen], self.length[chosen], self.blur[chosen])
        if self.tilts is None or self.matrix is None:
            return boxes
        return replace(boxes, tilts=self.tilts.rows(chosen), matrix=self.matrix[chosen])


def draw_boxes(
    config: ViewsConfig,
    which: Literal["global", "local"],
    generators: list[torch.Generator],
    base_size: tuple[int, ...],
    spacing_mm: tuple[float, ...] | Float[Tensor, "N A"],
    body: Float[Tensor, " N *cells"],
    slice_axis: Int[Tensor, " N"] | None = None,
) -> Boxes:
    """Boxes of all global or all local views of a batch, from one generator per sample.

    `spacing_mm` holds for the batch, or is given per sample. Thick slices lie along `slice_axis` where it is not
    negative, else along a random axis. `body` is the share of body in each coarse cell of the base crop (see
    `body_cells`). Of `redraws` tries, the first with at least `min_body` body is taken, else the one with the most.
    """
    views = config.num_global if which == "global" else config.num_local
    axes, tries = len(base_size), config.redraws
    width = tries * (2 * axes + 1) + 3 * axes + 2
    uniform = torch.stack([torch.rand(views, width, generator=g) for g in generators])
    per_try, rest = uniform[..., : tries * (2 * axes + 1)], uniform[..., tries * (2 * axes + 1) :]
    per_try = per_try.reshape(*per_try.shape[:-1], tries, 2 * axes + 1)
    base, spacing = torch.tensor(base_size, dtype=torch.float32), torch.as_tensor(spacing_mm, dtype=torch.float32)
    spacing = spacing.expand(len(generators), axes)
    length = _lengths(config, which, per_try[..., 0], per_try[..., 1 : 1 + axes], base, spacing[:, None, None])
    start = per_try[..., 1 + axes :] * (base - length)
    best = _first_with_body(start, length, base, body, config.min_body)
    start, length = (torch.take_along_dim(x, best[..., None, None], dim=2).squeeze(2) for x in (start, length))
    chance = torch.tensor([config.flip_left_right] + [config.flip_other] * (axes - 1))
    flip = rest[..., :axes] < chance
    blur = _blur(config, rest[..., axes:], axes, slice_axis)
    boxes = Boxes(torch.where(flip, start + length, start), torch.where(flip, -length, length), blur)
    size = config.global_size if which == "global" else config.local_size
    tilts = draw_tilts(config, views, size, generators)
    return boxes if tilts is None else _tilt(boxes, tilts, spacing.double(), base)


def _tilt(boxes: Boxes, tilts: Tilts, spacing: Float[Tensor, "N A"], base: Float[Tensor, " A"]) -> Boxes:
    """Boxes with their tilts, moved so that the tilted box lies in the base crop, or as evenly around it as it can."""
    matrix = tilts.matrix * spacing[:, None, None, :] / spacing[:, None, :, None]
    reach = (matrix.abs() @ boxes.length.abs().double().unsqueeze(-1)).squeeze(-1).float() / 2
    reach = torch.minimum(reach, base / 2)
    centre = boxes.start + boxes.length / 2
    inside = torch.minimum(torch.maximum(centre, reach), base - reach)
    start = torch.where(tilts.tilted.unsqueeze(-1), inside - boxes.length / 2, boxes.start)
    return replace(boxes, start=start, tilts=tilts, matrix=matrix)


def _lengths(
    config: ViewsConfig,
    which: Literal["global", "local"],
    zoom: Float[Tensor, "N V T"],
    shape: Float[Tensor, "N V T A"],
    base: Float[Tensor, " A"],
    spacing: Float[Tensor, "N 1 1 A"],
) -> Float[Tensor, "N V T A"]:
    """Side lengths of candidate boxes, within the pitch bounds and the base crop."""
    is_global = which == "global"
    size = torch.tensor(config.global_size if is_global else config.local_size, dtype=torch.float32)
    bounds = config.global_pitch_mm if is_global else config.local_pitch_mm
    jitter = (2 * shape - 1) * math.log(config.aspect)
    jitter = (jitter - jitter.mean(-1, keepdim=True)).exp()  # the volume of the box keeps its fraction
    if config.scale == "physical_mm":
        middle = spacing.amin(-1) if bounds is None else torch.tensor(math.sqrt(bounds[0] * bounds[1]))
        pitch = middle * torch.exp((2 * zoom - 1) * math.log(config.pitch_jitter))
        return torch.minimum(pitch[..., None] * jitter * size / spacing, base)
    low, high = config.global_fraction if is_global else config.local_fraction
    fraction = low + (high - low) * zoom
    length = base * fraction[..., None] ** (1 / len(base)) * jitter
    pitch = length * spacing / size
    lower = spacing / config.max_magnification
    if bounds is not None:
        lower, pitch = torch.clamp(lower, min=bounds[0]), pitch.clamp(max=bounds[1])
    return torch.minimum(torch.maximum(pitch, lower) * size / spacing, base)


def _blur(
    config: ViewsConfig, uniform: Float[Tensor, "N V _"], axes: int, slice_axis: Int[Tensor, " N"] | None
) -> Float[Tensor, "N V A"]:
    """Filter widths: now and then all axes (low resolution), now and then one (thick slices)."""
    chance, strength, which = uniform[..., 0:1], uniform[..., 1:2], uniform[..., 2 : 2 + axes]
    width = 1 + strength * (config.blur_factor - 1)
    thick = (which == which.amax(-1, keepdim=True)) if axes == 3 else torch.zeros_like(which, dtype=torch.bool)
    if axes == 3 and slice_axis is not None:
        known = slice_axis.view(-1, 1, 1)
        thick = torch.where(known >= 0, torch.arange(axes) == known, thick)
    everywhere = chance < config.blur_probability
    one_axis = (chance >= config.blur_probability) & (chance < config.blur_probability + config.thick_slice_probability)
    return torch.where(everywhere | (one_axis & thick), width, torch.ones_like(which))


def body_cells(is_body: Tensor) -> Float[Tensor, " N *cells"]:
    """Share of body in each of up to 8 cells per axis, from a mask `[N, *spatial]`."""
    body, sides = is_body[:, None].float(), [min(_CELLS, side) for side in is_body.shape[1:]]
    if len(sides) == 3:
        return torch.nn.functional.adaptive_avg_pool3d(body, (sides[0], sides[1], sides[2]))[:, 0]
    return torch.nn.functional.adaptive_avg_pool2d(body, (sides[0], sides[1]))[:, 0]


def _first_with_body(
    start: Float[Tensor, "N V T A"],
    length: Float[Tensor, "N V T A"],
    base: Float[Tensor, " A"],
    body: Float[Tensor, " N *cells"],
    min_body: float,
) -> Tensor:
    """Index [N, V] of the try that is kept."""
    share = body
    for axis in range(len(base)):
        cells = body.shape[1 + axis]
        edges = torch.arange(cells + 1) / cells * base[axis]
        low, high = start[..., axis, None], (start + length)[..., axis, None]
        overlap = (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp(min=0)
        overlap = overlap / overlap.sum(-1, keepdim=True)
        letter = "nvtc,nc...->nvt..." if axis == 0 else "nvtc,nvtc...->nvt..."
        share = torch.einsum(letter, overlap, share)
    enough = share >= min_body
    first = torch.argmax(enough.int(), dim=-1)
    return torch.where(enough.any(-1), first, torch.argmax(share, dim=-1))
