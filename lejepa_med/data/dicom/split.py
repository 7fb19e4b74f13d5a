"""Splits slices of one plane into volumes by time point, echo, b-value and the like, and drops repeated positions.

Where positions repeat or parts overlap off the grid, a split needs at least 90 % of the slices in regular stacks; what
lies between each other on one grid is a matter of `interleaved`. Values are compared and, where they are numbers,
ordered; nothing else is read out of them.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.interleaved import MIN_SLICES, REGULAR_SHARE, tag_value, taken_apart_by
from lejepa_med.data.dicom.plane import common_plane, normal
from lejepa_med.data.dicom.stack import Stack, along_normal, stack

SAME_PLACE_MM = 0.05
"""Slices closer than this along the normal are at one position, unless all slices are that close (`_same_place_mm`)."""

_EQUAL_MM = 0.001
"""Positions that differ by no more differ in how they were written."""

_FINEST_GAP = 0.02
"""Slices at different places are at least this share of a pixel apart."""

TIME_TAGS: tuple[str, ...] = ("temporal", "trigger", "direction", "acquisition", "time")
_SPLIT_TAGS: tuple[str, ...] = (
    "temporal", "trigger", "echo", "b_value", "direction", "image_type", "stack", "acquisition", "time",
)  # fmt: skip


def identity(frame: Frame) -> tuple[str, int, str]:
    """What orders frames that nothing else does."""
    return frame.sop_uid, frame.index, frame.path


@dataclass(frozen=True)
class Part:
    """Frames of one volume, all of them; those with a position of their own as a stack, and the rest.

    `between_by` and `in_turns` are what `interleaved.taken_apart_by` says of the stack.
    """

    frames: list[Frame]
    stack: Stack
    dropped: tuple[Frame, ...]
    between_by: str
    in_turns: bool


def split(frames: list[Frame], settings: IndexSettings) -> dict[str, Part]:
    """The parts of one geometry group by label; a single part "" where nothing repeats or nothing explains it."""
    whole = _part(frames, settings)
    if not whole.dropped and not whole.stack.reason:
        return _between_each_other("", whole, settings)
    found: dict[str, Part] = {}
    for label, members in _by_overlap(frames, bool(whole.dropped), settings).items():
        found.update(_between_each_other(label, _part(members, settings) if label else whole, settings))
    return found


def _part(frames: list[Frame], settings: IndexSettings) -> Part:
    unique, dropped = drop_repeated_positions(frames)
    built = stack(unique, settings.max_hole_slices)
    tag, in_turns = ("", False) if built.reason else taken_apart_by(built, settings.max_hole_slices)
    return Part(frames, built, dropped, tag, in_turns)


def _by_overlap(frames: list[Frame], repeated: bool, settings: IndexSettings) -> dict[str, list[Frame]]:
    """Parts by the fewest tags that make regular stacks of slices at repeated positions or of parts that overlap."""
    whole = {"": frames}
    varying = [tag for tag in _SPLIT_TAGS if len(set(map(attrgetter(tag), frames))) > 1]
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


def _between_each_other(label: str, part: Part, settings: IndexSettings) -> dict[str, Part]:
    """A part, taken apart as often as its slices turn out to be those of several volumes."""
    if not part.between_by:
        return {label: part}
    found: dict[str, Part] = {}
    for name, members in _parts(part.frames, (part.between_by,)).items():
        found.update(_between_each_other(f"{label}|{name}" if label else name, _part(members, settings), settings))
    return found


def kept_parts(parts: dict[str, Part], limit: int) -> set[str]:
    """Of parts that differ in time or direction only, the first `limit`."""
    seen: Counter[str] = Counter()
    kept = set()
    for label, part in parts.items():
        contrast = "|".join(tag_value(part.frames[0], tag) for tag in _SPLIT_TAGS if tag not in TIME_TAGS)
        seen[contrast] += 1
        if seen[contrast] <= limit:
            kept.add(label)
    return kept


def drop_repeated_positions(frames: Sequence[Frame]) -> tuple[tuple[Frame, ...], tuple[Frame, ...]]:
    """Frames in order along the normal with one per position, and the frames left out.

    Of several at one position the one stays that agrees with most of the others: a stray slice of an aborted time
    point must not replace one of the volume.
    """
    places = along_normal(frames).tolist()
    order = sorted(range(len(frames)), key=lambda k: (places[k], identity(frames[k])))
    same_place = _same_place_mm(np.diff([places[k] for k in order]), frames[0])
    clusters: list[list[int]] = []
    for k in order:
        if clusters and places[k] - places[clusters[-1][0]] < same_place:
            clusters[-1].append(k)
        else:
            clusters.append([k])
    if len(clusters) == len(frames):
        return tuple(frames[k] for k in order), ()
    agreement = _agreement(frames)
    kept = [min(cluster, key=lambda k: (-agreement[k], identity(frames[k]))) for cluster in clusters]
    stays = set(kept)
    return tuple(frames[k] for k in kept), tuple(frames[k] for k in order if k not in stays)


def _same_place_mm(gaps: NDArray[np.float64], frame: Frame) -> float:
    """Below which distance slices with these gaps are at one position.

    Usually `SAME_PLACE_MM`. Less for a stack whose every gap is that fine, and regular enough to be no jitter.
    """
    apart = gaps[gaps > _EQUAL_MM]
    if not len(apart) or apart.min() >= SAME_PLACE_MM:
        return SAME_PLACE_MM
    median = float(np.median(apart))
    is_fine = bool(apart.min() >= 0.5 * median and apart.max() <= 4 * median)
    if not is_fine or median < _FINEST_GAP * min(frame.pixel_spacing):
        return SAME_PLACE_MM
    return min(SAME_PLACE_MM, max(0.5 * median, _EQUAL_MM))


def _agreement(frames: Sequence[Frame]) -> list[int]:
    """For each frame, how many frames share each of its values, summed over the tags."""
    counts = {tag: Counter(tag_value(frame, tag) for frame in frames) for tag in _SPLIT_TAGS}
    return [sum(counts[tag][tag_value(frame, tag)] for tag in _SPLIT_TAGS) for frame in frames]


def _parts(frames: Sequence[Frame], tags: Sequence[str]) -> dict[str, list[Frame]]:
    parts: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        parts["|".join(f"{tag}={tag_value(frame, tag)}" for tag in tags)].append(frame)
    return dict(sorted(parts.items(), key=lambda item: _natural(item[1][0], tags)))


def _natural(frame: Frame, tags: Sequence[str]) -> tuple[tuple[float, str], ...]:
    def key(value: str) -> tuple[float, str]:
        try:
            return float(value), value
        except ValueError:
            return float("inf") if value else float("-inf"), value

    return tuple(key(tag_value(frame, tag)) for tag in tags)


def _regular_share(parts: Sequence[Sequence[Frame]], max_missing: int) -> float:
    regular = 0
    for part in (part for part in parts if len(part) >= MIN_SLICES):
        unique, dropped = drop_repeated_positions(part)
        if not dropped and not stack(unique, max_missing).reason:
            regular += len(part)
    return regular / sum(len(part) for part in parts)


def _overlap(parts: Sequence[Sequence[Frame]]) -> bool:
    direction = normal(common_plane(parts[0])[0])
    places = [[float(np.dot(frame.position, direction)) for frame in part] for part in parts]
    extents = sorted((min(part), max(part)) for part in places)
    return any(after[0] < before[1] for before, after in itertools.pairwise(extents))
