"""The plane of one slice: whether its header gives one, its directions, and whether two slices are parallel.

Directions are the perpendicular unit vectors nearest to those of the header. Slices are parallel if the same first
voxel would put every corner at the same place within `PARALLEL_MM`; an angle alone says nothing about large images.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.dicom.frame import Frame, Vector

PARALLEL_MM = 0.025
"""Half of what a voxel may be off, so that the other half is left for its position."""

DIRECTION_TOLERANCE = 0.002
"""Unit length and right angle as far as three decimals keep them."""

Plane = tuple[Vector, Vector, int, int]
"""Orientation, pixel spacing, rows, columns."""


def has_geometry(frame: Frame) -> bool:
    """Whether a frame says where it is: unit, perpendicular directions, a position and a positive pixel size."""
    if not (frame.position and frame.orientation and frame.pixel_spacing and frame.rows * frame.columns):
        return False
    numbers = (*frame.position, *frame.orientation, *frame.pixel_spacing)
    if not all(map(math.isfinite, numbers)) or min(frame.pixel_spacing) <= 0:
        return False
    across, down = frame.orientation[:3], frame.orientation[3:]
    lengths = math.hypot(*across), math.hypot(*down)
    skew = sum(a * b for a, b in zip(across, down, strict=True))
    return max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(skew)) <= DIRECTION_TOLERANCE


def plane(frame: Frame) -> Plane:
    """What parallel slices have in common."""
    return frame.orientation, frame.pixel_spacing, frame.rows, frame.columns


def common_plane(frames: Sequence[Frame]) -> Plane:
    """The plane that most of the frames have."""
    counts = Counter(map(plane, frames))
    return min(counts, key=lambda found: (-counts[found], found))


@functools.lru_cache(maxsize=4096)
def directions(orientation: Vector) -> NDArray[np.float64]:
    """`[2, xyz]`: the direction along a row and the direction along a column, LPS."""
    left, _, right = np.linalg.svd(np.array(orientation, dtype=np.float64).reshape(2, 3), full_matrices=False)
    nearest: NDArray[np.float64] = left @ right  # polar decomposition
    nearest.setflags(write=False)
    return nearest


def normal(orientation: Vector) -> NDArray[np.float64]:
    """The unit vector that is perpendicular to a slice, LPS."""
    across, down = directions(orientation)
    perpendicular: NDArray[np.float64] = np.cross(across, down)
    return perpendicular


@functools.lru_cache(maxsize=4096)
def image_sides(given: Plane) -> NDArray[np.float64]:
    """`[2, xyz]`: the vectors along the first row and down the first column of an image, LPS mm."""
    sides: NDArray[np.float64] = directions(given[0]) * _lengths(given)[:, None]
    sides.setflags(write=False)
    return sides


def corner_distances_mm(sides: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far a corner of each image `[image, 2, xyz]` is at most from that of another, first voxels at one place."""
    apart = sides - other
    corners = np.stack([apart[:, 0], apart[:, 1], apart.sum(axis=1)])
    farthest: NDArray[np.float64] = np.linalg.norm(corners, axis=-1).max(axis=0)
    return farthest


def corrected_by_mm(given: Plane) -> float:
    """How far a corner moves at most because the header's directions are not unit and perpendicular."""
    as_given = np.array(given[0]).reshape(1, 2, 3) * _lengths(given)[:, None]
    return float(corner_distances_mm(as_given, image_sides(given))[0])


def _lengths(given: Plane) -> NDArray[np.float64]:
    _, (between_rows, between_columns), rows, columns = given
    return np.array([columns * between_columns, rows * between_rows], dtype=np.float64)
