"""Groups the frames of one DICOM series into volumes: pure functions of frames, no files.

Frames are grouped by geometry, ordered by their position along the normal, and split by temporal position, echo,
b-value and the like only where positions repeat or parts overlap. Names and instance numbers decide nothing.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom_stack import Stack, along_normal, stack
from lejepa_med.data.frame import Frame

ORIENTATION_TOLERANCE = np.cos(np.deg2rad(0.1))
REGULAR_SHARE = 0.9
"""A split counts if this share of the slices falls into regular stacks."""

_TIME_TAGS: tuple[str, ...] = ("temporal", "trigger", "direction", "acquisition", "time")
_SPLIT_TAGS: tuple[str, ...] = (
    "temporal", "trigger", "echo", "b_value", "direction", "image_type", "stack", "acquisition", "time",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """Frames that form one volume, in order, and the verdict on them.

    `group` and `part` tell volumes of one series apart, whatever else the archive holds.
    """

    frames: tuple[Frame, ...]
    group: str
    part: str
    stack: Stack | None
    reason: str
    flags: frozenset[str]
    dropped: tuple[Frame, ...] = ()


def assemble(frames: Sequence[Frame], settings: IndexSettings) -> list[Candidate]:
    """The candidate volumes of one series; its frames have distinct SOP instances."""
    usable = [frame for frame in frames if not frame.damage]
    groups = geometry_groups(usable)
    candidates = [candidate for label, group in groups for candidate in _candidates_of_group(label, group, settings)]
    images = [candidate for candidate in candidates if candidate.frames[0].kind == "image"]
    if len(images) > 1:
        candidates = [replace(candidate, flags=candidate.flags | {"split_series"}) for candidate in candidates]
    if len(usable) < len(frames):
        candidates = [replace(candidate, flags=candidate.flags | {"truncated_slices"}) for candidate in candidates]
    return candidates


def geometry_groups(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """Frames that share frame of reference, kind, matrix, pixel spacing and orientation (within 0.1 degree).

    The largest group is labelled "0", so that a stray localizier under the same series changes no key.
    """
    exact: dict[tuple[object, ...], list[list[Frame]]] = defaultdict(list)
    for frame in sorted(frames, key=_identity):
        clusters = exact[(frame.frame_of_reference, frame.kind, frame.rows, frame.columns, has_geometry(frame))]
        for cluster in clusters:
            if not has_geometry(frame) or same_plane(cluster[0], frame):
                cluster.append(frame)
                break
        else:
            clusters.append([frame])
    groups = [cluster for clusters in exact.values() for cluster in clusters]
    groups.sort(key=lambda group: (group[0].kind != "image", -len(group), _signature(group[0])))
    return [(str(rank), group) for rank, group in enumerate(groups)]


def has_geometry(frame: Frame) -> bool:
    """Whether a frame says where it is: unit, perpendicular directions, a position and a positive pixel size."""
    if not (frame.position and frame.orientation and frame.pixel_spacing) or min(frame.pixel_spacing) <= 0:
        return False
    across, down = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    return bool(np.allclose(lengths, 1, atol=0.01) and abs(np.dot(across, down)) < 0.01 and frame.rows * frame.columns)


def same_plane(first: Frame, second: Frame) -> bool:
    """Whether two frames have one orientation (within 0.1 degree) and one pixel spacing (within 0.1 %)."""
    spacing = np.allclose(first.pixel_spacing, second.pixel_spacing, rtol=1e-3, atol=0)
    a, b = np.array(first.orientation).reshape(2, 3), np.array(second.orientation).reshape(2, 3)
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return bool(spacing and cosines.min() >= ORIENTATION_TOLERANCE)


def _candidates_of_group(label: str, frames: list[Frame], settings: IndexSettings) -> list[Candidate]:
    if not has_geometry(frames[0]):
        reason = frames[0].kind if frames[0].kind != "image" else "no_geometry"
        return [Candidate(tuple(frames), label, "", None, reason, frozenset())]
    parts = split(frames, settings)
    kept = _kept_parts(parts, settings.keep_timepoints)
    return [_judge(label, part, tuple(group), part in kept, settings) for part, group in parts.items()]


def _judge(label: str, part: str, frames: tuple[Frame, ...], kept: bool, settings: IndexSettings) -> Candidate:
    unique, dropped, repeated = drop_repeated_positions(frames)
    built = stack(unique, settings.max_hole_slices)
    flags = {flag for frame in frames for flag in frame.flags} | set(built.flags)
    if repeated:
        flags.add("repeated_positions")
    reason = _kind_reason(frames[0].kind, settings)
    if frames[0].kind != "image" and not reason:
        flags.add("localizer" if frames[0].kind == "localizer" else "derived_map")
    if not reason and len(built.frames) + built.missing < settings.min_slices:
        reason = "too_few_slices"
    if not reason and repeated > max(1, len(frames) // 10):
        reason = "ambiguous_positions"
    reason = reason or built.reason or ("" if kept else "timepoint_not_kept")
    return Candidate(built.frames, label, part, built, reason, frozenset(flags), dropped)


def _kind_reason(kind: str, settings: IndexSettings) -> str:
    if kind == "image" or (kind == "localizer" and settings.keep_localizers):
        return ""
    return "" if settings.keep_derived and kind in ("projection", "derived_map", "phase_image") else kind


def drop_repeated_positions(frames: Sequence[Frame]) -> tuple[tuple[Frame, ...], tuple[Frame, ...], int]:
    """Frames in order along the normal with one per position, the frames left out, and their number."""
    order = sorted(zip(along_normal(frames).tolist(), map(_identity, frames), frames, strict=True), key=lambda x: x[:2])
    kept: list[tuple[float, Frame]] = []
    dropped: list[Frame] = []
    for place, _, frame in order:
        if kept and place - kept[-1][0] < _same_place_mm(frame):
            dropped.append(frame)
        else:
            kept.append((place, frame))
    return tuple(frame for _, frame in kept), tuple(dropped), len(dropped)


def _same_place_mm(frame: Frame) -> float:
    return 0.02 * min(frame.pixel_spacing) if frame.pixel_spacing else 0.01


def split(frames: list[Frame], settings: IndexSettings) -> dict[str, list[Frame]]:
    """The parts of one geometry group by label; a single part "" where nothing repeats or nothing explains it."""
    unique, _, repeated = drop_repeated_positions(frames)
    whole = {"": frames}
    if not repeated and not stack(unique, settings.max_hole_slices).reason:
        return whole
    varying = [tag for tag in _SPLIT_TAGS if len({_value(frame, tag) for frame in frames}) > 1]
    for size in (1, 2, 3):
        best, best_share = whole, REGULAR_SHARE
        for tags in itertools.combinations(varying, size):
            parts = _parts(frames, tags)
            share = _regular_share(list(parts.values()), settings)
            better = share > best_share or (share == best_share and best is whole)
            if better and (repeated or _overlap(list(parts.values()))):
                best, best_share = parts, share
        if best is not whole:
            return best
    return whole


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


def _regular_share(parts: Sequence[Sequence[Frame]], settings: IndexSettings) -> float:
    regular = 0
    for part in parts:
        unique, _, repeated = drop_repeated_positions(part)
        if len(unique) >= 3 and not repeated and not stack(unique, settings.max_hole_slices).reason:
            regular += len(part)
    return regular / sum(len(part) for part in parts)


def _overlap(parts: Sequence[Sequence[Frame]]) -> bool:
    normal = _normal(parts[0][0])
    extents = sorted((min(places), max(places)) for places in (_places(part, normal) for part in parts))
    return any(after[0] < before[1] for before, after in itertools.pairwise(extents))


def _places(frames: Sequence[Frame], normal: NDArray[np.float64]) -> list[float]:
    return [float(np.dot(frame.position, normal)) for frame in frames]


def _normal(frame: Frame) -> NDArray[np.float64]:
    return np.cross(frame.orientation[:3], frame.orientation[3:])


def _kept_parts(parts: dict[str, list[Frame]], limit: int) -> set[str]:
    """Of parts that differ in time or direction only, the first `limit`."""
    seen: Counter[str] = Counter()
    kept = set()
    for label, frames in parts.items():
        contrast = "|".join(_value(frames[0], tag) for tag in _SPLIT_TAGS if tag not in _TIME_TAGS)
        seen[contrast] += 1
        if seen[contrast] <= limit:
            kept.add(label)
    return kept


def _identity(frame: Frame) -> tuple[str, int, str]:
    return frame.sop_uid, frame.index, frame.path


def _signature(frame: Frame) -> tuple[object, ...]:
    rounded: Callable[[Sequence[float]], tuple[float, ...]] = lambda values: tuple(round(v, 2) + 0.0 for v in values)  # noqa: E731
    return frame.kind, frame.rows, frame.columns, rounded(frame.pixel_spacing), rounded(frame.orientation)
