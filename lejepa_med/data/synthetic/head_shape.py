"""The anatomy of a head as painted layers: each layer covers what lies below it by a fraction per voxel.

Frame: RAS mm, origin between the lateral ventricles, so the patient's left is x < 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lejepa_med.data.synthetic.shapes import (
    Box,
    Field,
    Grid,
    Vector,
    capsule_distance,
    ellipsoid,
    make_grid,
    soft,
    soft_sphere,
)

TISSUES = ("air", "fat", "bone", "muscle", "csf", "grey", "white", "ventricle", "lesion", "eye")

WHOLE: Box = (slice(None), slice(None), slice(None))

# Centre lines of one lateral ventricle (x of the right one) with calibre weights: frontal horn, body, atrium, occipital
# and temporal horn. Order of magnitude from anatomy atlases.
_VENTRICLE_PATHS: tuple[tuple[Vector, Vector, float], ...] = (
    ((11.0, 34.0, 2.0), (11.0, 14.0, 15.0), 1.20),
    ((11.0, 14.0, 15.0), (14.0, -22.0, 19.0), 1.00),
    ((14.0, -22.0, 19.0), (23.0, -38.0, 6.0), 1.15),
    ((23.0, -38.0, 6.0), (21.0, -58.0, 1.0), 0.75),
    ((24.0, -36.0, 4.0), (31.0, -8.0, -20.0), 0.45),
)
_VENTRICLE_BOX: tuple[Vector, Vector] = ((-34.0, -70.0, -30.0), (34.0, 48.0, 32.0))
_SEPTUM_HALF_MM = 0.8


@dataclass(frozen=True)
class Anatomy:
    """The measures of one head; lengths in mm, volumes in ml, phases in radians."""

    breadth: float
    length: float
    vertex: float
    scalp: float
    skull: float
    subarachnoid: float
    cortex: float
    sulcus_depth: float
    sulcus_half_width: float
    sulcus_wavelength: float
    phases: tuple[float, ...]
    warp: Vector
    ventricle_ml: float
    ventricle_asymmetry: float
    lesions: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def scale(self) -> Vector:
        """Size of this head over the average one, per axis."""
        return (self.breadth / 148.0, self.length / 192.0, self.vertex / 80.0)


@dataclass(frozen=True)
class Layer:
    """`alpha` of `tissue` over what was painted before, inside `box`."""

    tissue: str
    alpha: Field
    box: Box = WHOLE


def warp(grid: Grid, anatomy: Anatomy) -> Grid:
    """Three smooth shears in turn: each head is uneven in its own way, and no volume changes."""
    a, p, k = anatomy.warp, anatomy.phases, np.float32(2 * np.pi / 150.0)
    x = grid.x + np.float32(a[0]) * np.sin(k * grid.y + np.float32(p[0]))
    y = grid.y + np.float32(a[1]) * np.sin(k * grid.z + np.float32(p[1]))
    z = grid.z + np.float32(a[2]) * np.sin(k * x + np.float32(p[2]))
    return Grid(x, y, z, grid.to_index, grid.edge_mm)


def surface_depth(grid: Grid, anatomy: Anatomy) -> Field:
    """Depth below the skin of the cranium, mm: half a superellipsoid above, a longer one (face, neck) below."""
    z_scaled = np.where(grid.z > 0, grid.z / np.float32(anatomy.vertex), grid.z / np.float32(anatomy.vertex * 1.8))
    u = grid.x * np.float32(2 / anatomy.breadth)
    v = grid.y * np.float32(2 / anatomy.length)
    plane = u * u + v * v
    rho = np.sqrt(np.sqrt(plane * plane + (z_scaled * z_scaled) ** 2 + 1.6 * plane * z_scaled * z_scaled))
    radius = 0.25 * (anatomy.breadth + anatomy.length) - 4.0
    depth: Field = (1 - rho) * np.float32(radius)
    return depth


def cortex_depth(grid: Grid, anatomy: Anatomy, inside_skull: Field) -> Field:
    """Depth below the folded outer surface of the cerebrum, mm: sulci are thin clefts down to `sulcus_depth`."""
    x, y, z, p = grid.x, grid.y, grid.z, anatomy.phases
    k = np.float32(2 * np.pi / anatomy.sulcus_wavelength)
    fold = np.sin(k * x + np.float32(1.1) * np.sin(k * y + np.float32(p[3])) + np.float32(p[4]))
    fold += np.sin(k * y + np.float32(1.1) * np.sin(k * z + np.float32(p[5])) + np.float32(p[6]))
    fold += np.sin(k * z + np.float32(1.1) * np.sin(k * x + np.float32(p[7])) + np.float32(p[8]))
    depth = inside_skull - np.float32(anatomy.subarachnoid)
    to_sulcus = np.abs(fold) / (np.float32(1.5) * k) - np.float32(anatomy.sulcus_half_width)
    to_sulcus += np.maximum(depth - np.float32(anatomy.sulcus_depth), 0)
    callosum = 1 - np.sqrt((y / 62) ** 2 + ((z - 2) / 32) ** 2)
    to_fissure = np.abs(x) - np.float32(anatomy.sulcus_half_width + 0.6) + np.maximum(callosum, 0) * 80
    folded: Field = np.minimum(np.minimum(depth, to_sulcus), to_fissure)
    return folded


def ventricle_size(grid: Grid, anatomy: Anatomy) -> Field:
    """Calibre (mm) that the lateral ventricles must have to reach each voxel."""
    sx, sy, sz = anatomy.scale
    x: Field = np.abs(grid.x) * np.float32(1 / sx)
    y: Field = grid.y * np.float32(1 / sy)
    z: Field = grid.z * np.float32(1 / sz)
    size: Field = np.full(x.shape, 1e3, np.float32)
    for start, stop, weight in _VENTRICLE_PATHS:
        np.minimum(size, capsule_distance(x, y, z, start, stop) / np.float32(weight), out=size)
    size *= 1 + np.float32(anatomy.ventricle_asymmetry) * np.sign(grid.x)
    return size


def _third_ventricle_size(grid: Grid, anatomy: Anatomy) -> Field:
    _, sy, sz = anatomy.scale
    outside = np.maximum(np.sqrt(((grid.y / sy + 4) / 1.3) ** 2 + (grid.z / sz + 3) ** 2) - 9, 0)
    size: Field = np.sqrt(grid.x * grid.x + outside * outside).astype(np.float32) / np.float32(0.4)
    return size


def _ventricle_alpha(lateral: Field, third: Field, septum: Field, size: float, edge_mm: float) -> Field:
    alpha: Field = np.maximum(soft(size - lateral, edge_mm) * septum, soft(0.4 * (size - third), edge_mm))
    return alpha


@lru_cache(maxsize=1024)
def ventricle_calibre(anatomy: Anatomy, edge_mm: float) -> float:
    """Calibre (mm) at which lateral and third ventricles together hold `ventricle_ml`, edges of `edge_mm` included."""
    spacing = 2.0
    shape = (35, 60, 32)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (-34.0, -70.0, -30.0)
    grid = make_grid(shape, affine, np.eye(4))
    sx, sy, sz = anatomy.scale
    grid = Grid(grid.x * np.float32(sx), grid.y * np.float32(sy), grid.z * np.float32(sz), grid.to_index, edge_mm)
    lateral, third = ventricle_size(grid, anatomy), _third_ventricle_size(grid, anatomy)
    septum = soft(np.abs(grid.x) - np.float32(_SEPTUM_HALF_MM), edge_mm)
    voxel_ml = spacing**3 * sx * sy * sz / 1000
    low, high = 0.5, 20.0
    for _ in range(12):
        middle = (low + high) / 2
        volume = float(_ventricle_alpha(lateral, third, septum, middle, edge_mm).sum()) * voxel_ml
        low, high = (middle, high) if volume < anatomy.ventricle_ml else (low, middle)
    return (low + high) / 2


def _scaled(anatomy: Anatomy, point: Vector) -> Vector:
    sx, sy, sz = anatomy.scale
    return (point[0] * sx, point[1] * sy, point[2] * sz)


def _blob(
    grid: Grid, anatomy: Anatomy, tissue: str, centre: Vector, radii: Vector, mirrored: bool = False
) -> Iterator[Layer]:
    c, r = _scaled(anatomy, centre), _scaled(anatomy, radii)
    low = (-c[0] - r[0] if mirrored else c[0] - r[0], c[1] - r[1], c[2] - r[2])
    box = grid.box(low, (c[0] + r[0], c[1] + r[1], c[2] + r[2]), margin_mm=4 + grid.edge_mm)
    part = grid.crop(box)
    if part.x.size:
        yield Layer(tissue, soft(ellipsoid(part, c, r, mirrored), grid.edge_mm), box)


def _ventricles(grid: Grid, anatomy: Anatomy) -> Iterator[Layer]:
    low, high = (_scaled(anatomy, corner) for corner in _VENTRICLE_BOX)
    box = grid.box(low, high, margin_mm=4.0)
    part = grid.crop(box)
    if part.x.size:
        size = ventricle_calibre(anatomy, round(grid.edge_mm, 1))
        septum = soft(np.abs(part.x) - np.float32(_SEPTUM_HALF_MM), grid.edge_mm)
        lateral, third = ventricle_size(part, anatomy), _third_ventricle_size(part, anatomy)
        yield Layer("ventricle", _ventricle_alpha(lateral, third, septum, size, grid.edge_mm), box)


def _cranium(grid: Grid, anatomy: Anatomy) -> Iterator[Layer]:
    edge = grid.edge_mm
    depth = surface_depth(grid, anatomy)
    yield Layer("fat", soft(depth, edge))
    below_scalp = depth - np.float32(anatomy.scalp)
    yield Layer("muscle", soft(below_scalp, edge))
    floor = np.clip(np.float32(0.45) * grid.y - 48, -66, -27)  # skull base: high in front, low behind
    yield Layer("bone", soft(np.minimum(below_scalp, grid.z - floor + 7), edge))
    inside = np.minimum(below_scalp - np.float32(anatomy.skull), grid.z - floor)
    yield Layer("csf", soft(inside, edge))
    cortex = cortex_depth(grid, anatomy, inside)
    yield Layer("grey", soft(cortex, edge))
    yield Layer("white", soft(cortex - np.float32(anatomy.cortex), edge))


def head_layers(grid: Grid, anatomy: Anatomy) -> Iterator[Layer]:
    """Layers of one head in painting order."""
    grid = warp(grid, anatomy)
    yield from _blob(grid, anatomy, "fat", (0.0, 94.0, -48.0), (13.0, 20.0, 24.0))  # nose
    yield from _cranium(grid, anatomy)
    yield from _blob(grid, anatomy, "air", (0.0, 62.0, -58.0), (11.0, 24.0, 16.0))  # nasal cavity
    yield from _blob(grid, anatomy, "eye", (31.0, 73.0, -36.0), (12.0, 12.0, 12.0), mirrored=True)
    yield from _blob(grid, anatomy, "csf", (0.0, -54.0, -44.0), (49.0, 32.0, 24.0))  # cerebellum in its cistern
    yield from _blob(grid, anatomy, "grey", (0.0, -54.0, -45.0), (46.0, 29.0, 21.0))
    yield from _blob(grid, anatomy, "white", (18.0, -50.0, -44.0), (17.0, 15.0, 9.0), mirrored=True)
    yield from _blob(grid, anatomy, "white", (0.0, -20.0, -48.0), (13.0, 13.0, 34.0))  # brainstem
    yield from _blob(grid, anatomy, "grey", (11.0, -14.0, 2.0), (9.0, 14.0, 9.0), mirrored=True)  # thalamus
    yield from _blob(grid, anatomy, "grey", (25.0, 6.0, 0.0), (7.0, 17.0, 10.0), mirrored=True)  # putamen
    for x, y, z, radius in anatomy.lesions:
        low, high = (x - radius, y - radius, z - radius), (x + radius, y + radius, z + radius)
        box = grid.box(low, high, margin_mm=4 + grid.edge_mm)
        part = grid.crop(box)
        if part.x.size:
            yield Layer("lesion", soft_sphere(part, (x, y, z), radius), box)
    yield from _ventricles(grid, anatomy)
