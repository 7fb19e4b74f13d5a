"""Single elements of a DICOM header as plain values; what is absent or malformed is empty or NaN, never an error."""

from __future__ import annotations

import math

import pydicom
from pydicom.dataset import Dataset

from lejepa_med.data.frame import Vector


def text(header: Dataset | None, word: str) -> str:
    """An element as stripped text, empty when absent."""
    value = None if header is None else header.get(word)
    if value is None:
        return ""
    return str(value).strip(" \0")


def strings(header: Dataset, word: str) -> tuple[str, ...]:
    """A multi-valued element as upper-case texts."""
    value = header.get(word)
    if value is None:
        return ()
    values = value if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value]
    return tuple(str(part).strip().upper() for part in values)


def number(header: Dataset, word: str) -> float:
    """An element as a number, NaN when absent or unreadable."""
    value = header.get(word)
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def vector(header: Dataset, word: str, length: int) -> Vector:
    """An element as that many finite numbers, empty when it is anything else."""
    value = header.get(word)
    try:
        numbers = tuple(float(part) for part in value or ())
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == length and all(math.isfinite(part) for part in numbers) else ()
