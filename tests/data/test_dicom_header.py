"""The header pass: values as pydicom gives them, the reasons of files that are no volume, and damaged structures."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from dicom_factory import CT, ENHANCED_MR, MR, enhanced, image, stack, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from lejepa_med.data import vocabulary
from lejepa_med.data.dicom.elements import Elements, number, strings, tag_of, text, vector
from lejepa_med.data.dicom.header import TAGS, NotAVolume
from lejepa_med.data.dicom.header_pass import read_frames
from lejepa_med.data.dicom.kinds import kind
from lejepa_med.data.dicom.stream import walk_file

TEXTS = ("PatientID", "SOPInstanceUID", "EchoNumbers", "EchoTime", "TriggerTime", "AcquisitionTime", "StackID",
         "AcquisitionNumber", "TemporalPositionIdentifier", "Rows", "BodyPartExamined")  # fmt: skip
NUMBERS = ("RescaleSlope", "RescaleIntercept", "RepetitionTime", "SpacingBetweenSlices", "DiffusionBValue", "Rows")
VECTORS = (("PixelSpacing", 2), ("ImageOrientationPatient", 6), ("ImagePositionPatient", 3))
LISTS = ("ImageType", "ScanningSequence")


def theirs(header: Dataset, word: str) -> Any:
    """What pydicom makes of an element; None where it fails."""
    try:
        return header.get(word)
    except Exception:
        return None


def reference_text(value: Any) -> str:
    return "" if value is None else str(value).strip(" \0")


def reference_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def reference_vector(value: Any, length: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in value or ())
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == length and all(map(math.isfinite, numbers)) else ()


def reference_strings(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return tuple(str(part).strip().upper() for part in values) if value not in (None, "") else ()


def element(tag: int, vr: str, data: bytes, explicit: bool, order: str) -> bytes:
    data += b" " * (len(data) % 2) if vr not in ("UI", "UN") else b"\0" * (len(data) % 2)
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if not explicit:
        return head + struct.pack(order + "I", len(data)) + data
    if vr in ("UN", "OB", "UT"):
        return head + vr.encode() + b"\0\0" + struct.pack(order + "I", len(data)) + data
    return head + vr.encode() + struct.pack(order + "H", len(data)) + data


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12).map(str.encode)
DECIMAL = st.one_of(
    st.floats(-1e6, 1e6).map(lambda x: f"{x:.9g}"), st.integers(-2000, 70_000).map(str), st.sampled_from(
        ["", " ", "1.50 ", " 1.5", "+2", "1e3", "-.5", "nan", "inf", "1_0", "1,5", "abc", "1.5\\2", "\\", "0x10", "1\t",
         "00012", "1.0", "5\\", "1.5.2", "--1"])
).map(str.encode)  # fmt: skip
SEVERAL = st.lists(DECIMAL, min_size=1, max_size=7).map(b"\\".join)
PATIENT = st.one_of(
    ASCII, st.sampled_from(["Müller", "Ωmega", "山田", "Иван", "a\\b", "  x  "]).map(lambda name: name.encode("utf-8")),
    st.sampled_from(["Müller", "Größe "]).map(lambda name: name.encode("latin-1")), st.binary(max_size=8),
)  # fmt: skip
CHARSETS = st.sampled_from(
    ["", "ISO_IR 6", "ISO_IR 100", "ISO_IR 192", "ISO_IR 13", "ISO_IR 144", "ISO 2022 IR 6\\ISO 2022 IR 87", "NONSENSE"]
)
REPRESENTATIONS = st.sampled_from([None, None, None, "UN", "LO", "DS", "IS", "FD", "US", "OB", "UI"])


def value_of(word: str) -> st.SearchStrategy[bytes]:
    if word == "PatientID":
        return PATIENT
    if word in ("Rows",):
        return st.one_of(st.integers(0, 65_535).map(lambda x: struct.pack("<H", x)), st.binary(max_size=5))
    if word == "DiffusionBValue":
        return st.one_of(st.floats(0, 5000).map(lambda x: struct.pack("<d", x)), st.binary(max_size=9))
    if word in dict(VECTORS):
        exact = st.lists(st.floats(-500, 500).map(lambda x: f"{x:.6f}".encode()), min_size=6, max_size=6)
        return st.one_of(exact.map(lambda parts: b"\\".join(parts[: dict(VECTORS)[word]])), SEVERAL)
    if word in ("ImageType", "ScanningSequence"):
        return st.lists(ASCII, max_size=4).map(b"\\".join)
    return st.one_of(DECIMAL, SEVERAL, ASCII)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data(), explicit=st.booleans(), big=st.booleans(), charset=CHARSETS)
@pytest.mark.filterwarnings("ignore")
def test_values_are_those_of_pydicom(data: st.DataObject, explicit: bool, big: bool, charset: str) -> None:
    big = big and explicit
    order, elements = ">" if big else "<", {}
    words = sorted({*TEXTS, *NUMBERS, *LISTS, *(word for word, _ in VECTORS)})
    for word in data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=8, unique=True)):
        vr = data.draw(REPRESENTATIONS) or {"PatientID": "LO", "Rows": "US", "DiffusionBValue": "FD"}.get(
            word, "DS" if word in (*NUMBERS, *dict(VECTORS)) else "CS" if word in LISTS else None
        )
        if vr is None:
            vr = {"SOPInstanceUID": "UI", "EchoTime": "DS", "TriggerTime": "DS", "AcquisitionTime": "TM",
                  "StackID": "SH", "BodyPartExamined": "CS"}.get(word, "IS")  # fmt: skip
        elements[tag_of(word)] = (vr, data.draw(value_of(word)))
    elements[0x00080005] = ("CS", charset.encode())
    elements[0x00080016] = ("UI", MR.encode())
    elements[0x00091001] = ("UN", data.draw(st.binary(max_size=40)))
    body = b"".join(element(tag, vr, value, explicit, order) for tag, (vr, value) in sorted(elements.items()))
    syntax = ExplicitVRBigEndian if big else UID("1.2.840.10008.1.2.1") if explicit else ImplicitVRLittleEndian
    content = bytes(128) + b"DICM" + element(0x00020010, "UI", syntax.encode(), True, "<") + body
    walked, _ = walk_file(io.BytesIO(content), TAGS)
    ours = Elements(walked.raw, walked.encoding)
    reference = dcmread(io.BytesIO(content), specific_tags=[Tag(tag) for tag in TAGS], force=True)
    for word in TEXTS:
        assert text(ours, word) == reference_text(theirs(reference, word)), word
    for word in (*NUMBERS, "EchoTime"):
        assert repr(number(ours, word)) == repr(reference_number(theirs(reference, word))), word
    for word, length in VECTORS:
        assert vector(ours, word, length) == reference_vector(theirs(reference, word), length), word
    for word in LISTS:
        assert strings(ours, word) == reference_strings(theirs(reference, word)), word


def reason_of(path: Path) -> str:
    with pytest.raises(NotAVolume) as outcome:
        read_frames(path)
    assert outcome.value.reason in vocabulary.FILE_REASONS
    return outcome.value.reason


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.7", "Modality": "CT"}, "secondary_capture"),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.7.3"}, "secondary_capture"),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.20"}, "other_dicom"),  # NM
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.6.1"}, "other_dicom"),  # US
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.1.1"}, "other_dicom"),  # DX
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.1.2"}, "other_dicom"),  # MG
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.12.1"}, "other_dicom"),  # XA
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.4.2"}, "other_dicom"),  # MR spectroscopy
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.4.3"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour"),
        ({"RescaleSlope": "0"}, "values_unknown"),
        ({"RescaleSlope": "0", "sop_class": CT}, "values_unknown"),
        ({"ModalityLUTSequence": Items([Dataset()])}, "values_unknown"),
    ],
)
def test_reasons(tmp_path: Path, elements: dict[str, Any], reason: str) -> None:
    (path,) = write(tmp_path, [image((0, 0, 0), **elements)])
    assert reason_of(path) == reason


@pytest.mark.parametrize(
    ("image_type", "expected"),
    [
        ("ORIGINAL PRIMARY M ND NORM", "image"), ("ORIGINAL PRIMARY LOCALIZER", "localizer"),
        ("DERIVED SECONDARY SCREEN_SAVE", "screen_save"), ("DERIVED SECONDARY MIP", "projection"),
        ("DERIVED PRIMARY PROJECTION+IMAGE COLLAPSE", "projection"), ("DERIVED SECONDARY MPR", "image"),
        ("DERIVED PRIMARY DIFFUSION ADC", "derived_map"), ("DERIVED PRIMARY DIFFUSION FA", "derived_map"),
        ("DERIVED PRIMARY DIFFUSION TRACEW", "image"), ("DERIVED PRIMARY CSA+RESAMPLED", "image"),
        ("ORIGINAL PRIMARY VOLUME NONE", "image"), ("ORIGINAL PRIMARY P ND", "phase_image"),
        ("ORIGINAL PRIMARY R_FFE R FFE", "phase_image"), ("DERIVED PRIMARY AXIAL MAT_REMOVED", "image"),
        ("DERIVED PRIMARY AXIAL VMI", "image"), ("DERIVED PRIMARY AXIAL ELECTRON_DENSITY", "derived_map"),
        ("DERIVED PRIMARY PERFUSION TTP", "derived_map"), ("DERIVED PRIMARY SUBTRACTION", "derived_map"),
        ("DERIVED PRIMARY DIXON WATER", "image"), ("DERIVED PRIMARY SYNTHETIC", "image"),
        ("DERIVED PRIMARY VOLUME MAXIMUM", "projection"),
    ],
)  # fmt: skip
def test_kinds_by_image_type(image_type: str, expected: str) -> None:
    assert kind([part.replace("+", " ") for part in image_type.split()]) == expected


@pytest.mark.parametrize("value", ["YES", "NO"])
@pytest.mark.parametrize("multi_frame", [False, True])
def test_burned_in_annotations_are_flagged(tmp_path: Path, value: str, multi_frame: bool) -> None:
    dataset = enhanced(3) if multi_frame else image((0, 0, 0))
    dataset.BurnedInAnnotation = value
    (path,) = write(tmp_path, [dataset])
    assert all(("burned_in" in frame.flags) == (value != "NO") for frame in read_frames(path))


def test_slopes_of_functional_groups(tmp_path: Path) -> None:
    """Per frame before shared before top level."""
    dataset = enhanced(3)
    dataset.RescaleSlope, dataset.RescaleIntercept = 7, -7
    values = Dataset()
    values.RescaleSlope, values.RescaleIntercept = 5, -5
    dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = Items([values])
    del dataset.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence
    (path,) = write(tmp_path / "shared", [dataset])
    assert [(f.slope, f.intercept) for f in read_frames(path)] == [(2, 0), (5, -5), (2, 0)]
    del dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    (path,) = write(tmp_path / "top", [dataset])
    assert [(f.slope, f.intercept) for f in read_frames(path)] == [(2, 0), (7, -7), (2, 0)]
    dataset.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence[0].RescaleSlope = 0
    (path,) = write(tmp_path / "zero", [dataset])
    assert reason_of(path) == "values_unknown"


@pytest.mark.parametrize("count", [0, 2, 4, 100_000_000])
def test_number_of_frames_must_fit_the_functional_groups(tmp_path: Path, count: int) -> None:
    dataset = enhanced(3)
    dataset.NumberOfFrames = count
    (path,) = write(tmp_path, [dataset])
    try:
        assert {frame.damage for frame in read_frames(path)} == {"truncated"}
    except NotAVolume as outcome:
        assert outcome.reason == "unreadable"


@pytest.mark.parametrize(("side", "present", "expected"), [(60_000, False, "truncated"), (16_385, True, "too_large")])
def test_absurd_sizes_are_refused_unread(tmp_path: Path, side: int, present: bool, expected: str) -> None:
    dataset = image((0, 0, 0))
    (path,) = write(tmp_path, [dataset])
    content = path.read_bytes()
    for word in ("Rows", "Columns"):
        tag = struct.pack("<HH", tag_of(word) >> 16, tag_of(word) & 0xFFFF)
        place = content.index(tag + b"US")
        content = content[: place + 8] + struct.pack("<H", side) + content[place + 10 :]
    if present:
        place = content.index(b"\xe0\x7f\x10\x00OW")
        length = side * side * 2
        content = content[: place + 8] + struct.pack("<I", length)
        path.write_bytes(content)
        with path.open("r+b") as file:
            file.truncate(len(content) + length)  # a sparse file: no byte of it is written
        assert reason_of(path) == expected
    else:
        path.write_bytes(content)
        assert [frame.damage for frame in read_frames(path)] == [expected]


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("private", [False, True])
def test_deep_sequences_are_stepped_over(tmp_path: Path, undefined: bool, private: bool) -> None:
    inner = b""
    for _ in range(1000):
        if undefined:
            ends = b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
            item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner + ends[0]
            inner = b"\x09\x00\x10\x10" + b"SQ\0\0\xff\xff\xff\xff" + item + ends[1]
        else:
            item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner
            inner = b"\x09\x00\x10\x10" + b"SQ\0\0" + struct.pack("<I", len(item)) + item
    if not private:
        inner = struct.pack("<HH", 0x0008, 0x1140) + inner[4:]
    (path,) = write(tmp_path, [image((0, 0, 0))])
    content = path.read_bytes()
    place = content.index(struct.pack("<HH", 0x0010, 0x0020) + b"LO")
    path.write_bytes(content[:place] + inner + content[place:])
    (frame,) = read_frames(path)
    assert (frame.patient_id, frame.position, frame.damage) == ("PLANTED-ID-7788", (0.0, 0.0, 0.0), "")


def test_sequences_that_never_end_are_no_volume(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [image((0, 0, 0))])
    content = path.read_bytes()
    place = content.index(struct.pack("<HH", 0x0010, 0x0020) + b"LO")
    path.write_bytes(content[:place] + b"\x09\x00\x10\x10UN\0\0\xff\xff\xff\xff" + content[place:])
    assert {frame.damage for frame in read_frames(path)} <= {"no_pixels", "truncated"}


@pytest.mark.parametrize("said", [ExplicitVRBigEndian, ImplicitVRLittleEndian, UID("1.2.840.10008.1.2.4.90")])
def test_file_meta_that_lies_is_seen_through(tmp_path: Path, said: UID) -> None:
    (path,) = write(tmp_path, stack(1))
    truth = read_frames(path)[0]
    content = path.read_bytes()
    old, new = b"UI\x14\x001.2.840.10008.1.2.1\0", said.encode() + b"\0" * (len(said) % 2)
    path.write_bytes(content.replace(old, b"UI" + struct.pack("<H", len(new)) + new))
    lied = read_frames(path)[0]
    assert (lied.position, lied.patient_id, lied.damage) == (truth.position, truth.patient_id, "")
    assert lied.pixels[0] == ""


def test_deflated_that_is_not_deflated(tmp_path: Path) -> None:
    (path,) = write(tmp_path, stack(1))
    new = DeflatedExplicitVRLittleEndian.encode()
    path.write_bytes(path.read_bytes().replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x00" + new))
    assert reason_of(path) == "unreadable"


def test_patient_ids_decode_by_their_character_set(tmp_path: Path) -> None:
    for number_, (charset, name) in enumerate(
        [("ISO_IR 192", "山田"), ("ISO_IR 100", "Müller"), ("ISO_IR 144", "Иван")]
    ):
        dataset = image((0, 0, 0))
        dataset.SpecificCharacterSet, dataset.PatientID = charset, name
        (path,) = write(tmp_path / str(number_), [dataset])
        assert read_frames(path)[0].patient_id == name


def test_an_unreadable_optional_element_costs_nothing(tmp_path: Path) -> None:
    dataset = image((0, 0, 0))
    (path,) = write(tmp_path, [dataset])
    content = path.read_bytes()
    place = content.index(struct.pack("<HH", 0x0020, 0x0013) + b"IS")
    path.write_bytes(content[:place] + element(0x00189087, "FD", b"123456", True, "<") + content[place:])
    (frame,) = read_frames(path)
    assert (frame.b_value, frame.damage, frame.position) == ("", "", (0.0, 0.0, 0.0))


def test_a_legacy_converted_object_is_read(tmp_path: Path) -> None:
    dataset = enhanced(4)
    assert dataset.SOPClassUID == ENHANCED_MR
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.4"
    (path,) = write(tmp_path, [dataset])
    assert len(read_frames(path)) == 4
