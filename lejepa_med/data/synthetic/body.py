"""Synthetic body CT in memory, in HU: fat, muscle, ribs, lungs with vessels and nodules, liver, spine and table.

Frame: RAS mm, origin in the middle of the chest, so the patient's left is x < 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lejepa_med.data.synthetic.head_shape import Layer
from lejepa_med.data.synthetic.ranges import BODY
from lejepa_med.data.synthetic.shapes import (
    Field,
    Grid,
    Vector,
    affine_centred,
    capsule_distance,
    ellipsoid,
    make_grid,
    pose_matrix,
    soft,
    soft_sphere,
)
from lejepa_med.data.volume import Volume

_BODY, _BODY_NOISE = 21, 22  # streams of random numbers
_VESSELS_PER_LUNG = 9


@dataclass(frozen=True)
class Body:
    """One patient with a trunk CT: lengths in mm, `hu` per tissue, lung `nodules` as (x, y, z, radius) in RAS mm."""

    seed: int
    half_width: float
    half_depth: float
    fat: float
    wall: float
    hu: dict[str, float]
    vessels: tuple[tuple[Vector, Vector, float], ...]
    nodules: tuple[tuple[float, float, float, float], ...]
    roll_deg: float
    shift_mm: Vector
    noise_hu: float

    @property
    def nodule(self) -> bool:
        """Whether there is a lung nodule: the label."""
        return bool(self.nodules)


def draw_body(seed: int) -> Body:
    """Patient number `seed`; nodules are drawn without regard to body size, pose and noise."""
    rng = np.random.default_rng([_BODY, seed])
    half_width = float(rng.uniform(*BODY.half_width))
    half_depth = half_width * float(rng.uniform(*BODY.depth_ratio))
    fat, wall = float(rng.uniform(*BODY.fat_thickness)), float(rng.uniform(*BODY.wall_thickness))
    hu = {tissue: float(rng.uniform(*limits)) for tissue, limits in BODY.hu.items()}
    shift = rng.uniform(-BODY.shift, BODY.shift, 3).tolist()
    roll = float(rng.uniform(-BODY.rotation_deg, BODY.rotation_deg))
    noise = float(rng.uniform(*BODY.noise_hu))
    inner = (half_width - fat - wall, half_depth - fat - wall)
    return Body(
        seed=seed,
        half_width=half_width,
        half_depth=half_depth,
        fat=fat,
        wall=wall,
        hu=hu,
        vessels=tuple(_draw_vessels(rng, inner)),
        nodules=tuple(_draw_nodules(rng, inner)),
        roll_deg=roll,
        shift_mm=(shift[0], shift[1], shift[2]),
        noise_hu=noise,
    )


def _draw_vessels(rng: np.random.Generator, inner: tuple[float, float]) -> Iterator[tuple[Vector, Vector, float]]:
    """Straight branches from each hilum towards the pleura."""
    for side in (-1.0, 1.0):
        hilum = np.array([side * 34.0, -8.0, 15.0])
        for _ in range(_VESSELS_PER_LUNG):
            target = rng.uniform((0.45, -0.6, -35.0), (0.85, 0.6, 95.0)) * (side * inner[0], inner[1], 1.0)
            start, stop = hilum.tolist(), (hilum + 0.8 * (target - hilum)).tolist()
            yield (start[0], start[1], start[2]), (stop[0], stop[1], stop[2]), float(rng.uniform(1.5, 3.5))


def _draw_nodules(rng: np.random.Generator, inner: tuple[float, float]) -> Iterator[tuple[float, float, float, float]]:
    """Spheres inside the ventilated part of either lung."""
    if rng.random() >= BODY.nodule_probability:
        return
    low, high = BODY.nodule_count
    for _ in range(int(rng.integers(low, high + 1))):
        radius = float(rng.uniform(*BODY.nodule_diameter)) / 2
        side = -1.0 if rng.random() < 0.5 else 1.0
        x = side * float(rng.uniform(0.55, 0.72)) * inner[0]
        y, z = float(rng.uniform(-0.4, 0.35)) * inner[1], float(rng.uniform(10.0, 80.0))
        yield (x, y, z, radius)


def _trunk_depth(grid: Grid, body: Body) -> Field:
    u, v = grid.x * np.float32(1 / body.half_width), grid.y * np.float32(1 / body.half_depth)
    rho = np.sqrt(np.sqrt(u**4 + v**4 + np.float32(1.3) * u * u * v * v))
    depth: Field = (1 - rho) * np.float32((body.half_width + body.half_depth) / 2)
    return depth


def _organs(grid: Grid, body: Body, cavity: Field) -> Iterator[Layer]:
    """What lies in the chest and the upper abdomen, below a domed diaphragm."""
    edge = grid.edge_mm
    x, y, z = grid.x, grid.y, grid.z
    dome = 1 - (np.abs(x) / body.half_width - 0.45) ** 2 * 4 - (y / body.half_depth) ** 2
    above = z - (np.float32(-75) + np.float32(45) * np.clip(dome, 0, 1))
    yield Layer("fat", soft(cavity, edge))
    liver = np.minimum(np.minimum(ellipsoid(grid, (70.0, 5.0, -80.0), (95.0, 80.0, 75.0)), cavity - 4), -above - 4)
    yield Layer("liver", soft(liver, edge))
    mediastinum = np.abs(x + 6) - 30 - np.float32(12) * (y > 0)
    lung = np.minimum(np.minimum(cavity, above), mediastinum)
    lung = np.minimum(lung, 118 - z - 0.004 * (np.abs(x) - 70) ** 2)
    yield Layer("lung", soft(lung, edge))
    yield Layer("heart", soft(ellipsoid(grid, (-22.0, 22.0, -22.0), (52.0, 42.0, 48.0)), edge))
    for start, stop, radius in body.vessels:
        low, high = np.minimum(start, stop).tolist(), np.maximum(start, stop).tolist()
        box = grid.box((low[0], low[1], low[2]), (high[0], high[1], high[2]), margin_mm=radius + edge)
        part = grid.crop(box)
        tube = np.minimum(np.float32(radius) - capsule_distance(part.x, part.y, part.z, start, stop), lung[box])
        yield Layer("vessel", soft(tube, edge) * min(1.0, 2 * radius / edge), box)
    yield Layer("vessel", soft(12 - np.hypot(x + 20, y + 38), edge))  # descending aorta
    for cx, cy, cz, radius in body.nodules:
        box = grid.box((cx, cy, cz), (cx, cy, cz), margin_mm=radius + edge)
        yield Layer("nodule", soft_sphere(grid.crop(box), (cx, cy, cz), radius), box)


def _bones(grid: Grid, body: Body, depth: Field) -> Iterator[Layer]:
    edge, z = grid.edge_mm, grid.z
    in_wall = depth - np.float32(body.fat + 5)
    wall = np.minimum(in_wall, np.float32(body.wall - 7) - in_wall)
    slant = z + np.float32(0.35) * (grid.y - np.float32(body.half_depth))
    ribs = np.minimum(wall, 5 - np.abs((slant % 30) - 15))
    yield Layer("bone", soft(np.minimum(ribs, z + 80), edge))
    spine_y = -body.half_depth + body.fat + 42
    body_of_vertebra = 17 - np.hypot(grid.x, np.float32(0.9) * (grid.y - np.float32(spine_y)))
    between_discs = 11 - np.abs((z % 28) - 14)
    yield Layer("muscle", soft(body_of_vertebra, edge))  # intervertebral disc
    yield Layer("bone", soft(np.minimum(body_of_vertebra, between_discs), edge))
    yield Layer("marrow", soft(np.minimum(body_of_vertebra, between_discs) - 2, edge))
    process = ellipsoid(grid, (0.0, spine_y - 28, 0.0), (5.0, 14.0, 400.0))
    yield Layer("bone", soft(np.minimum(process, 9 - np.abs((z % 28) - 14)), edge))
    sternum = np.hypot(grid.x * np.float32(0.4), grid.y - np.float32(body.half_depth - body.fat - body.wall + 5))
    yield Layer("bone", soft(np.minimum(6 - sternum, z + 30), edge))


def body_layers(grid: Grid, body: Body) -> Iterator[Layer]:
    """Layers of one trunk in painting order; their tissues are the keys of `ranges.BODY.hu`."""
    depth = _trunk_depth(grid, body)
    yield Layer("fat", soft(depth, grid.edge_mm))
    yield Layer("muscle", soft(depth - np.float32(body.fat), grid.edge_mm))
    yield from _organs(grid, body, depth - np.float32(body.fat + body.wall))
    yield from _bones(grid, body, depth)


def _table(grid: Grid, body: Body) -> Layer:
    """A hollow, slightly curved table top under the back."""
    top = -body.half_depth - 6 + np.float32(3e-4) * grid.x * grid.x
    inside = np.minimum(np.minimum(top - grid.y, grid.y - top + 18), 210 - np.abs(grid.x))
    return Layer("table", soft(np.minimum(inside, 4 - inside), grid.edge_mm))


def body_phantom(body: Body, spacing_mm: Vector, shape: tuple[int, int, int] | None = None) -> Volume:
    """CT of `body` in HU, float32, axis-aligned RAS voxels of `spacing_mm`; the usual field without a `shape`."""
    if shape is None:
        side = 64 * BODY.pixel
        i, j, k = (max(1, round(n / s)) for n, s in zip((side, side, BODY.coverage_s), spacing_mm, strict=True))
        shape = (i, j, k)
    affine = affine_centred(shape, spacing_mm)
    grid = make_grid(shape, affine, pose_matrix((0.0, 0.0, body.roll_deg), body.shift_mm))
    image = np.full(shape, body.hu["air"], np.float32)
    flat = make_grid(shape, affine, pose_matrix((0.0, 0.0, 0.0), body.shift_mm))
    for layer in (_table(flat, body), *body_layers(grid, body)):
        part = image[layer.box]
        part += layer.alpha * (np.float32(body.hu[layer.tissue]) - part)
    rng = np.random.default_rng([_BODY_NOISE, body.seed])
    image += np.float32(body.noise_hu) * rng.standard_normal(shape, np.float32)
    return Volume(np.clip(image, -1024, 3071), affine, "ct")
