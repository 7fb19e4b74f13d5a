"""Tells one interleaved scan from volumes whose slices lie between each other: together, both look like one fine stack.

What names a time point, a contrast or a stack settles it: volumes. Acquisition numbers, acquisition times and trigger
times do not, since packages of one scan differ in them too. But packages fill every place in turn, at even distances:
parts that do not are volumes. The rest stays one volume, which `taken_in_turns` tells of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

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


def separating_tag(whole: Stack, max_missing: int) -> str:
    """The first tag by which a regular stack falls into volumes that lie between each other; empty if none does."""
    for tag in _NAMES_A_VOLUME:
        if _turns(whole, tag, max_missing):
            return tag
    for tag in _NAMES_A_PASS:
        parts = _turns(whole, tag, max_missing)
        if parts and _uneven(whole, parts):
            return tag
    return ""


def taken_in_turns(whole: Stack, max_missing: int) -> bool:
    """Whether numbers or times of acquisition make stacks of their own of the slices of an evenly spaced one.

    Where every slice has its own, as step-and-shoot and most MRI have it, nothing does.
    """
    return any(_turns(whole, tag, max_missing) for tag in _NAMES_A_PASS)


def tag_value(frame: Frame, tag: str) -> str:
    """A tag of a frame as text."""
    value = getattr(frame, tag)
    return "\\".join(value) if isinstance(value, tuple) else str(value)


def _turns(whole: Stack, tag: str, max_missing: int) -> list[NDArray[np.int64]]:
    """The slices of each value of a tag if each value makes a regular stack, none has neighbours, and some overlap."""
    values = [tag_value(frame, tag) for frame in whole.frames]
    counts = Counter(values)
    if len(counts) < 2 or sum(count for count in counts.values() if count >= MIN_SLICES) < REGULAR_SHARE * len(values):
        return []
    places, slots = np.array(values), np.array(whole.slots)
    members = (np.flatnonzero(places == value) for value, count in sorted(counts.items()) if count >= MIN_SLICES)
    parts = [part for part in members if _regular([whole.frames[k] for k in part], max_missing)]
    if any((np.diff(slots[part]) < 2).any() for part in parts):
        return []
    extents = sorted((int(slots[part[0]]), int(slots[part[-1]])) for part in parts)
    overlap = any(after[0] < before[1] for before, after in pairwise(extents))
    return parts if overlap and sum(map(len, parts)) >= REGULAR_SHARE * len(values) else []


def _regular(frames: Sequence[Frame], max_missing: int) -> bool:
    return not stack(frames, max_missing).reason


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
