"""What tilted views lose and let through: contrast of gratings that a view can show, and of those that it cannot.

    python benchmarks/tilted_views.py

Rows are ways to make a view of 64^2 at a tilt of 20 degrees and some pitch in source voxels. `kept` is the
contrast of a grating at half the view's highest frequency, averaged over directions (an ideal filter keeps 1); `alias`
the largest contrast left of any grating of 1.25 to 2 times that frequency (an ideal filter leaves 0). `grid` is the
number of voxels that have to be made first, per view voxel in 3D.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from lejepa_med.views.geometry import Boxes
from lejepa_med.views.grids import FILTER, FINER, Grids, lay_grids, resample_views
from lejepa_med.views.tilting import Tilts

SIDE, VIEW, ANGLE = 256, 64, math.radians(20)


def grating(frequency: float, direction: float) -> torch.Tensor:
    """Stripes of `frequency` cycles per voxel across `direction`, amplitude 1."""
    x, y = torch.meshgrid(torch.arange(SIDE) + 0.0, torch.arange(SIDE) + 0.0, indexing="ij")
    return torch.cos(2 * math.pi * frequency * (x * math.cos(direction) + y * math.sin(direction)))[None, None]


def grids(pitch: float, fine: float, half: float, tilted: bool) -> Grids:
    """The grid of one view, with its pitch and filter replaced."""
    length = torch.full((1, 1, 2), VIEW * pitch)
    turn = torch.tensor([[math.cos(ANGLE), -math.sin(ANGLE)], [math.sin(ANGLE), math.cos(ANGLE)]]).double()
    boxes = Boxes((SIDE - length) / 2, length, torch.ones(1, 1, 2))
    if not tilted:
        return lay_grids(boxes, (SIDE, SIDE), (VIEW, VIEW))
    flags = torch.ones(1, 1, dtype=torch.bool)
    boxes = replace(boxes, tilts=Tilts(0 * flags.long(), turn[None, None], flags), matrix=turn[None, None])
    laid = lay_grids(boxes, (SIDE, SIDE), (VIEW, VIEW))
    covered = laid.count * laid.pitch
    same = torch.full_like(laid.pitch, fine)
    return replace(laid, pitch=same, half=torch.full_like(same, half), count=(covered / fine).ceil().long())


def contrast(pitch: float, fine: float, half: float, tilted: bool, frequency: float) -> list[float]:
    """Amplitude of the grating in the view, over directions."""
    laid, found = grids(pitch, fine, half, tilted), []
    for direction in torch.linspace(0, math.pi, 13)[:-1].tolist():
        view = resample_views(grating(frequency / pitch, direction), laid, (VIEW, VIEW), torch.zeros(1))
        found.append(float(view[..., 8:-8, 8:-8].std()) * math.sqrt(2))
    return found


def ways(pitch: float) -> dict[str, tuple[float, float, bool]]:
    """Name -> pitch of the grid, half-width of its filter, tilted."""
    octave, half_octave = 2.0 ** math.ceil(math.log2(pitch) - 1e-9), 2 ** (math.ceil(2 * math.log2(pitch) - 1e-9) / 2)
    below = 2.0 ** math.floor(math.log2(pitch) + 1e-9)
    found = {
        "along the axes, one step": (pitch, pitch, False),
        "tilted, no antialiasing": (1.0, 1.0, True),
        "pyramid, octave above": (octave, octave, True),
        "pyramid, octave below": (below, below, True),
        "pyramid, half octave above": (half_octave, half_octave, True),
    }
    for finer, width in ((1.0, 1.0), (0.7, 0.7), (0.7, 0.9), (0.7, 1.0), (0.5, 0.9), (0.5, 1.0), (FINER, FILTER)):
        name = f"own grid, {finer} pitch, filter {width}"
        found[name] = (max(1.0, finer * pitch), max(1.0, width * pitch), True)
    return found


def main() -> None:
    torch.set_num_threads(1)
    for pitch in (1.0, 1.25, 1.5, 2.0, 3.0):
        print(f"pitch {pitch}{'':28}kept   alias   grid")
        for name, (fine, half, tilted) in ways(pitch).items():
            kept = sum(contrast(pitch, fine, half, tilted, 0.25)) / 12
            unseen = [f for f in (0.625, 0.75, 0.875, 1.0) if f <= pitch / 2]  # the source can show them, the view not
            alias = max((max(contrast(pitch, fine, half, tilted, f)) for f in unseen), default=0.0)
            print(f"  {name:36} {kept:5.2f}   {alias:5.2f}   {(pitch / fine) ** 3:5.2f}", flush=True)


if __name__ == "__main__":
    main()
