"""What is kept of a header: nothing that names somebody, and all that assembly needs to decide as before."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from pathlib import Path

import pytest
from dicom_factory import image, stack, write
from hypothesis import given
from hypothesis import strategies as st

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.assembly import assemble
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.header_pass import read_frames
from lejepa_med.data.index.examine import pack, unpack
from lejepa_med.data.index.pseudonyms import Pseudonyms
from lejepa_med.data.privacy import patient_key

NAMES = Pseudonyms(b"s" * 64)


def frames_of(folder: Path) -> list[Frame]:
    return [frame for path in sorted(folder.iterdir()) for frame in read_frames(path)]


def test_a_frame_keeps_no_text_of_its_header(tmp_path: Path) -> None:
    write(tmp_path, [image((0, 0, 0))])
    (frame,) = frames_of(tmp_path)
    frame = dataclasses.replace(
        frame, image_type=("ORIGINAL", "QVORNAX^2"), stack="QVORNAX", time="about 1015", temporal="19610412"
    )
    kept = repr(NAMES.frame(frame, "planted/doe"))
    for planted in ("QVORNAX", "1015", "19610412", "-7788", "1.2.826", "lanted", str(tmp_path)):
        assert planted not in kept
    assert "ORIGINAL" in kept and "'mri'" in kept
    assert NAMES.frame(frame, "").patient_id == patient_key(NAMES.salt, "PLANTED-ID-7788")


def test_assembly_decides_as_on_the_header(tmp_path: Path) -> None:
    for time in range(3):
        slices = stack(6, TemporalPositionIdentifier=time + 1, AcquisitionTime=f"2359{50 + time}.5", StackID=f"S{time}")
        for number, dataset in enumerate(slices):
            dataset.SOPInstanceUID = f"1.2.826.77.9.{time}.{number}"
        write(tmp_path / str(time), slices)
    frames = [frame for time in range(3) for frame in frames_of(tmp_path / str(time))]
    hidden = [dataclasses.replace(NAMES.frame(frame, ""), path=frame.path) for frame in frames]

    def decided(frames: list[Frame]) -> list[tuple[object, ...]]:
        return [
            (one.part, one.reason, one.flags, sorted((frame.path, frame.index) for frame in one.frames))
            for one in assemble(frames, IndexSettings(keep_timepoints=2))
        ]

    assert len(decided(frames)) == 3
    assert decided(hidden) == decided(frames)


@pytest.mark.parametrize("text", ["101530", "1015", "10", "101530.25", "10:15:30", "20190412101530.5+0100"])
def test_times_keep_their_distances(text: str) -> None:
    later = {"10": "11", "1015": "1115"}.get(text, text.replace("1015", "1115").replace("10:15", "11:15"))
    assert Decimal(NAMES.time(later)) - Decimal(NAMES.time(text)) == 3600
    assert "20190412" not in NAMES.time(text)
    assert not math.isnan(NAMES.seconds_of_day(NAMES.time(text)))
    assert NAMES.seconds_of_day(NAMES.time("101530.25")) == 36930.25


def test_other_salts_have_other_zeros() -> None:
    assert NAMES.time("101530") != Pseudonyms(b"t" * 64).time("101530")
    assert math.isnan(NAMES.seconds_of_day(NAMES.time("noon")))


@given(st.text(max_size=12), st.text(max_size=12))
def test_different_texts_stay_different(first: str, second: str) -> None:
    assert (NAMES.word(first) == NAMES.word(second)) == (first == second)


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_numbers_keep_their_order(first: int, second: int) -> None:
    assert (Decimal(NAMES.word(str(first))) < Decimal(NAMES.word(str(second)))) == (first < second)


def test_series_without_a_uid_are_told_apart_by_folder() -> None:
    assert NAMES.series("", "a/b/1") == NAMES.series("", "a/b/2") != NAMES.series("", "a/c/1")
    assert NAMES.series("1.2", "a/b/1") == NAMES.series("1.2", "x/1")


def test_packed_frames_come_back(tmp_path: Path) -> None:
    write(tmp_path, stack(4))
    frames = [NAMES.frame(frame, "") for frame in frames_of(tmp_path)]
    assert unpack(pack(frames), "here", {}) == [dataclasses.replace(frame, path="here") for frame in frames]
