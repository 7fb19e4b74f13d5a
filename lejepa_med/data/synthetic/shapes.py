"""Soft analytic shapes: a signed distance in mm becomes the fraction of a voxel, so that no supersampling is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Vector = tuple[float | int, float | int, float | int]  # beartype takes no int for a float
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """Coordinates of every voxel in the frame of the body, mm, and the way back from that frame to voxel indices."""

    x: Field
    y: Field
    z: Field
    to_index: NDArray[np.float64]
    edge_mm: float

    def crop(self, box: Box) -> Grid:
        """The same grid restricted to `box`; `to_index` keeps naming the whole grid."""
        return Grid(self.x[box], self.y[box], self.z[box], self.to_index, self.edge_mm)

    def box(self, low: Vector, high: Vector, margin_mm: float) -> Box:
        """Index range that holds the box `low`-`high` (body frame, mm) with a margin; may be empty outside the grid."""
        corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1)
        index = self.to_index[:3, :3] @ corners + self.to_index[:3, 3:]
        reach = np.linalg.norm(self.to_index[:3, :3], axis=1) * margin_mm
        start = np.clip(np.floor(index.min(axis=1) - reach), 0, self.x.shape).astype(int)
        stop = np.clip(np.ceil(index.max(axis=1) + reach) + 1, 0, self.x.shape).astype(int)
        return (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))


def affine_centred(
    shape: tuple[int, ...], spacing_mm: Vector, centre_mm: Vector = (0.0, 0.0, 0.0)
) -> NDArray[np.float64]:
    """RAS affine of an axis-aligned grid whose middle lies at `centre_mm`."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = np.array(centre_mm) - np.diag(spacing_mm) @ (np.array(shape) - 1) / 2
    return affine


def make_grid(shape: tuple[int, int, int], affine: NDArray[np.float64], pose: NDArray[np.float64]) -> Grid:
    """Grid of a scan: `affine` takes indices to scanner RAS mm, `pose` takes the body's frame to the scanner's."""
    to_body = np.linalg.inv(pose) @ affine
    i, j, k = (np.arange(n, dtype=np.float32) for n in shape)
    rows = to_body.astype(np.float32)
    x, y, z = (
        row[0] * i[:, None, None] + row[1] * j[None, :, None] + (row[2] * k + row[3])[None, None, :] for row in rows[:3]
    )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    to_index: NDArray[np.float64] = np.linalg.inv(to_body).astype(np.float64)
    return Grid(x, y, z, to_index, float(np.prod(spacing) ** (1 / 3)))


def pose_matrix(rotation_deg: Vector, shift_mm: Vector) -> NDArray[np.float64]:
    """Rigid 4x4 motion: rotations about R, A and S, in that order, then a shift."""
    pose = np.eye(4)
    for axis, degrees in enumerate(rotation_deg):
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn = np.eye(4)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[first, first] = turn[second, second] = cos
        turn[first, second], turn[second, first] = -sin, sin
        pose = turn @ pose
    pose[:3, 3] = shift_mm
    return pose


def soft(distance_mm: Field, edge_mm: float) -> Field:
    """Fraction inside: 0 below `-edge_mm / 2`, 1 above `edge_mm / 2`; distances are positive inside."""
    fraction = distance_mm * np.float32(1 / edge_mm)
    fraction += np.float32(0.5)
    np.clip(fraction, 0, 1, out=fraction)
    return fraction


def ellipsoid(grid: Grid, centre: Vector, radii: Vector, mirrored: bool = False) -> Field:
    """Distance into an ellipsoid, mm (first order at its surface); `mirrored` draws its mirror image in x too."""
    x = np.abs(grid.x) if mirrored else grid.x
    u, v, w = ((c - m) / np.float32(r) for c, m, r in zip((x, grid.y, grid.z), centre, radii, strict=True))
    rho = np.sqrt(u * u + v * v + w * w)
    return (1 - rho) * np.float32(np.prod(radii) ** (1 / 3))


def soft_sphere(grid: Grid, centre: Vector, radius: float) -> Field:
    """Fraction inside a sphere that keeps its volume: a soft one of radius r holds `4/3 pi (r^3 + r edge^2 / 4)`."""
    inner = radius
    for _ in range(6):  # Newton; convex, so it converges from above
        inner -= (inner**3 + inner * grid.edge_mm**2 / 4 - radius**3) / (3 * inner**2 + grid.edge_mm**2 / 4)
    return soft(ellipsoid(grid, centre, (inner, inner, inner)), grid.edge_mm)


def capsule_distance(x: Field, y: Field, z: Field, start: Vector, stop: Vector) -> Field:
    """Distance to the segment `start`-`stop`, mm."""
    a, d = np.array(start, np.float32), np.subtract(stop, start, dtype=np.float32)
    px, py, pz = x - a[0], y - a[1], z - a[2]
    t = np.clip((px * d[0] + py * d[1] + pz * d[2]) / np.float32(d @ d), 0, 1)
    px -= t * d[0]
    py -= t * d[1]
    pz -= t * d[2]
    distance: Field = np.sqrt(px * px + py * py + pz * pz)
    return distance
