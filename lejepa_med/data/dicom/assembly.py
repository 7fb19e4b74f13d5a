"""Groups the frames of one DICOM series into volumes: pure functions of frames, no files.

Frames are grouped by owner, kind and plane, ordered by their position along the normal, and split where positions
repeat or parts overlap. Names and instance numbers decide nothing. Every frame given is used, dropped or damaged.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.plane import PARALLEL_MM, corner_distances_mm, has_geometry, image_sides, plane
from lejepa_med.data.dicom.split import Part, identity, kept_parts, split
from lejepa_med.data.dicom.stack import Stack

_FLAG_OF_DAMAGE = {"undecodable": "undecodable_slices"}


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
    left_out = {_FLAG_OF_DAMAGE.get(frame.damage, "truncated_slices") for frame in frames if frame.damage}
    if left_out:
        candidates = [replace(candidate, flags=candidate.flags | left_out) for candidate in candidates]
    return candidates


def geometry_groups(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """Frames that share owner, modality, kind, frame of reference, matrix and plane.

    The plane that most frames have leads; the largest group is labelled "0", so that a stray localizer under the same
    series changes no key.
    """
    alike: dict[tuple[object, ...], list[Frame]] = defaultdict(list)
    for frame in sorted(frames, key=identity):
        alike[(*_owner(frame), frame.kind, frame.rows, frame.columns, has_geometry(frame))].append(frame)
    groups = [cluster for members in alike.values() for cluster in _parallel(members)]
    groups.sort(key=lambda group: (group[0].kind != "image", -len(group), _signature(group[0])))
    return [(str(rank), group) for rank, group in enumerate(groups)]


def _owner(frame: Frame) -> tuple[str, ...]:
    return frame.patient_id, frame.study_uid, frame.series_uid, frame.modality, frame.frame_of_reference


def _parallel(frames: list[Frame]) -> list[list[Frame]]:
    """Clusters of parallel slices, around the commonest planes."""
    if not has_geometry(frames[0]):
        return [frames]
    counts = Counter(map(plane, frames))
    planes = sorted(counts, key=lambda found: (-counts[found], found))
    sides = np.stack([image_sides(found) for found in planes])
    leader = np.full(len(planes), -1)
    for k in range(len(planes)):
        if leader[k] < 0:
            leader[(leader < 0) & (corner_distances_mm(sides, sides[k]) <= PARALLEL_MM)] = k
    led_by = dict(zip(planes, leader.tolist(), strict=True))
    clusters: dict[int, list[Frame]] = defaultdict(list)
    for frame in frames:
        clusters[led_by[plane(frame)]].append(frame)
    return list(clusters.values())


def _candidates_of_group(label: str, frames: list[Frame], settings: IndexSettings) -> list[Candidate]:
    if not has_geometry(frames[0]):
        reason = frames[0].kind if frames[0].kind != "image" else "no_geometry"
        return [Candidate(tuple(frames), label, "", None, reason, frozenset())]
    parts = split(frames, settings)
    kept = kept_parts(parts, settings.keep_timepoints)
    return [_judge(label, name, part, name in kept, settings) for name, part in parts.items()]


def _judge(label: str, name: str, part: Part, kept: bool, settings: IndexSettings) -> Candidate:
    frames, built = part.frames, part.stack
    repeated = len(part.dropped)
    flags = {flag for frame in frames for flag in frame.flags} | set(built.flags)
    if repeated:
        flags.add("repeated_positions")
    if part.in_turns:
        flags.add("interleaved_parts")
    reason = _kind_reason(frames[0].kind, settings)
    if frames[0].kind != "image" and not reason:
        flags.add("localizer" if frames[0].kind == "localizer" else "derived_map")
    if not reason and len(built.frames) + built.missing < settings.min_slices:
        reason = "too_few_slices"
    if not reason and repeated > max(1, len(frames) // 10):
        reason = "ambiguous_positions"
    reason = reason or built.reason or ("" if kept else "timepoint_not_kept")
    return Candidate(built.frames, label, name, built, reason, frozenset(flags), part.dropped)


def _kind_reason(kind: str, settings: IndexSettings) -> str:
    if kind == "image" or (kind == "localizer" and settings.keep_localizers):
        return ""
    return "" if settings.keep_derived and kind in ("projection", "derived_map", "phase_image") else kind


def _signature(frame: Frame) -> tuple[object, ...]:
    rounded: Callable[[Sequence[float]], tuple[float, ...]] = lambda values: tuple(round(v, 2) + 0.0 for v in values)  # noqa: E731
    return (
        frame.kind, frame.rows, frame.columns, rounded(frame.pixel_spacing), rounded(frame.orientation), _owner(frame),
        identity(frame),
    )  # fmt: skip
