"""Awkward series: how slices are turned."""

from __future__ import annotations

import numpy as np
from awkward import along, case, renumber
from dicom_factory import image, turned
from pydicom.dataset import Dataset
from scipy.spatial.transform import Rotation


@case("directions rounded to three decimals", "8 slices", within_mm=0.05)
def orientation_of_three_decimals() -> list[Dataset]:
    turn = Rotation.from_euler("xyz", (11, 23, 37), degrees=True).as_matrix()
    slices = along(turn[:, 2] * 2.5, 8, (*turn[:, 0], *turn[:, 1]))
    for dataset in slices:
        dataset.ImageOrientationPatient = [round(float(part), 3) for part in dataset.ImageOrientationPatient]
    return slices


@case("every slice is tilted by 0.05 degrees more, in an image so wide that its corners are 0.5 mm off",
      *["rejected too_few_slices"] * 8)  # fmt: skip
def drifting_tilt() -> list[Dataset]:
    wide = {"spacing": (40.0, 40.0)}
    return [image((0, 0, 3.0 * k), k + 1, turned(0.05 * k), **wide) for k in range(8)]


@case("tilted by 15 degrees", "8 slices: gantry_tilt")
def tilt() -> list[Dataset]:
    return along((0, 0, 3.0), 8, turned(15.0))


@case("tilted by 15 degrees the other way", "8 slices: gantry_tilt")
def tilt_backwards() -> list[Dataset]:
    return along((0, 0, 3.0), 8, turned(-15.0))


@case("tilted, and a slice is missing", "8 slices: gantry_tilt;missing_slices")
def tilt_and_hole() -> list[Dataset]:
    slices = along((0, 0, 3.0), 8, turned(15.0))
    return [*slices[:3], *slices[4:]]


@case("the tilt changes within the series", *["5 slices: gantry_tilt;split_series"] * 2)
def changing_tilt() -> list[Dataset]:
    low, high = along((0, 0, 3.0), 5, turned(15.0)), along((0, 0, 3.0), 5, turned(10.0), (-3.0, 4.0, 5.0))
    return [*low, *renumber(high, 50)]


@case("sagittal, turned by some degrees", "8 slices")
def oblique_sagittal() -> list[Dataset]:
    turn = Rotation.from_euler("z", 7, degrees=True).as_matrix() @ np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])
    return along(np.cross(turn[:, 0], turn[:, 1]) * 2.0, 8, (*turn[:, 0], *turn[:, 1]))


@case("coronal", "8 slices")
def coronal() -> list[Dataset]:
    return along((0, 2.0, 0), 8, (1, 0, 0, 0, 0, -1))


@case("turned around two axes", "8 slices")
def double_oblique() -> list[Dataset]:
    turn = Rotation.from_euler("xy", (25, -35), degrees=True).as_matrix()
    return along(turn[:, 2] * 2.0, 8, (*turn[:, 0], *turn[:, 1]))


@case("patient on the side", "8 slices")
def decubitus() -> list[Dataset]:
    return along((0, 0, 2.0), 8, (0, 1, 0, -1, 0, 0))


@case("feet first, face down: rows and columns run backwards", "8 slices")
def feet_first_prone() -> list[Dataset]:
    return along((0, 0, -2.0), 8, (-1, 0, 0, 0, -1, 0))


@case("rows mirrored: the normal points down", "8 slices")
def mirrored_rows() -> list[Dataset]:
    return along((0, 0, 2.0), 8, (-1, 0, 0, 0, 1, 0))


@case("the sign of the directions flips halfway: two volumes", *["5 slices: split_series"] * 2)
def directions_flip_halfway() -> list[Dataset]:
    turned_over = along((0, 0, 2.0), 5, (-1, 0, 0, 0, -1, 0), (-3, 4, 0))
    return [*along((0, 0, 2.0), 5), *renumber(turned_over, 50)]


@case("directions that are not perpendicular", "rejected no_geometry")
def skewed_directions() -> list[Dataset]:
    return along((0, 0, 2.0), 5, (1, 0, 0, 0.1, 0.995, 0))


@case("directions of length 2", "rejected no_geometry")
def directions_of_length_two() -> list[Dataset]:
    return along((0, 0, 2.0), 5, (2, 0, 0, 0, 2, 0))
