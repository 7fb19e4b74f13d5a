"""Which volumes show one acquisition twice: thin and thick, bone and soft, reformats, projections. They form a group.

One group is one span of scanning of one modality: same patient, frame of reference (or same grid and second), anatomy
and time. MRI must have echo time and b-value in common too: echoes of one scan are different contrasts. What headers do
not tell keeps volumes apart. Groups never reach across patients, so patients can be grouped one by one.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.index.entry import Entry
from lejepa_med.data.index.pseudonyms import Pseudonyms

TIME_TOLERANCE_S = 1.0
"""Reconstructions start up to a rotation apart, and some writers cut off fractions of a second."""
SAME_GRID_TOLERANCE_S = 0.01
"""On one grid, reconstructions of one scan have the same times; other times are those of the next time point."""
SHARED = 0.5
"""Of the shorter of two spans of time, and of the shorter of two extents along each axis, this much is in common."""

_DAY_S = 86_400.0
_NUMBERED = ("ct", "pet")
"""Modalities whose acquisition numbers can stand in for missing times; MRI scanners often number every scan 1."""


@dataclass(frozen=True, eq=False)
class Member:
    """What grouping needs to know of a volume. Times are seconds of the day, NaN where unknown; "" is "not given"."""

    series_key: str
    patient_key: str
    study_key: str
    modality: str
    frame_of_reference: str
    earliest_s: float
    latest_s: float
    acquisitions: frozenset[str]
    echo: str  # echo time, ms
    b_value: str
    phase: str  # time point or trigger time of a dynamic or gated scan, if all slices share one
    affine: NDArray[np.float64]  # array indexes to RAS+ mm
    shape: tuple[int, ...]

    @property
    def timed(self) -> bool:
        """Whether its time is known."""
        return math.isfinite(self.earliest_s) and math.isfinite(self.latest_s)


def member_of(entry: Entry, names: Pseudonyms) -> Member | None:
    """The grouping facts of a DICOM volume, whose frames `names` named; None for everything else, which stays alone."""
    if entry.stack is None:
        return None
    frames = entry.stack.frames
    earliest, latest = _span([names.seconds_of_day(frame.time) for frame in frames])
    return Member(
        series_key=entry.series_key,
        patient_key=entry.patient_key,
        study_key=entry.study_key,
        modality=entry.modality,
        frame_of_reference=frames[0].frame_of_reference,
        earliest_s=earliest,
        latest_s=latest,
        acquisitions=frozenset(frame.acquisition for frame in frames) - {""},
        echo=_common(_milliseconds(frame.echo) for frame in frames),
        b_value=_common(frame.b_value for frame in frames),
        phase=_phase(frames, entry.modality),
        affine=entry.stack.affine,
        shape=entry.stack.shape,
    )


def to_json(member: Member) -> str:
    """A member as text; times that are unknown stay so."""
    values = {field.name: getattr(member, field.name) for field in dataclasses.fields(Member)}
    return json.dumps(values | {"acquisitions": sorted(member.acquisitions), "affine": member.affine.tolist()})


def from_json(text: str) -> Member:
    """The member that `to_json` wrote."""
    values = json.loads(text)
    values |= {"acquisitions": frozenset(values["acquisitions"]), "affine": np.array(values["affine"])}
    return Member(**values | {"shape": tuple(values["shape"])})


def groups(members: Iterable[Member]) -> dict[str, str]:
    """The group of each volume by its series key: the smallest series key of the group, whatever the order."""
    ordered = sorted(members, key=lambda member: member.series_key)
    sets = _Sets(member.series_key for member in ordered)
    scans: dict[tuple[str, ...], dict[tuple[object, ...], Member]] = defaultdict(dict)
    first_twin: dict[tuple[object, ...], Member] = {}
    for member in ordered:
        twin = _twin_key(member)
        if twin is not None:
            sets.unite(member, first_twin.setdefault(twin, member))
        if member.frame_of_reference and _contrast(member) is not None:
            # One of equal volumes speaks for all: a dynamic scan of a thousand time points without times stays quick.
            identity = twin or (member.series_key,)
            scans[_scan_key(member)].setdefault((*identity, member.study_key), member)
    for scan in scans.values():
        candidates = list(scan.values())
        for first, second in itertools.chain(_by_time(candidates), _by_number(candidates)):
            if not sets.united(first, second) and _same_place(first, second):
                sets.unite(first, second)
    return {member.series_key: sets.label(member.series_key) for member in ordered}


def _by_time(members: Sequence[Member]) -> Iterator[tuple[Member, Member]]:
    """Pairs whose spans of time agree; a sweep, so that scans at other times are never compared."""
    running: list[Member] = []
    for member in sorted((one for one in members if one.timed), key=lambda one: (one.earliest_s, one.series_key)):
        running = [one for one in running if one.latest_s >= member.earliest_s - TIME_TOLERANCE_S]
        yield from ((one, member) for one in running if _same_time(one, member))
        running.append(member)


def _same_time(first: Member, second: Member) -> bool:
    same_grid = _same_grid(first, second)
    if same_grid and first.acquisitions and second.acquisitions and not first.acquisitions & second.acquisitions:
        return False  # time points of a dynamic scan, to which an anonymiser gave one time
    shared = min(first.latest_s, second.latest_s) - max(first.earliest_s, second.earliest_s)
    shorter = min(first.latest_s - first.earliest_s, second.latest_s - second.earliest_s)
    tolerance = SAME_GRID_TOLERANCE_S if same_grid else TIME_TOLERANCE_S
    return shared >= SHARED * shorter - tolerance


def _by_number(members: Sequence[Member]) -> Iterator[tuple[Member, Member]]:
    """Pairs of one study and acquisition number of which at least one has no times."""
    numbered: dict[tuple[str, str], list[Member]] = defaultdict(list)
    for member in members:
        if member.modality in _NUMBERED:
            for number in member.acquisitions:
                numbered[(member.study_key, number)].append(member)
    for bucket in numbered.values():
        untimed = [member for member in bucket if not member.timed]
        timed = [member for member in bucket if member.timed]
        yield from itertools.combinations(untimed, 2)
        yield from itertools.product(untimed, timed)


def _same_place(first: Member, second: Member) -> bool:
    """Whether the boxes around both share enough along each axis: a slab in a chest does, the next station does not."""
    low_a, high_a = _box(first)
    low_b, high_b = _box(second)
    shared = np.minimum(high_a, high_b) - np.maximum(low_a, low_b)
    return bool((shared >= SHARED * np.minimum(high_a - low_a, high_b - low_b)).all())


def _box(member: Member) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest RAS coordinate of the outer voxel edges, mm."""
    ends = np.array(list(itertools.product(*((-0.5, size - 0.5) for size in member.shape))))
    corners = ends @ member.affine[:3, :3].T + member.affine[:3, 3]
    return corners.min(axis=0), corners.max(axis=0)


def _same_grid(first: Member, second: Member) -> bool:
    return first.shape == second.shape and bool(np.allclose(first.affine, second.affine, rtol=0, atol=0.01))


def _contrast(member: Member) -> tuple[str, str] | None:
    """What MRI volumes must have in common; None where MRI does not tell."""
    if member.modality != "mri":
        return "", ""
    return (member.echo, member.b_value) if member.echo else None


def _scan_key(member: Member) -> tuple[str, ...]:
    contrast = _contrast(member) or ("", "")
    return (member.patient_key, member.modality, member.frame_of_reference, *contrast, member.phase)


def _twin_key(member: Member) -> tuple[object, ...] | None:
    """Equal for volumes on one grid at one time, also where a study was sent again under new UIDs."""
    contrast = _contrast(member)
    if contrast is None:
        return None
    grid = (member.shape, tuple(np.round(member.affine[:3].ravel(), 2).tolist()))
    numbers = tuple(sorted(member.acquisitions))
    owner = (member.patient_key, member.modality, *contrast, member.phase, numbers, grid)
    if member.timed:
        return (*owner, round(member.earliest_s, 2), round(member.latest_s, 2))
    if member.modality not in _NUMBERED or not numbers or not member.frame_of_reference:
        return None
    return (*owner, member.frame_of_reference, member.study_key)


class _Sets:
    """Disjoint sets of series keys, each labelled by its smallest."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._parents = {key: key for key in keys}

    def label(self, key: str) -> str:
        while self._parents[key] != key:
            self._parents[key] = key = self._parents[self._parents[key]]
        return key

    def united(self, first: Member, second: Member) -> bool:
        return self.label(first.series_key) == self.label(second.series_key)

    def unite(self, first: Member, second: Member) -> None:
        smaller, larger = sorted((self.label(first.series_key), self.label(second.series_key)))
        self._parents[larger] = smaller


def _span(times: list[float]) -> tuple[float, float]:
    """First and last time of the slices; NaN where one has none, and for the midnight that anonymisers fill in."""
    if any(math.isnan(time) for time in times) or not any(times):
        return math.nan, math.nan
    if max(times) - min(times) > _DAY_S / 2:  # the scan went on past midnight
        times = [time + _DAY_S if time < _DAY_S / 2 else time for time in times]
    return min(times), max(times)


def _milliseconds(echo: str) -> str:
    """The echo time of a frame's echo, "NUMBER/TIME" or "TIME", to 0.01 ms."""
    try:
        return f"{float(echo.rpartition('/')[2]):.2f}"
    except ValueError:
        return ""


def _phase(frames: Sequence[Frame], modality: str) -> str:
    trigger = _common(frame.trigger for frame in frames) if modality != "pet" else ""  # PET: the time of the slice
    parts = (_common(frame.temporal for frame in frames), trigger)
    return "/".join(parts) if any(parts) else ""


def _common(values: Iterable[str]) -> str:
    """The value that all share; "" where they share none, or 0, which writers fill in."""
    distinct = set(values)
    value = distinct.pop() if len(distinct) == 1 else ""
    return "" if value in ("0", "0.0", "0.000000") else value
