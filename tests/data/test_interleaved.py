"""Stacks between each other, over any number of parts, shift and length: volumes, one volume, or undecided and told."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
from test_dicom_geometry import TEMPLATE

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.assembly import Candidate, assemble
from lejepa_med.data.dicom.frame import Frame

TIMES = st.sampled_from(["temporal", "trigger", "acquisition", "time"])


def parts(tag: str, gap: float, count: int, *shifts: float) -> list[Frame]:
    """Stacks of one gap, told apart by one tag, each moved up by a share of the gap."""
    return [
        dataclasses.replace(
            TEMPLATE, sop_uid=f"{part}.{k}", position=(0.0, 0.0, gap * (k + shift)), **{tag: str(part + 1)}
        )
        for part, shift in enumerate(shifts)
        for k in range(count)
    ]


def outcomes(candidates: list[Candidate]) -> list[tuple[int, str, frozenset[str]]]:
    return [(len(candidate.frames), candidate.reason, candidate.flags) for candidate in candidates]


@settings(max_examples=100, deadline=None)
@given(tag=TIMES, gap=st.floats(1.0, 9.0), count=st.integers(3, 12), shift=st.floats(0.1, 0.9))
def test_two_time_points_are_never_silently_one(tag: str, gap: float, count: int, shift: float) -> None:
    found = outcomes(assemble(parts(tag, gap, count, 0.0, shift), IndexSettings()))
    apart = [(count, "", frozenset({"split_series"}))] * 2
    if found != apart:
        assert tag != "temporal" and abs(shift - 0.5) * gap <= 0.11
        assert [(length, reason) for length, reason, _ in found] == [(2 * count, "")]
        assert "interleaved_parts" in found[0][2]


@settings(max_examples=100, deadline=None)
@given(tag=TIMES, gap=st.floats(2.0, 9.0), count=st.integers(3, 9), number=st.integers(2, 4))
def test_even_shifts_are_time_points_only_where_the_header_says_so(
    tag: str, gap: float, count: int, number: int
) -> None:
    shifts = [part / number for part in range(number)]
    found = outcomes(assemble(parts(tag, gap, count, *shifts), IndexSettings(keep_timepoints=4)))
    if tag == "temporal":
        assert found == [(count, "", frozenset({"split_series"}))] * number
    else:
        assert found == [(number * count, "", frozenset({"interleaved_parts"}))]


@settings(max_examples=100, deadline=None)
@given(
    tag=TIMES,
    gap=st.floats(1.0, 5.0),
    count=st.integers(8, 30),
    width=st.integers(1, 9),
    hole=st.integers(1, 6) | st.none(),
    jitter=st.lists(st.floats(-0.02, 0.02), min_size=30, max_size=30),
)
def test_blocks_of_one_scan_stay_together(
    tag: str, gap: float, count: int, width: int, hole: int | None, jitter: list[float]
) -> None:
    """Step and shoot, with any number of slices to a step."""
    frames = [
        dataclasses.replace(
            TEMPLATE, sop_uid=str(k), position=(0.0, 0.0, gap * k + jitter[k]), **{tag: str(k // width)}
        )
        for k in range(count)
        if k != hole
    ]
    (candidate,) = assemble(frames, IndexSettings())
    assert candidate.reason == "" and "interleaved_parts" not in candidate.flags
    assert candidate.stack is not None and candidate.stack.num_slots == count
