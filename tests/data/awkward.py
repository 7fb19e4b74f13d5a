"""The table of awkward series: each a function that makes the files, with its story and what `index` must say of it.

An outcome is `8 slices` (accepted), `9 slices: missing_slices` (flagged) or `rejected irregular_spacing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from dicom_factory import AXIAL, FIELD, image, set_pixels, write
from dicom_factory import field as field_at
from pydicom.dataset import Dataset

CONTRAST = 6000.0
"""Added to the values of each further time point or contrast, so that mixed volumes are seen."""

INTERPOLATED = {"missing_slices", "resampled_slices"}


@dataclass(frozen=True)
class Case:
    """One awkward series."""

    name: str
    story: str
    expected: tuple[str, ...]
    build: Callable[[Path], None]
    within_mm: float = 0.0
    rounding: float = 0.5
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """The largest difference of values: whole numbers, twice rounded where interpolated, and places."""
        twice = any(flag in outcome for outcome in self.expected for flag in INTERPOLATED)
        return self.rounding * (2 if twice else 1) + 0.01 + self.within_mm * float(np.linalg.norm(FIELD))


CASES: dict[str, Case] = {}
Maker = Callable[[], Sequence[Dataset]]


def case(
    story: str, *expected: str, within_mm: float = 0.0, rounding: float = 0.5, **settings: object
) -> Callable[[Maker], Maker]:
    """Registers a function that makes the slices of a case."""

    def register(make: Maker) -> Maker:
        def build(folder: Path) -> None:
            write(folder, list(make()))

        name = make.__name__
        assert name not in CASES
        CASES[name] = Case(name, story, expected, build, within_mm, rounding, settings)
        return make

    return register


def folder_case(story: str, *expected: str, **settings: object) -> Callable[[Callable[[Path], None]], object]:
    """Registers a function that writes the files of a case itself."""

    def register(build: Callable[[Path], None]) -> object:
        CASES[build.__name__] = Case(build.__name__, story, expected, build, settings=settings)
        return build

    return register


def axial(heights: Sequence[float], first: int = 1, **elements: object) -> list[Dataset]:
    """Axial slices at these heights, numbered from `first`."""
    return [image((-3.0, 4.0, float(z)), first + k, **elements) for k, z in enumerate(heights)]


def along(
    step: Sequence[float], count: int, orientation: Sequence[float] = AXIAL, start: Sequence[float] = (-3.0, 4.0, -10.0)
) -> list[Dataset]:
    """Slices of one orientation whose positions go on by `step`."""
    return [
        image(tuple((np.array(start) + k * np.array(step)).tolist()), k + 1, tuple(orientation)) for k in range(count)
    ]


def brighter(datasets: Sequence[Dataset], part: int) -> list[Dataset]:
    """The same slices as another time point or contrast: other values, other instance UIDs."""
    for dataset in datasets:
        position, orientation = dataset.ImagePositionPatient, dataset.ImageOrientationPatient
        set_pixels(dataset, field_at(list(position), list(orientation)) + CONTRAST * part)
        dataset.SOPInstanceUID += f".{part + 1}"
    return list(datasets)


def renumber(slices: list[Dataset], first: int) -> list[Dataset]:
    """Gives slices other instance UIDs."""
    for k, dataset in enumerate(slices):
        dataset.SOPInstanceUID = f"1.2.826.77.9.{first + k}"
    return slices


def repeated(parts: int, heights: Sequence[float], change: Callable[[Dataset, int, int], None]) -> list[Dataset]:
    """Several volumes at the same heights; `change(dataset, part, slice)` sets what tells them apart."""
    made: list[Dataset] = []
    for part in range(parts):
        slices = brighter(axial(heights), part)
        for number, dataset in enumerate(slices):
            change(dataset, part, number)
        made += slices
    return made


def table() -> str:
    """The page `docs/dicom_cases.md`."""
    lines = [
        "# Awkward series, and what `index` makes of each",
        "",
        "Each case is made by `tests/data/awkward_*.py`; its voxel values say where in the patient they are. The test",
        "indexes the files, compares every row with the column on the right (several outcomes are several rows), reads",
        "each volume that is kept, and checks every voxel against the affine: right to 0.05 mm. It is written by",
        "`python tests/data/test_awkward_series.py`.",
        "",
        "| case | story | outcome |",
        "|---|---|---|",
    ]
    lines += [f"| {c.name.replace('_', ' ')} | {c.story} | {'; '.join(c.expected)} |" for c in CASES.values()]
    return "\n".join(lines) + "\n"
