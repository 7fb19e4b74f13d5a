"""Near duplicates: headers as scanners and workstations write them, in DICOM files, and the groups that they get."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.files.walk import walk
from lejepa_med.data.index.acquisitions import Member, from_json, groups, member_of, to_json
from lejepa_med.data.index.entries_dicom import dicom_entries
from lejepa_med.data.index.examine import examine, record
from lejepa_med.data.index.pseudonyms import Pseudonyms
from lejepa_med.data.index.store import Member as SeriesFile
from tests.data.dicom_factory import AXIAL, CT, MR, image, write

PET = "1.2.840.10008.5.1.4.1.1.128"
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SALT = b"0" * 32
NAMES = Pseudonyms(SALT)
KEEP = IndexSettings(keep_derived=True, keep_timepoints=1000)
PIXEL_MM = [50.0, 40.0]  # 7 x 9 pixels are 350 x 360 mm


class Clinic:
    """Writes series, and tells which of them got one group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, str] = {}
        self.written = 0

    def series(
        self,
        name: str,
        at: float | Sequence[float] | None,
        positions: Sequence[Sequence[float]],
        orientation: Sequence[float] = AXIAL,
        **elements: Any,
    ) -> None:
        """Slices at positions; `at` is their time after 10:15, s: one for all, the first and the last, or none."""
        self.written = number = self.written + 1
        uid = elements.pop("uid", f"1.2.826.77.2.{number}")
        self.names[uid] = name
        slices = []
        first, last = (at if isinstance(at, Sequence) else (at, at)) if at is not None else (None, None)
        for place, position in enumerate(positions):
            spot = {"PixelSpacing": PIXEL_MM, "SOPInstanceUID": f"1.2.826.77.9.{number}.{place}", **elements}
            if first is not None and last is not None:
                spot["AcquisitionTime"] = clock(first + (last - first) * place / max(1, len(positions) - 1))
            slices.append(image(position, place + 1, orientation, SeriesInstanceUID=uid, **spot))
        write(self.folder / name.replace(" ", "_") / str(number), slices)

    def members(self) -> list[tuple[str, Member]]:
        files: dict[str, list[SeriesFile]] = {}
        for number, found in enumerate(walk([self.folder]), 1):
            kept = record(found, examine(found), NAMES)
            files.setdefault(kept.uid, []).append(SeriesFile(number, found.size, b"", kept.payload))
        entries = [entry for uid, own in files.items() for entry in dicom_entries(uid, False, own, SALT, KEEP)]
        assert not [entry.reason for entry in entries if entry.reason]
        names = {NAMES.series(uid, ""): name for uid, name in self.names.items()}
        built = [(names[entry.series_hash], member_of(entry, NAMES)) for entry in entries]
        return [(name, member) for name, member in built if member is not None]

    def groups(self) -> set[frozenset[str]]:
        """Names that got one group; a volume of a series with several is NAME repeated once per group."""
        named = self.members()
        labels = groups(member for _, member in named)
        sets: dict[str, set[str]] = {}
        for name, member in named:
            sets.setdefault(labels[member.series_key], set()).add(name)
        assert all(label in labels and labels[label] == label for label in sets)
        assert len(labels) == len(named)
        return {frozenset(names) for names in sets.values()}


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def clock(after: float) -> str:
    whole = (10 * 3600 + 15 * 60 + after) % 86_400
    return f"{int(whole // 3600):02d}{int(whole % 3600 // 60):02d}{whole % 60:09.6f}"


def axial(gap: float, height: float = 300.0, bottom: float = -300.0) -> list[tuple[float, float, float]]:
    return [(-180.0, -175.0, bottom + gap * (number + 0.5)) for number in range(round(height / gap))]


def coronal(gap: float, depth: float = 200.0) -> list[tuple[float, float, float]]:
    return [(-180.0, -100.0 + gap * (number + 0.5), 0.0) for number in range(round(depth / gap))]


CHEST: dict[str, Any] = {"sop_class": CT, "AcquisitionNumber": 3, "BodyPartExamined": "CHEST"}
REFORMAT = ["DERIVED", "SECONDARY", "AXIAL", "CSA MPR"]


def test_reconstructions_of_one_chest_are_one_group(clinic: Clinic) -> None:
    clinic.series("lung thin", (2.0, 8.0), axial(5), ConvolutionKernel="B70f", **CHEST)
    clinic.series("soft thin", (2.0, 8.0), axial(5), ConvolutionKernel="B30f", **CHEST)
    clinic.series("soft thick", (2.3, 7.7), axial(20), ConvolutionKernel="B30f", **CHEST)  # averaged times
    clinic.series("bone, spine only", (2.0, 8.0), axial(5), **{**CHEST, "PixelSpacing": [20.0, 20.0]})
    clinic.series("coronal", 2.0, coronal(20), CORONAL, ImageType=REFORMAT, **CHEST)  # the first time alone
    clinic.series("cut to the second", 2.0 - 0.9, coronal(40), CORONAL, ImageType=REFORMAT, **CHEST)
    clinic.series("mip", (2.5, 7.5), axial(25), ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"], **CHEST)
    assert clinic.groups() == {frozenset(clinic.names.values())}


def test_the_abdomen_of_the_same_sweep_shows_other_anatomy(clinic: Clinic) -> None:
    clinic.series("chest", (2.0, 8.0), axial(10), **CHEST)
    clinic.series("abdomen", (7.0, 14.0), axial(10, bottom=-540.0), **CHEST)
    assert clinic.groups() == {frozenset({"chest"}), frozenset({"abdomen"})}
    clinic.series("both", (2.0, 14.0), axial(20, 540.0, bottom=-540.0), **CHEST)
    assert clinic.groups() == {frozenset({"chest", "abdomen", "both"})}


def test_phases_of_a_liver_are_apart_and_each_keeps_its_reconstructions(clinic: Clinic) -> None:
    for number, (phase, start) in enumerate({"arterial": 30.0, "late arterial": 38.0, "venous": 75.0}.items()):
        headers = {"sop_class": CT, "AcquisitionNumber": number + 2}
        clinic.series(f"{phase} thin", (start, start + 5), axial(5, 200.0), **headers)
        clinic.series(f"{phase} thick", (start + 0.2, start + 4.8), axial(20, 200.0), **headers)
    assert clinic.groups() == {
        frozenset({f"{phase} thin", f"{phase} thick"}) for phase in ("arterial", "late arterial", "venous")
    }


def test_phases_whose_times_were_wiped_go_by_their_acquisition_number(clinic: Clinic) -> None:
    for number, phase in enumerate(("arterial", "venous")):
        wiped: float | None = None if number else 0.0
        headers = {"sop_class": CT, "AcquisitionNumber": number + 2}
        clinic.series(f"{phase} thin", None, axial(5, 200.0), **headers)
        clinic.series(f"{phase} thick", wiped, axial(20, 200.0), **headers)
    clinic.series("no number", None, axial(5, 200.0), sop_class=CT)
    clinic.series(
        "other study", None, axial(20, 200.0), sop_class=CT, AcquisitionNumber=2, StudyInstanceUID="1.2.826.9"
    )
    assert clinic.groups() == {
        frozenset({"arterial thin", "arterial thick"}),
        frozenset({"venous thin", "venous thick"}),
        frozenset({"no number"}),
        frozenset({"other study"}),
    }


def test_midnight_is_what_anonymisers_fill_in(clinic: Clinic) -> None:
    for number in (2, 3):
        clinic.series(
            f"phase {number}", None, axial(10), sop_class=CT, AcquisitionNumber=number, AcquisitionTime="000000.00"
        )
    assert clinic.groups() == {frozenset({"phase 2"}), frozenset({"phase 3"})}


def test_breathing_phases_are_apart_where_headers_tell_them_apart(clinic: Clinic) -> None:
    for phase in range(4):
        clinic.series(f"phase {phase}", (1.0, 60.0), axial(20), TemporalPositionIdentifier=phase + 1, **CHEST)
    assert clinic.groups() == {frozenset({f"phase {phase}"}) for phase in range(4)}


def test_breathing_phases_without_a_word_are_one_scan(clinic: Clinic) -> None:
    for phase in range(4):
        clinic.series(f"phase {phase}", (1.0, 60.0), axial(20), **CHEST)
    assert clinic.groups() == {frozenset(f"phase {phase}" for phase in range(4))}


def test_time_points_of_a_perfusion_series_are_apart(clinic: Clinic) -> None:
    """As one series with a time per point, and as series whose slices follow each other without a pause."""
    for point in range(5):
        begin = 10.0 + 1.0 * point
        cine = {"sop_class": CT, "AcquisitionNumber": 4}
        clinic.series("in one series", begin, axial(10, 120.0), uid="1.2.826.77.2.500", **cine)
        clinic.series(f"point {point}", (begin + 60, begin + 60.9), axial(10, 120.0), **cine)
    named = clinic.members()
    assert [name for name, _ in named].count("in one series") == 5
    assert len(named) == len(set(groups(member for _, member in named).values())) == 10


def test_time_points_to_which_an_anonymiser_gave_one_time_are_apart(clinic: Clinic) -> None:
    for number in (1, 2):
        clinic.series(f"point {number}", 7.0, axial(20), **{**mr(30.0), "AcquisitionNumber": number})
    clinic.series("no number", 7.0, axial(25), **{**mr(30.0), "AcquisitionNumber": None})
    apart = {name: member for name, member in clinic.members() if name != "no number"}
    assert len(set(groups(apart.values()).values())) == 2
    assert clinic.groups() == {frozenset({"point 1", "point 2", "no number"})}  # it may be of either: they meet in it


def test_energies_of_one_scan_are_one_group(clinic: Clinic) -> None:
    """Two tubes see the same moment; the mixed images and the monoenergetic ones are computed from both."""
    clinic.series("80 kV", (2.0, 8.0), axial(10), KVP=80, **CHEST)
    clinic.series("140 kV", (2.0, 8.0), axial(10), KVP=140, **CHEST)
    clinic.series("mixed", (2.0, 8.0), axial(20), ImageType=["DERIVED", "SECONDARY", "AXIAL"], **CHEST)
    assert clinic.groups() == {frozenset({"80 kV", "140 kV", "mixed"})}


def mr(echo: float, **more: Any) -> dict[str, Any]:
    return {"sop_class": MR, "EchoTime": echo, "EchoNumbers": 1, "AcquisitionNumber": 1, **more}


def test_a_head_in_one_session(clinic: Clinic) -> None:
    """T1 with its reformats, again after motion, T2 and FLAIR with equal echo times: all in one frame of reference."""
    reformat = {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}
    clinic.series("t1", 0.0, axial(10), **mr(2.98))
    clinic.series("t1 coronal", 0.0, coronal(20), CORONAL, **mr(2.98, **reformat))
    clinic.series("t1 thick", 0.0, axial(25), **mr(2.98, **reformat))
    clinic.series("t1 again", 300.0, axial(10), **mr(2.98))
    clinic.series("t2", (620.0, 624.0), axial(20), **mr(95.0))
    clinic.series("flair", (800.0, 808.0), axial(20), **mr(95.0))
    assert clinic.groups() == {
        frozenset({"t1", "t1 coronal", "t1 thick"}),
        frozenset({"t1 again"}),
        frozenset({"t2"}),
        frozenset({"flair"}),
    }


def test_echoes_and_b_values_are_contrasts(clinic: Clinic) -> None:
    clinic.series("pd", (5.0, 8.0), axial(20), **mr(12.0))
    clinic.series("t2", (5.0, 8.0), axial(20), **{**mr(96.0), "EchoNumbers": 2})
    clinic.series("b0", (60.0, 62.0), axial(20), **mr(70.0, DiffusionBValue=0.0))
    clinic.series("b1000", (60.0, 62.0), axial(20), **mr(70.0, DiffusionBValue=1000.0))
    clinic.series("b1000 thick", (60.0, 62.0), axial(60), **mr(70.0, DiffusionBValue=1000.0))
    clinic.series("no echo", (5.0, 8.0), axial(20), sop_class=MR)
    clinic.series("no echo too", (5.0, 8.0), axial(20), sop_class=MR)
    assert clinic.groups() == {
        frozenset({"pd"}),
        frozenset({"t2"}),
        frozenset({"b0"}),
        frozenset({"b1000", "b1000 thick"}),
        frozenset({"no echo"}),
        frozenset({"no echo too"}),
    }


def test_mri_without_times_is_apart(clinic: Clinic) -> None:
    clinic.series("t1", None, axial(10), **mr(2.98))
    clinic.series("t1 again", None, axial(10), **mr(2.98))
    assert clinic.groups() == {frozenset({"t1"}), frozenset({"t1 again"})}


def test_pet_with_and_without_attenuation_correction(clinic: Clinic) -> None:
    pet = {"sop_class": PET, "RescaleSlope": 1, "RescaleIntercept": 0}
    for name, slope in (("corrected", 1), ("uncorrected", 2)):
        clinic.series(name, (100.0, 900.0), axial(20), **{**pet, "RescaleSlope": slope})
    clinic.series("ct", (100.0, 110.0), axial(20), sop_class=CT)
    clinic.series("late", (4000.0, 4800.0), axial(20), **pet)
    assert clinic.groups() == {frozenset({"corrected", "uncorrected"}), frozenset({"ct"}), frozenset({"late"})}


def test_a_study_that_was_sent_again_shares_the_group_and_keeps_its_study(clinic: Clinic) -> None:
    again = {"StudyInstanceUID": "1.2.826.77.100", "FrameOfReferenceUID": "1.2.826.77.300"}
    clinic.series("thin", (2.0, 8.0), axial(10), **CHEST)
    clinic.series("thin again", (2.0, 8.0), axial(10), **CHEST, **again)
    clinic.series("thick again", (2.2, 7.8), axial(20), **CHEST, **again)
    assert clinic.groups() == {frozenset({"thin", "thin again", "thick again"})}
    assert len({member.study_key for _, member in clinic.members()}) == 2


def test_other_patients_and_frames_of_reference_are_apart(clinic: Clinic) -> None:
    clinic.series("thin", (2.0, 8.0), axial(10), **CHEST)
    clinic.series("other patient", (2.0, 8.0), axial(10), PatientID="PLANTED-ID-9", **CHEST)
    clinic.series("other frame", (2.0, 8.0), axial(15), FrameOfReferenceUID="1.2.826.77.4", **CHEST)
    clinic.series("no frame", (2.0, 8.0), axial(20), FrameOfReferenceUID="", **CHEST)
    clinic.series("no frame too", (2.0, 8.0), axial(30), FrameOfReferenceUID="", **CHEST)
    assert clinic.groups() == {frozenset({name}) for name in clinic.names.values()}


def test_a_scan_past_midnight(clinic: Clinic) -> None:
    midnight = (24 - 10) * 3600.0 - 15 * 60
    clinic.series("thin", (midnight - 3, midnight + 3), axial(10), **CHEST)
    clinic.series("thick", (midnight - 2.5, midnight + 2.5), axial(30), **CHEST)
    spans = sorted((member.earliest_s, member.latest_s) for _, member in clinic.members())
    assert spans == [pytest.approx((86_397.0, 86_403.0)), pytest.approx((86_397.5, 86_402.5))]
    assert clinic.groups() == {frozenset({"thin", "thick"})}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("101530.25", 36_930.25),
        ("10:15:30.5", 36_930.5),
        ("1015", 36_900.0),
        ("10", 36_000.0),
        ("20200131101530.25+0100", 36_930.25),
        ("20200131101530-0500", 36_930.0),
        (" 101530 ", 36_930.0),
    ],
)
def test_times_of_headers(text: str, expected: float) -> None:
    assert NAMES.seconds_of_day(NAMES.time(text)) == expected


@pytest.mark.parametrize("text", ["", "soon", "251530", "106030", "1015301", "20200131", "10153", "²15530", "101530.x"])
def test_what_is_no_time(text: str) -> None:
    assert math.isnan(NAMES.seconds_of_day(NAMES.time(text)))


def test_members_come_back_from_text() -> None:
    member = replace(BOX, earliest_s=math.nan, affine=np.diag([0.1, 0.2, 0.3, 1.0]))
    again = from_json(to_json(member))
    np.testing.assert_array_equal(again.affine, member.affine)
    assert math.isnan(again.earliest_s)
    assert replace(again, affine=BOX.affine, earliest_s=1.0).__dict__ == BOX.__dict__


# --- properties

BOX = Member(
    series_key="", patient_key="p", study_key="s", modality="ct", frame_of_reference="f", earliest_s=1.0, latest_s=7.0,
    acquisitions=frozenset({"2"}), echo="", b_value="", phase="", affine=np.diag([1.0, 1.0, 1.0, 1.0]),
    shape=(100, 100, 100),
)  # fmt: skip


def moved(along: float, **changes: Any) -> Member:
    affine = BOX.affine.copy()
    affine[2, 3] = along
    return replace(BOX, affine=affine, **changes)


def together(first: Member, second: Member) -> bool:
    labels = groups([replace(first, series_key="a"), replace(second, series_key="b")])
    return labels["a"] == labels["b"]


def test_half_of_the_shorter_extent_and_of_the_shorter_time_is_enough() -> None:
    assert together(BOX, moved(50.0))
    assert not together(BOX, moved(51.0))
    assert together(BOX, moved(20.0, earliest_s=5.0, latest_s=11.0))  # 2 s in common of 6, and 1 s of tolerance
    assert not together(BOX, moved(20.0, earliest_s=5.1, latest_s=11.1))
    assert together(BOX, replace(BOX, earliest_s=4.0, latest_s=10.0))
    assert not together(BOX, replace(BOX, earliest_s=4.1, latest_s=10.1))


def test_a_tilted_slab_inside_counts() -> None:
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    affine[:3, 3] = (0, 20, 20)
    assert together(BOX, replace(BOX, affine=affine, shape=(90, 70, 4)))


steps = st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["f", "g"]), st.sampled_from(["p", "q"]))


@given(st.lists(steps, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_groups_depend_on_no_order_and_on_no_other_patient(rows: list[Any], shuffle: Any) -> None:
    members = [
        moved(40.0 * place, series_key=f"{number:02d}", earliest_s=2.0 * at, latest_s=2.0 * at + 3, patient_key=patient,
              frame_of_reference=frame)
        for number, (place, at, frame, patient) in enumerate(rows)
    ]  # fmt: skip
    labels = groups(members)
    shuffled = list(members)
    shuffle.shuffle(shuffled)
    assert groups(shuffled) == labels
    by_patient = [groups([one for one in members if one.patient_key == patient]) for patient in ("p", "q")]
    assert {**by_patient[0], **by_patient[1]} == labels
    for key, label in labels.items():
        assert label <= key
        assert labels[label] == label


def test_thousands_of_time_points_are_grouped_at_once() -> None:
    timed = [replace(BOX, series_key=f"{n:05d}", earliest_s=2.0 * n, latest_s=2.0 * n + 1.9) for n in range(4000)]
    untimed = [replace(BOX, series_key=f"u{n:05d}", earliest_s=math.nan, patient_key="q") for n in range(4000)]
    begin = time.perf_counter()
    labels = groups(timed + untimed)
    assert time.perf_counter() - begin < 10  # all pairs would be 16 million
    assert len(set(labels.values())) == 4000 + 1
