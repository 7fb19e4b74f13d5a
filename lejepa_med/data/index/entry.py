"""One row of an index, with the files behind it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import nibabel
import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.dicom.stack import Stack

Affine = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class FileUse:
    """A file by its number in the order of the walk, the frames of it that a series has, and their places in it."""

    file: int
    size: int
    frames: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()


class FilePlace(NamedTuple):
    """Where such a file is, to read it."""

    path: str
    relative: str
    size: int
    mtime: int
    frames: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A row of the index. `part` is the volume of a 4D file; `detail` goes into the report page.

    `content` and `signature` tell which volumes are the same one twice, and which have changed.
    """

    series_key: str
    reason: str
    flags: frozenset[str]
    source: str
    files: tuple[FileUse, ...] = ()
    modality: str = ""
    body_part: str = ""
    sequence: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    orientation: str = ""
    num_files: int = 0
    num_slices: int = 0
    patient_key: str = ""
    study_key: str = ""
    bytes: int = 0
    detail: str = ""
    series_hash: str = ""
    part: int = 0
    group_key: str = ""
    gaps_mm: tuple[float, ...] = ()  # least, median, largest
    tilt_degrees: float | None = None
    affine: Affine = ()  # RAS+ mm, empty where there is no geometry
    content: str = ""  # equal for equal voxels in equal places
    signature: str = ""  # of the files of a DICOM volume: changes whenever one of them does
    acquisition: str = ""  # what decides on the group
    stack: Stack | None = None  # of a DICOM volume, until the row is stored

    @property
    def verdict(self) -> str:
        """accepted, flagged or rejected."""
        if self.reason:
            return "rejected"
        return "flagged" if self.flags else "accepted"

    def rejected(self, reason: str) -> Entry:
        """The same row, not used."""
        return replace(self, reason=reason)

    def flagged(self, *flags: str) -> Entry:
        """The same row with more remarks."""
        return replace(self, flags=self.flags | set(flags))

    def with_content(self, content: str) -> Entry:
        """The same row, with what its voxels are compared by."""
        return replace(self, content=content)

    def to_json(self) -> str:
        """The row without its files."""
        values = {name: getattr(self, name) for name in _STORED}
        return json.dumps(values | {"flags": sorted(self.flags)}, separators=(",", ":"))


_STORED = tuple(field.name for field in dataclasses.fields(Entry) if field.name not in ("files", "stack"))


def from_json(text: str) -> Entry:
    """The row that `to_json` wrote."""
    values = {name: as_tuples(value) for name, value in json.loads(text).items()}
    return Entry(**values | {"flags": frozenset(values["flags"])})


def as_tuples(values: Any) -> Any:
    """Lists of JSON, at any depth, as the tuples they were."""
    return tuple(as_tuples(value) for value in values) if isinstance(values, (list, tuple)) else values


def geometry_of(affine: NDArray[np.float64], dimensions: int) -> tuple[tuple[float, ...], str]:
    """Spacing in mm and the axis codes (such as LPS) of an affine."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[:dimensions]
    codes = "".join(code or "?" for code in nibabel.aff2axcodes(affine)[:dimensions])
    return tuple(float(length) for length in spacing), codes


def tilt_of(affine: NDArray[np.float64]) -> float:
    """Degrees between the normal of the slices (the first two axes) and the direction in which they are stacked."""
    normal, step = np.cross(affine[:3, 0], affine[:3, 1]), affine[:3, 2]
    lengths = float(np.linalg.norm(normal) * np.linalg.norm(step))
    cosine = abs(float(np.dot(normal, step))) / lengths if lengths else 1.0
    return round(float(np.degrees(np.arccos(min(1.0, cosine)))), 2)


def to_affine(array: NDArray[np.float64]) -> Affine:
    """A matrix as tuples."""
    return tuple(tuple(float(value) for value in row) for row in array)
