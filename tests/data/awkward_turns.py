"""Awkward series: slices that lie between each other, of one interleaved scan or of several time points."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from awkward import CONTRAST, axial, brighter, case
from pydicom.dataset import Dataset

GAP = 3.0
EVEN = [GAP * k for k in range(10)]
TWO = ["10 slices: split_series"] * 2
THREE = ["10 slices: split_series"] * 3
KEYWORDS: dict[str, Callable[[int], object]] = {
    "TemporalPositionIdentifier": lambda part: part + 1,
    "TriggerTime": lambda part: 40.0 * part + 15,
    "AcquisitionNumber": lambda part: part + 1,
    "AcquisitionTime": lambda part: f"10{part + 10}30.5",
    "DiffusionGradientOrientation": lambda part: np.eye(3)[part].tolist(),
    "StackID": lambda part: str(part + 1),
}
SAY_NOTHING = ("TriggerTime", "AcquisitionNumber", "AcquisitionTime")
"""What differs between time points and also between packages of one scan."""


def shifted(keyword: str, shifts: Sequence[float], heights: Sequence[float] = EVEN) -> list[Dataset]:
    """Time points that are shifted against each other by shares of the gap, told apart by one element."""
    made = []
    for part, share in enumerate(shifts):
        slices = axial([z + GAP * share for z in heights], 50 * part + 1)
        made.append(brighter(slices, part) if part else slices)
        for dataset in slices:
            setattr(dataset, keyword, KEYWORDS[keyword](part))
    return list(itertools.chain(*made))


def turns(count: int, packages: int, **tags: Callable[[int], object]) -> list[Dataset]:
    """One scan whose slices are acquired in packages; each tag is a function of the number of a package."""
    slices = axial([1.5 * k for k in range(count)])
    for k, dataset in enumerate(slices):
        for keyword, value in tags.items():
            setattr(dataset, keyword, value(k % packages))
    return slices


def _register(keyword: str) -> None:
    """The shifts that a table motion, a prospective correction or a new prescription makes."""
    name = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in keyword).strip()
    name = name.replace(" ", "_").replace("i_d", "id")
    undecided = keyword in SAY_NOTHING
    whole = "{} slices: interleaved_parts".format

    def add(suffix: str, story: str, expected: Sequence[str], *shifts: float, count: int = 10) -> None:
        def make() -> list[Dataset]:
            return shifted(keyword, shifts, EVEN[:count])

        make.__name__ = f"{suffix}_by_{name}"
        mixed = CONTRAST if "interleaved_parts" in expected[0] else 0.0  # the parts of what stays one differ that much
        case(f"{story}, told apart by {keyword} only", *expected, rounding=mixed + 0.5)(make)

    add("shifted_by_a_third", "the second time point lies 1/3 gap higher", TWO, 0, 1 / 3)
    short = ["3 slices: split_series"] * 2
    add("short_ones_shifted", "two short time points, the second 2/3 gap higher", short, 0, 2 / 3, count=3)
    thirds = [whole(30)] if undecided else THREE
    add("shifted_by_thirds", "three time points, each 1/3 gap higher", thirds, 0, 1 / 3, 2 / 3)
    halves = [whole(20)] if undecided else TWO
    add("shifted_by_a_half", "the second time point lies half a gap higher", halves, 0, 1 / 2)
    add("shifted_off_the_half", "the second time point lies 0.2 mm off the middle of the gaps", TWO, 0, 1.3 / GAP)
    near = "the second time point lies 0.1 mm off the middle of the gaps: regular within 0.1 mm"
    add("shifted_almost_a_half", near, TWO, 0, 1.4 / GAP)


for _keyword in KEYWORDS:
    _register(_keyword)


@case("three time points shifted by thirds; one lacks a slice", *THREE[:2], "10 slices: missing_slices;split_series")
def shifted_by_thirds_with_a_hole() -> list[Dataset]:
    slices = shifted("TemporalPositionIdentifier", (0, 1 / 3, 2 / 3))
    return [*slices[:14], *slices[15:]]


@case("three time points shifted by thirds, and one slice twice", *THREE[:2],
      "10 slices: repeated_positions;split_series", "rejected duplicate")  # fmt: skip
def shifted_by_thirds_with_a_copy() -> list[Dataset]:
    slices = shifted("TemporalPositionIdentifier", (0, 1 / 3, 2 / 3))
    return [*slices, *axial([EVEN[4]], 900, TemporalPositionIdentifier=1)]


@case("two echoes at each of three time points that are shifted by thirds", *["10 slices: split_series"] * 6)
def echoes_of_shifted_time_points() -> list[Dataset]:
    made = []
    for echo in range(2):
        slices = shifted("TemporalPositionIdentifier", (0, 1 / 3, 2 / 3))
        for dataset in slices:
            dataset.EchoTime = 10.0 + 80 * echo
            dataset.SOPInstanceUID += f".9{echo}"
        made += slices
    return made


@case("two echoes between each other at each of two time points, all a quarter apart", *["10 slices: split_series"] * 4)
def echoes_between_time_points() -> list[Dataset]:
    made = []
    for echo in range(2):
        slices = shifted("TemporalPositionIdentifier", (echo / 2, 1 / 4 + echo / 2))
        for dataset in slices:
            dataset.EchoTime = 10.0 + 80 * echo
            dataset.SOPInstanceUID += f".9{echo}"
        made += slices
    return made


@case("time points shifted by a third, every slice with its own AcquisitionTime", "rejected irregular_spacing")
def shifted_with_many_times() -> list[Dataset]:
    slices = shifted("AcquisitionTime", (0, 1 / 3))
    for k, dataset in enumerate(slices):
        dataset.AcquisitionTime = f"1015{k:02d}"
    return slices


@case("interleaved: odd slices first, every slice with its own AcquisitionTime", "12 slices")
def interleaved_with_many_times() -> list[Dataset]:
    slices = turns(12, 2)
    for k, dataset in enumerate(slices):
        dataset.AcquisitionTime = f"1015{(k % 2) * 6 + k // 2:02d}"
    return slices


@case("two packages by AcquisitionTime only", "12 slices: interleaved_parts")
def two_packages_by_time() -> list[Dataset]:
    return turns(12, 2, AcquisitionTime=lambda part: f"10153{part}.25")


@case("three concatenations, each with its number and time", "15 slices: interleaved_parts")
def three_packages() -> list[Dataset]:
    return turns(15, 3, AcquisitionNumber=lambda part: part + 1, AcquisitionTime=lambda part: f"10153{part}.25")


@case("two packages, one slice is missing", "12 slices: interleaved_parts;missing_slices")
def two_packages_with_a_hole() -> list[Dataset]:
    slices = turns(12, 2, AcquisitionNumber=lambda part: part + 1)
    return [*slices[:5], *slices[6:]]


@case("two packages, the second slice is missing", "12 slices: interleaved_parts;missing_slices")
def two_packages_with_an_early_hole() -> list[Dataset]:
    slices = turns(12, 2, AcquisitionNumber=lambda part: part + 1)
    return [slices[0], *slices[2:]]


@case("two packages at positions of one decimal", "14 slices: interleaved_parts;resampled_slices", within_mm=0.06)
def two_packages_of_one_decimal() -> list[Dataset]:
    slices = axial((0.625 * np.arange(14)).tolist())
    for k, dataset in enumerate(slices):
        dataset.ImagePositionPatient = [round(float(part), 1) for part in dataset.ImagePositionPatient]
        dataset.AcquisitionNumber = 1 + k % 2
    return slices


@case("three slices excited at once: 5 times for 15 slices", "15 slices: interleaved_parts")
def simultaneous_slices() -> list[Dataset]:
    return turns(15, 5, AcquisitionTime=lambda part: f"10153{part}.25")


@case("three slices excited at once, one slice missing and one 0.1 mm off",
      "30 slices: interleaved_parts;missing_slices;resampled_slices", within_mm=0.1)  # fmt: skip
def simultaneous_slices_with_a_hole() -> list[Dataset]:
    slices = turns(30, 10, AcquisitionTime=lambda part: f"1015{part + 10}.25")
    slices[23].ImagePositionPatient = [-3.0, 4.0, 1.5 * 23 + 0.1]
    return [*slices[:17], *slices[18:]]


@case("step and shoot: another AcquisitionNumber and time for every second slice", "12 slices")
def step_and_shoot_of_two() -> list[Dataset]:
    slices = turns(12, 1)
    for k, dataset in enumerate(slices):
        dataset.AcquisitionNumber, dataset.AcquisitionTime = k // 2 + 1, f"1015{k // 2:02d}"
    return slices


@case("step and shoot of four slices, each with its own number and time", "12 slices")
def step_and_shoot_of_four() -> list[Dataset]:
    slices = turns(12, 1)
    for k, dataset in enumerate(slices):
        dataset.AcquisitionNumber, dataset.AcquisitionTime = k // 4 + 1, f"1015{k // 4:02d}"
    return slices


@case("interleaved and stepped: two numbers for each block of eight slices", "16 slices: interleaved_parts")
def interleaved_blocks() -> list[Dataset]:
    slices = turns(16, 1)
    for k, dataset in enumerate(slices):
        dataset.AcquisitionNumber = 1 + k % 2 + 2 * (k // 8)
    return slices
