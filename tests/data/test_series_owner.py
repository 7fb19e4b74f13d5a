"""Whose a series is where not every slice says so: one patient's id is taken over, two are never made one."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from test_dicom_geometry import TEMPLATE

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.index.entries_dicom import dicom_entries, with_patient
from lejepa_med.data.index.entry import Entry
from lejepa_med.data.index.examine import pack
from lejepa_med.data.index.store import Member


def slices(*patients: str, study: str = "study") -> list[Frame]:
    """One slice for each of these ids, going up."""
    return [
        dataclasses.replace(TEMPLATE, sop_uid=str(k), patient_id=patient, study_uid=study, position=(0.0, 0.0, 2.0 * k))
        for k, patient in enumerate(patients)
    ]


def entries(frames: list[Frame], uid_is_shared: bool = False) -> list[Entry]:
    members = [Member(k, 1, str(k).encode(), pack([frame])) for k, frame in enumerate(frames)]
    return dicom_entries("series", uid_is_shared, members, b"s" * 64, IndexSettings())


@pytest.mark.parametrize("ids", [("p", "") * 4, ("", "p") * 4, ("",) * 7 + ("p",)])
def test_slices_without_an_id_belong_to_the_patient_of_the_rest(ids: tuple[str, ...]) -> None:
    (entry,) = entries(slices(*ids))
    (whole,) = entries(slices(*["p"] * 8))
    assert (entry.reason, entry.flags, entry.num_slices) == ("", frozenset(), 8)
    assert (entry.patient_key, entry.series_key) == (whole.patient_key, whole.series_key)


def test_two_patients_are_never_made_one() -> None:
    frames = slices(*("p", "", "q") * 4)
    assert with_patient(frames) == frames
    assert Counter(entry.patient_key for entry in entries(frames)).most_common()[0][1] == 1


def test_an_id_of_another_study_or_of_none_is_not_taken_over() -> None:
    frames = [*slices("p", "p", study="one"), *slices("", "", study="two")]
    assert with_patient(frames) == frames
    assert with_patient(slices("p", "", study="")) == slices("p", "", study="")


def test_a_uid_that_others_have_too_is_flagged_on_every_row() -> None:
    (entry,) = entries(slices(*["p"] * 8), uid_is_shared=True)
    assert entry.flags == {"shared_series_uid"}
