"""Tells one interleaved scan from volumes whose slices lie between each other: together, both look like one fine stack.

What names a time point, a contrast or a stack settles it: volumes. Acquisition numbers, acquisition times and trigger
times do not, since packages of one scan differ in them too. But packages fill every place in turn, at even distances:
parts that do not are volumes. What is left is one volume, and said to be undecided.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.stack import ON_GRID_MM, Stack, stack

MIN_SLICES = 3
"""Fewer slices are no regular stack of their own: any two are."""

REGULAR_SHARE = 0.9
"""Parts count if this share of the slices falls into regular stacks."""

_NAMES_A_VOLUME: tuple[str, ...] = ("temporal", "echo", "b_value", "direction", "image_type", "stack")
_NAMES_A_PASS: tuple[str, ...] = ("trigger", "acquisition", "time")


def taken_apart_by(whole: Stack, max_missing: int) -> tuple[str, bool]:
    """The first tag by which a regular stack falls into volumes that lie between each other, empty if none does.

    And then, whether numbers or times of acquisition make stacks of their own of its slices, but evenly spaced ones.
    Where every slice has its own, as in step-and-shoot and most of MRI, nothing does.
    """
    for tag in _NAMES_A_VOLUME:
        if _turns(whole, tag, max_missing):
            return tag, False
    undecided = False
    for tag in _NAMES_A_PASS:
        parts = _turns(whole, tag, max_missing)
        if parts and _uneven(whole, parts):
            return tag, False
        undecided |= bool(parts)
    return "", undecided


def tag_value(frame: Frame, tag: str) -> str:
    """A tag of a frame as text."""
    value = getattr(frame, tag)
    return "\\".join(value) if isinstance(value, tuple) else str(value)


def _turns(whole: Stack, tag: str, max_missing: int) -> list[NDArray[np.int64]]:
    """The slices of each value of a tag if each value makes a regular stack, none has neighbours, and some overlap."""
    values = list(map(attrgetter(tag), whole.frames))
    if values.count(values[0]) == len(values):
        return []
    counts = Counter(values)
    if sum(count for count in counts.values() if count >= MIN_SLICES) < REGULAR_SHARE * len(values):
        return []
    slots = np.array(whole.slots)
    members: dict[str | tuple[str, ...], list[int]] = defaultdict(list)
    for k, value in enumerate(values):
        members[value].append(k)
    large = [np.array(part) for _, part in sorted(members.items()) if len(part) >= MIN_SLICES]
    if any((np.diff(slots[part]) < 2).any() for part in large):
        return []
    parts = [part for part in large if not stack([whole.frames[k] for k in part], max_missing).reason]
    extents = sorted((int(slots[part[0]]), int(slots[part[-1]])) for part in parts)
    overlap = any(after[0] < before[1] for before, after in pairwise(extents))
    return parts if overlap and sum(map(len, parts)) >= REGULAR_SHARE * len(values) else []


def _uneven(whole: Stack, parts: Sequence[NDArray[np.int64]]) -> bool:
    """Whether parts leave places between them empty throughout, or are each on a grid that is off that of the whole."""
    slots = np.array(whole.slots)
    steps = {int(np.diff(slots[part]).min()) for part in parts}
    if len(steps) == 1:
        (step,) = steps
        if len(set((slots % step).tolist())) < step:
            return True
    return bool(whole.shifts.any()) and _off_within_parts_mm(whole, parts) <= ON_GRID_MM / 2


def _off_within_parts_mm(whole: Stack, parts: Sequence[NDArray[np.int64]]) -> float:
    """How far slices lie at most off grids of one step, each part having a start of its own."""
    positions, slots = np.array([frame.position for frame in whole.frames]), np.array(whole.slots, dtype=np.float64)
    beside = np.concatenate([positions[part] - positions[part].mean(axis=0) for part in parts])
    along = np.concatenate([slots[part] - slots[part].mean() for part in parts])
    step = along @ beside / (along @ along)
    return float(np.linalg.norm(beside - along[:, None] * step, axis=1).max())
