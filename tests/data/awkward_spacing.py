"""Awkward series: where slices are, along the stack and within the plane."""

from __future__ import annotations

import copy

import numpy as np
from awkward import along, axial, brighter, case
from dicom_factory import field, set_pixels, stack, turned
from pydicom.dataset import Dataset

EVEN = [2.5 * k for k in range(10)]


def moved(slices: list[Dataset], offset: tuple[float, float, float], *which: int) -> list[Dataset]:
    """Moves some slices, with their values."""
    for k in which:
        position = np.array(slices[k].ImagePositionPatient, dtype=float) + offset
        slices[k].ImagePositionPatient = position.tolist()
        set_pixels(slices[k], field(position, slices[k].ImageOrientationPatient))
    return slices


@case("ten slices, file names shuffled", "10 slices")
def shuffled_names() -> list[Dataset]:
    return axial(EVEN)


@case("InstanceNumber runs against the position", "10 slices")
def reversed_instance_numbers() -> list[Dataset]:
    slices = axial(EVEN)
    for k, dataset in enumerate(slices):
        dataset.InstanceNumber = 10 - k
    return slices


@case("one slice inside is missing", "10 slices: missing_slices")
def missing_slice() -> list[Dataset]:
    return [*axial(EVEN[:4]), *axial(EVEN[5:], 6)]


@case("two slices inside are missing, apart", "10 slices: missing_slices")
def two_missing_slices() -> list[Dataset]:
    return axial([z for k, z in enumerate(EVEN) if k not in (3, 7)])


@case("more slices are missing than `max_hole_slices`", "rejected irregular_spacing")
def many_missing_slices() -> list[Dataset]:
    return axial([z for k, z in enumerate(EVEN) if k not in (2, 3, 7)])


@case("first and last slice are missing: a shorter volume in its right place", "8 slices")
def missing_ends() -> list[Dataset]:
    return axial(EVEN[1:-1], 2)


@case("every second slice is missing at one end", "rejected irregular_spacing")
def gap_doubles_halfway() -> list[Dataset]:
    return axial([0, 1, 2, 3, 4, 6, 8, 10, 12])


@case("the same file twice under two names", "10 slices: repeated_slices", "rejected duplicate")
def duplicate_same_uid() -> list[Dataset]:
    slices = axial(EVEN)
    return [*slices, copy.deepcopy(slices[4])]


@case("a slice again under a new UID, equal pixels", "10 slices: repeated_positions", "rejected duplicate")
def duplicate_new_uid() -> list[Dataset]:
    return [*axial(EVEN), *axial([EVEN[4]], 50)]


@case("a slice again under a new UID, other pixels: one of the two is used", "10 slices: repeated_positions",
      "rejected duplicate", rounding=6001.0)  # fmt: skip
def duplicate_other_pixels() -> list[Dataset]:
    return [*axial(EVEN), *brighter(axial([EVEN[4]], 50), 1)]


@case("a slice is missing and its neighbour is there twice", "10 slices: missing_slices;repeated_positions",
      "rejected duplicate")  # fmt: skip
def duplicate_masks_hole() -> list[Dataset]:
    return [*axial(EVEN[:5]), *axial([EVEN[4]], 50), *axial(EVEN[6:], 7)]


@case("a slice again 0.04 mm higher", "10 slices: repeated_positions", "rejected duplicate", within_mm=0.05)
def duplicate_a_hair_apart() -> list[Dataset]:
    return [*axial(EVEN), *axial([EVEN[4] + 0.04], 50)]


@case("half the gaps are tiny: copies 0.3 mm apart", "rejected irregular_spacing")
def many_near_duplicates() -> list[Dataset]:
    return axial([z + d for z in EVEN for d in (0, 0.3)])


@case("all positions equal; only SliceLocation differs", "rejected too_few_slices", "rejected duplicate")
def equal_positions() -> list[Dataset]:
    slices = axial([5.0] * 6)
    for k, dataset in enumerate(slices):
        dataset.SliceLocation = 2.5 * k
    return slices


@case("gaps of 1.08, 4 and 7 mm", "rejected irregular_spacing")
def variable_spacing() -> list[Dataset]:
    return axial([0, 1.08, 5.08, 9.08, 16.08, 23.08, 30.08])


@case("fine gaps, then coarse ones", "rejected irregular_spacing")
def spacing_changes_halfway() -> list[Dataset]:
    return axial([0, 2.5, 5, 7.5, 12.5, 17.5, 22.5])


@case("gaps that grow by 2 % each: none is off by 5 % of its neighbour", "rejected irregular_spacing")
def creeping_spacing() -> list[Dataset]:
    return axial(np.cumsum(2.5 * 1.02 ** np.arange(12)).tolist())


@case("two slices in all", "rejected too_few_slices")
def two_slices() -> list[Dataset]:
    return axial([0, 3])


@case("two slices, and two are enough", "2 slices", min_slices=2)
def two_slices_wanted() -> list[Dataset]:
    return axial([0, 3])


@case("one slice", "rejected too_few_slices")
def single_slice() -> list[Dataset]:
    return axial([0])


@case("slices that overlap: reconstructed every 0.3 of their thickness", "12 slices")
def overlapping_reconstruction() -> list[Dataset]:
    return axial((0.3 * np.arange(12)).tolist(), SliceThickness=1.0)


@case("slices of unequal thickness at equal distances", "10 slices")
def unequal_thickness() -> list[Dataset]:
    slices = axial(EVEN)
    for k, dataset in enumerate(slices):
        dataset.SliceThickness = 1.0 + k % 3
    return slices


@case("SpacingBetweenSlices and SliceThickness contradict the positions", "10 slices")
def lying_thickness() -> list[Dataset]:
    return axial(EVEN, SliceThickness=5.0, SpacingBetweenSlices=-7.0)


@case("positions jitter by 0.01 mm along the normal", "10 slices", within_mm=0.05)
def jitter_of_a_hundredth() -> list[Dataset]:
    return moved(moved(axial(EVEN), (0, 0, 0.01), 1, 4, 8), (0, 0, -0.01), 3, 5)


@case("positions jitter by 0.04 mm along the normal", "10 slices", within_mm=0.05)
def jitter_within_the_tolerance() -> list[Dataset]:
    return moved(moved(axial(EVEN), (0, 0, 0.04), 1, 4, 8), (0, 0, -0.04), 3, 6)


@case("positions jitter by 0.1 mm along the normal: interpolated", "10 slices: resampled_slices")
def jitter_beyond_the_tolerance() -> list[Dataset]:
    return moved(axial(EVEN), (0, 0, 0.1), 4)


@case("5 mm gaps, slices 0.2 mm off: within 5 %, interpolated", "10 slices: resampled_slices")
def jitter_of_coarse_slices() -> list[Dataset]:
    return moved(moved(axial([5.0 * k for k in range(10)]), (0, 0, 0.2), 3), (0, 0, -0.2), 7)


@case("positions jitter by 0.2 mm where gaps are 2.5 mm", "rejected irregular_spacing")
def jitter_too_large() -> list[Dataset]:
    return moved(axial(EVEN), (0, 0, 0.2), 4)


@case("jitter, and a slice is missing beside it", "10 slices: missing_slices;resampled_slices")
def jitter_and_hole() -> list[Dataset]:
    slices = moved(axial(EVEN), (0, 0, 0.1), 5)
    return [*slices[:4], *slices[5:]]


@case("a slice 0.04 mm aside within its plane", "10 slices", within_mm=0.05)
def shift_in_plane_small() -> list[Dataset]:
    return moved(axial(EVEN), (0.03, -0.02, 0), 4)


@case("a slice 0.2 mm aside within its plane: interpolated", "10 slices: resampled_slices")
def shift_in_plane() -> list[Dataset]:
    return moved(axial(EVEN), (0.15, -0.12, 0), 4)


@case("a slice 0.2 mm aside and a little higher, in a tilted stack", "10 slices: gantry_tilt;resampled_slices")
def shift_in_tilted_plane() -> list[Dataset]:
    return moved(along((0, 0, 2.5), 10, turned(15.0)), (0.15, -0.1, 0.08), 6)


@case("a slice 20 mm aside within its plane", "rejected irregular_spacing")
def stray_in_plane() -> list[Dataset]:
    return moved(axial(EVEN), (20, 0, 0), 4)


@case("positions rounded to one decimal, gaps of 0.625 mm", "14 slices: resampled_slices", within_mm=0.06)
def positions_of_one_decimal() -> list[Dataset]:
    slices = axial((0.625 * np.arange(14)).tolist())
    for dataset in slices:
        dataset.ImagePositionPatient = [round(float(part), 1) for part in dataset.ImagePositionPatient]
    return slices


@case("gaps of 0.1 mm", "14 slices")
def fine_gaps() -> list[Dataset]:
    return axial((0.1 * np.arange(14)).tolist())


@case("gaps of 0.04 mm", "14 slices: spacing_suspect")
def micro_gaps() -> list[Dataset]:
    return axial((0.04 * np.arange(14)).tolist())


@case("gaps of 0.02 mm", "14 slices: spacing_suspect")
def finer_micro_gaps() -> list[Dataset]:
    return axial((0.02 * np.arange(14)).tolist(), spacing=(0.02, 0.02))


@case("gaps of 0.025 mm, positions of two decimals", "14 slices: spacing_suspect", within_mm=0.006)
def micro_gaps_of_two_decimals() -> list[Dataset]:
    slices = axial((0.025 * np.arange(14)).tolist())
    for dataset in slices:
        dataset.ImagePositionPatient = [round(float(part), 2) for part in dataset.ImagePositionPatient]
    return slices


@case("gaps of 0.04 mm, a slice missing and another there twice",
      "14 slices: missing_slices;repeated_positions;spacing_suspect", "rejected duplicate")  # fmt: skip
def micro_gaps_with_a_hole_and_a_copy() -> list[Dataset]:
    slices = axial((0.04 * np.arange(14)).tolist())
    return [*slices[:5], *slices[6:], *axial([0.04 * 9], 50)]


@case("gaps of 0.04 mm, a slice 0.019 mm off", "14 slices: resampled_slices;spacing_suspect", within_mm=0.01)
def micro_gaps_with_jitter() -> list[Dataset]:
    return moved(axial((0.04 * np.arange(14)).tolist()), (0, 0, 0.019), 6)


@case("one place 14 times, drifting by 0.01 mm each time", "rejected ambiguous_positions", "rejected duplicate")
def drift_at_one_place() -> list[Dataset]:
    return axial((0.01 * np.arange(14)).tolist())


@case("pixel spacing 0", "rejected no_geometry")
def zero_pixel_spacing() -> list[Dataset]:
    return axial(EVEN, PixelSpacing=[0, 0])


@case("no position in one slice: a hole", "10 slices: missing_slices;split_series", "rejected no_geometry")
def one_position_missing() -> list[Dataset]:
    slices = axial(EVEN)
    del slices[4].ImagePositionPatient
    return slices


@case("no positions at all", "rejected no_geometry")
def all_positions_missing() -> list[Dataset]:
    slices = axial(EVEN)
    for dataset in slices:
        del dataset.ImagePositionPatient
    return slices


@case("100 m from the origin", "8 slices")
def huge_offsets() -> list[Dataset]:
    slices = stack(8)
    for k, dataset in enumerate(slices):
        position = (1e5, -1e5, 1e5 + 2.5 * k)
        base = round(float(field((1e5, -1e5, 1e5))[0, 0]))
        dataset.ImagePositionPatient, dataset.RescaleSlope, dataset.RescaleIntercept = list(position), 1, base - 5000
        set_pixels(dataset, field(position) - base + 5000)
    return slices
