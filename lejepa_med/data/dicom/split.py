"""Splits slices of one plane into volumes by time point, echo, b-value and the like, and drops repeated positions.

A split happens only where positions repeat or parts overlap, and only if at least 90 % of the slices then form regular
stacks. Values are compared and, where they are numbers, ordered; nothing else is read out of them.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.plane import common_plane, normal
from lejepa_med.data.dicom.stack import along_normal, stack

REGULAR_SHARE = 0.9
"""A split counts if this share of the slices falls into regular stacks."""

SAME_PLACE_MM = 0.05
"""Slices closer than this along the normal are at one position."""

TIME_TAGS: tuple[str, ...] = ("temporal", "trigger", "direction", "acquisition", "time")
_CONTRAST_TAGS: tuple[str, ...] = ("echo", "b_value", "image_type")
_SPLIT_TAGS: tuple[str, ...] = (
    "temporal", "trigger", "echo", "b_value", "direction", "image_type", "stack", "acquisition", "time",
)  # fmt: skip


def identity(frame: Frame) -> tuple[str, int, str]:
    """What orders frames that nothing else does."""
    return frame.sop_uid, frame.index, frame.path


def split(frames: list[Frame], settings: IndexSettings) -> dict[str, list[Frame]]:
    """The parts of one geometry group by label; a single part "" where nothing repeats or nothing explains it."""
    unique, _, repeated = drop_repeated_positions(frames)
    whole = {"": frames}
    varying = [tag for tag in _SPLIT_TAGS if len({_value(frame, tag) for frame in frames}) > 1]
    if not repeated and not stack(unique, settings.max_hole_slices).reason:
        return _interleaved_contrasts(frames, varying) or whole
    for size in (1, 2, 3):
        best, best_share = whole, REGULAR_SHARE
        for tags in itertools.combinations(varying, size):
            parts = _parts(frames, tags)
            share = _regular_share(list(parts.values()), settings.max_hole_slices)
            better = share > best_share or (share == best_share and best is whole)
            if better and (repeated or _overlap(list(parts.values()))):
                best, best_share = parts, share
        if best is not whole:
            return best
    return whole


def _interleaved_contrasts(frames: Sequence[Frame], varying: Sequence[str]) -> dict[str, list[Frame]]:
    """Parts of different contrast whose slices lie between each other, each without a hole; empty where there are none.

    Together they look like one stack of half the gap.
    """
    for tag in (tag for tag in _CONTRAST_TAGS if tag in varying):
        parts = _parts(frames, (tag,))
        if _overlap(list(parts.values())) and _regular_share(list(parts.values()), 0) == 1:
            return parts
    return {}


def kept_parts(parts: dict[str, list[Frame]], limit: int) -> set[str]:
    """Of parts that differ in time or direction only, the first `limit`."""
    seen: Counter[str] = Counter()
    kept = set()
    for label, frames in parts.items():
        contrast = "|".join(_value(frames[0], tag) for tag in _SPLIT_TAGS if tag not in TIME_TAGS)
        seen[contrast] += 1
        if seen[contrast] <= limit:
            kept.add(label)
    return kept


def drop_repeated_positions(frames: Sequence[Frame]) -> tuple[tuple[Frame, ...], tuple[Frame, ...], int]:
    """Frames in order along the normal with one per position, the frames left out, and their number.

    Of several at one position the one stays that agrees with most of the others: a stray slice of an aborted time
    point must not replace one of the volume.
    """
    places = along_normal(frames).tolist()
    order = sorted(range(len(frames)), key=lambda k: (places[k], identity(frames[k])))
    clusters: list[list[int]] = []
    for k in order:
        if clusters and places[k] - places[clusters[-1][0]] < SAME_PLACE_MM:
            clusters[-1].append(k)
        else:
            clusters.append([k])
    if len(clusters) == len(frames):
        return tuple(frames[k] for k in order), (), 0
    agreement = _agreement(frames)
    kept = [min(cluster, key=lambda k: (-agreement[k], identity(frames[k]))) for cluster in clusters]
    stays = set(kept)
    dropped = [k for k in order if k not in stays]
    return tuple(frames[k] for k in kept), tuple(frames[k] for k in dropped), len(dropped)


def _agreement(frames: Sequence[Frame]) -> list[int]:
    """For each frame, how many frames share each of its values, summed over the tags."""
    counts = {tag: Counter(_value(frame, tag) for frame in frames) for tag in _SPLIT_TAGS}
    return [sum(counts[tag][_value(frame, tag)] for tag in _SPLIT_TAGS) for frame in frames]


def _parts(frames: Sequence[Frame], tags: Sequence[str]) -> dict[str, list[Frame]]:
    parts: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        parts["|".join(f"{tag}={_value(frame, tag)}" for tag in tags)].append(frame)
    return dict(sorted(parts.items(), key=lambda item: _natural(item[1][0], tags)))


def _value(frame: Frame, tag: str) -> str:
    value = getattr(frame, tag)
    return "\\".join(value) if isinstance(value, tuple) else str(value)


def _natural(frame: Frame, tags: Sequence[str]) -> tuple[tuple[float, str], ...]:
    def key(value: str) -> tuple[float, str]:
        try:
            return float(value), value
        except ValueError:
            return float("inf") if value else float("-inf"), value

    return tuple(key(_value(frame, tag)) for tag in tags)


def _regular_share(parts: Sequence[Sequence[Frame]], max_missing: int) -> float:
    regular = 0
    for part in (part for part in parts if len(part) >= 3):
        unique, _, repeated = drop_repeated_positions(part)
        if not repeated and not stack(unique, max_missing).reason:
            regular += len(part)
    return regular / sum(len(part) for part in parts)


def _overlap(parts: Sequence[Sequence[Frame]]) -> bool:
    direction = normal(common_plane(parts[0])[0])
    places = [[float(np.dot(frame.position, direction)) for frame in part] for part in parts]
    extents = sorted((min(part), max(part)) for part in places)
    return any(after[0] < before[1] for before, after in itertools.pairwise(extents))
