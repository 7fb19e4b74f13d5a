"""What holds for any frames: order is of no account, nothing vanishes, every slice that is kept is in its place."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from test_dicom_geometry import TEMPLATE

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.assembly import Candidate, assemble
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.plane import normal
from lejepa_med.data.dicom.stack import ON_GRID_MM, Stack, stack

PLANES = ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0, 0.0, -1.0), (1.0, 0.0, 0.0, 0.0, 0.995, 0.0998749))


FEW = st.integers(0, 2)
SPECS = st.lists(
    st.tuples(
        FEW, st.sampled_from([0.0, 2.0, 4.0, 4.03, 6.1, 8.0, 10.0, 12.0]), st.integers(0, 9), FEW, FEW,
        st.sampled_from(["image", "image", "localizer"]), st.sampled_from(["", "", "", "truncated"]),
        st.sampled_from("aaab"),
    ),
    min_size=1, max_size=24,
)  # fmt: skip
"""Plane, height, whether it has a position, tags, kind, damage and frame of reference of some slices: few values, so
that positions repeat, gaps differ and tags contradict."""


def frames_of(specs: list[tuple[int, float, int, int, int, str, str, str]]) -> list[Frame]:
    return [
        dataclasses.replace(
            TEMPLATE,
            sop_uid=f"{place}.{number}",
            orientation=PLANES[plane],
            position=tuple(float(part) for part in normal(PLANES[plane]) * height) if place else (),
            temporal=str(temporal),
            echo=str(echo),
            kind=kind,
            damage=damage,
            frame_of_reference=reference,
        )
        for number, (plane, height, place, temporal, echo, kind, damage, reference) in enumerate(specs)
    ]


@settings(max_examples=100, deadline=None)
@given(specs=SPECS, seed=st.integers(0, 99))
def test_order_is_of_no_account(specs: list[Any], seed: int) -> None:
    frames = frames_of(specs)
    shuffled = [frames[k] for k in np.random.default_rng(seed).permutation(len(frames))]
    assert described(assemble(shuffled, IndexSettings())) == described(assemble(frames, IndexSettings()))


def described(candidates: list[Candidate]) -> list[object]:
    return [
        (c.frames, c.group, c.part, c.reason, c.flags, c.dropped, c.stack and (c.stack.slots, c.stack.affine.tobytes()))
        for c in candidates
    ]


@settings(max_examples=100, deadline=None)
@given(specs=SPECS)
def test_nothing_vanishes_and_nothing_is_used_twice(specs: list[Any]) -> None:
    frames = frames_of(specs)
    candidates = assemble(frames, IndexSettings())
    accounted = [frame for c in candidates for frame in (*c.frames, *c.dropped)]
    accounted += [frame for frame in frames if frame.damage]
    assert Counter(accounted) == Counter(frames)


@settings(max_examples=100, deadline=None)
@given(specs=SPECS)
def test_what_is_kept_is_in_its_place(specs: list[Any]) -> None:
    frames = frames_of(specs)
    for candidate in assemble(frames, IndexSettings()):
        if not candidate.reason:
            assert candidate.stack is not None
            assert off_grid_mm(candidate.stack) <= ON_GRID_MM
            assert len({(frame.kind, frame.frame_of_reference, frame.damage) for frame in candidate.frames}) == 1


def off_grid_mm(found: Stack) -> float:
    """How far the slices lie from where affine, slots and shifts put them."""
    indexes = found.shifts + [[0, 0, slot] for slot in found.slots]
    ras = indexes @ found.affine[:3, :3].T + found.affine[:3, 3]
    positions = np.array([frame.position for frame in found.frames])
    return float(np.linalg.norm(ras * [-1, -1, 1] - positions, axis=1).max())


@settings(max_examples=100, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    gap=st.floats(0.5, 9),
    count=st.integers(8, 40),
    tilt=st.floats(-0.4, 0.4),
    holes=st.sets(st.integers(1, 4), max_size=2),
    jitter=st.lists(st.floats(-0.006, 0.006), min_size=40, max_size=40),
    start=st.tuples(*[st.floats(-1000, 1000)] * 3),
)
def test_regular_stacks_with_holes_and_jitter_are_right(
    angles: tuple[float, ...],
    gap: float,
    count: int,
    tilt: float,
    holes: set[int],
    jitter: list[float],
    start: tuple[float, ...],
) -> None:
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    step = (turn[:, 2] + tilt * turn[:, 1]) * gap
    frames = [
        dataclasses.replace(
            TEMPLATE,
            sop_uid=str(k),
            orientation=(*turn[:, 0].tolist(), *turn[:, 1].tolist()),
            position=tuple((np.array(start) + (k + jitter[k]) * step).tolist()),
        )
        for k in range(count)
        if k not in holes
    ]
    (candidate,) = assemble(frames, IndexSettings())
    built = candidate.stack
    assert built is not None and candidate.reason == "" and built.num_slots == count
    assert built.slots == tuple(k for k in range(count) if k not in holes)
    assert off_grid_mm(built) <= ON_GRID_MM
    again = stack(built.frames, built.missing)  # as a volume is read: from its slices in order
    assert again.slots == built.slots and np.array_equal(again.affine, built.affine)
    assert np.array_equal(again.shifts, built.shifts)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(3, 12), height=st.floats(-50, 50), degrees=st.floats(0.5, 89), uid=st.integers(0, 999))
def test_a_stray_slice_of_another_plane_changes_nothing(count: int, height: float, degrees: float, uid: int) -> None:
    main = [dataclasses.replace(TEMPLATE, sop_uid=f"5{k}", position=(0.0, 0.0, 2.0 * k)) for k in range(count)]
    turned = (1.0, 0.0, 0.0, 0.0, float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees))))
    stray = dataclasses.replace(TEMPLATE, sop_uid=f"{uid}", orientation=turned, position=(0.0, 0.0, height))
    (alone,) = assemble(main, IndexSettings())
    first = assemble([stray, *main], IndexSettings())[0]
    assert described([dataclasses.replace(first, flags=alone.flags)]) == described([alone])
    assert first.flags == alone.flags | {"split_series"}
