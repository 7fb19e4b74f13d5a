"""Reads a DICOM header without its pixels and turns it into frames, or into the reason why it is no volume.

Kept are CT, MR and PET images, classic and enhanced. The pixel element is not read, only measured: a file that ends
before its pixels do is known here.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from lejepa_med.data import vocabulary
from lejepa_med.data.dicom_elements import number, strings, text, vector
from lejepa_med.data.frame import Frame

_CLASS = "1.2.840.10008.5.1.4.1.1."
MODALITY_OF_CLASS = {
    _CLASS + "2": "ct", _CLASS + "2.1": "ct", _CLASS + "2.2": "ct",
    _CLASS + "4": "mri", _CLASS + "4.1": "mri", _CLASS + "4.4": "mri",
    _CLASS + "128": "pet", _CLASS + "130": "pet", _CLASS + "128.1": "pet",
}  # fmt: skip
_REASON_OF_CLASS = (
    (_CLASS + "88.59", "key_object"), (_CLASS + "88", "structured_report"), (_CLASS + "66", "segmentation"),
    (_CLASS + "481", "radiotherapy"), (_CLASS + "11", "presentation_state"), (_CLASS + "104", "document"),
    (_CLASS + "7", "secondary_capture"), ("1.2.840.10008.1.3.10", "dicomdir"),
)  # fmt: skip

_KINDS = (
    ("localizer", {"LOCALIZER", "SCOUT", "SCANOGRAM"}),
    ("screen_save", {"SCREEN SAVE", "SCREENSAVE", "SCREEN_SAVE"}),
    ("projection", {"MIP", "MINIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE", "PROJECTION", "VOLREN", "VOLUME"}),
    ("phase_image", {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "VELOCITY MAP", "VELOCITY", "REAL", "IMAGINARY"}),
    (
        "derived_map",
        {"ADC", "ADC_UNSPECIFIED", "FA", "TENSOR", "CBF", "CBV", "RCBF", "RCBV", "MTT", "TTP", "TMAX", "RELCBF",
         "RELCBV", "RELMTT", "T1 MAP", "T2 MAP", "T2_STAR MAP", "R2 MAP", "R2_STAR MAP", "SUBTRACT", "SUBTRACTION",
         "SUB", "PARAMETRIC MAP", "EADC", "B0 MAP", "FIELD_MAP"},
    ),
)  # fmt: skip
REFORMATS = {"MPR", "REFORMATTED", "MPR_THICK", "CSA MPR", "CURVED MPR"}

_B_VALUES = (Tag(0x0018, 0x9087), Tag(0x0019, 0x100C), Tag(0x0043, 0x1039))
_KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "FrameOfReferenceUID",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "PhotometricInterpretation",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelRepresentation",
    "ImageType",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "EchoNumbers",
    "EchoTime",
    "DiffusionGradientOrientation",
    "StackID",
    "AcquisitionNumber",
    "AcquisitionTime",
    "FrameReferenceTime",
    "ScanningSequence",
    "RepetitionTime",
    "InversionTime",
    "AcquisitionContrast",
    "BodyPartExamined",
    "AngioFlag",
    "ComplexImageComponent",
    "LossyImageCompression",
    "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_TAGS: list[Any] = [*_KEYWORDS, *_B_VALUES]


class NotAVolume(Exception):  # noqa: N818  (an outcome, not an error)
    """A file that holds no slice of a volume; `reason` is a word of the vocabulary."""

    def __init__(self, reason: str, header: Dataset | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.owner = tuple(text(header, word) for word in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"))


def looks_like_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM, with the preamble or without it."""
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:132] == b"DICM" or starts_bare(start)


def starts_bare(start: bytes) -> bool:
    """Whether bytes start with a data element of group 2 or 8, as old files without preamble do."""
    if len(start) < 8:
        return False
    group, element, _ = struct.unpack("<HHI", start[:8])
    return (group in (0x0002, 0x0008) and element <= 0x0060 and b"1.2.840.10008" in start) or start[
        :4
    ] == b"\x08\0\x05\0"


def read_header(path: Path) -> tuple[Frame, Dataset]:
    """The header of a DICOM image and what it says of the image as a whole.

    Raises `NotAVolume` for everything that is no CT, MR or PET image.
    """
    with path.open("rb") as file:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            sop_class = text(header, "SOPClassUID") or str(getattr(header.file_meta, "MediaStorageSOPClassUID", ""))
        except Exception:
            raise NotAVolume("unreadable") from None
        try:
            _check_class(sop_class, header)
            return _single(path, header, MODALITY_OF_CLASS[sop_class], _damage(file, header)), header
        except NotAVolume:
            raise
        except Exception:
            raise NotAVolume("unreadable", header) from None


def _check_class(sop_class: str, header: Dataset) -> None:
    if not sop_class:
        raise NotAVolume("unreadable", header)
    for prefix, reason in _REASON_OF_CLASS:
        if sop_class == prefix or sop_class.startswith(prefix + "."):
            raise NotAVolume(reason, header)
    if sop_class not in MODALITY_OF_CLASS:
        raise NotAVolume("other_dicom", header)
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise NotAVolume("colour", header)


def _single(path: Path, header: Dataset, modality: str, damage: str) -> Frame:
    image_type = strings(header, "ImageType")
    b_value = _b_value(header)
    echo = text(header, "EchoNumbers") + "/" + text(header, "EchoTime")
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    return Frame(
        path=str(path),
        index=0,
        sop_uid=text(header, "SOPInstanceUID"),
        series_uid=text(header, "SeriesInstanceUID"),
        study_uid=text(header, "StudyInstanceUID"),
        patient_id=text(header, "PatientID"),
        frame_of_reference=text(header, "FrameOfReferenceUID"),
        modality=modality,
        rows=int(header.get("Rows") or 0),
        columns=int(header.get("Columns") or 0),
        pixel_spacing=vector(header, "PixelSpacing", 2),
        orientation=vector(header, "ImageOrientationPatient", 6),
        position=vector(header, "ImagePositionPatient", 3),
        slope=1.0 if math.isnan(slope) else slope,
        intercept=0.0 if math.isnan(intercept) else intercept,
        padding=_padding(header),
        kind=kind(image_type),
        image_type=image_type,
        temporal=text(header, "TemporalPositionIdentifier"),
        trigger=text(header, "TriggerTime") or text(header, "FrameReferenceTime"),
        echo=echo,
        b_value=b_value,
        direction=";".join(f"{part:.3f}" for part in vector(header, "DiffusionGradientOrientation", 3)),
        stack=text(header, "StackID"),
        acquisition=text(header, "AcquisitionNumber"),
        time=text(header, "AcquisitionTime"),
        sequence=sequence(header, image_type, b_value) if modality == "mri" else "",
        body_part=vocabulary.body_part(text(header, "BodyPartExamined")),
        flags=_flags(header, modality, image_type, intercept),
        damage=damage,
        mosaic=0,
        bytes=Path(path).stat().st_size,
    )


def kind(image_type: Iterable[str]) -> str:
    """`image`, or the reason that an ImageType gives to reject a frame."""
    tokens = set(image_type)
    return next((reason for reason, words in _KINDS if tokens & words), "image")


def sequence(header: Dataset, image_type: tuple[str, ...], b_value: str) -> str:
    """The word for an MR sequence that the header's timing gives."""
    times = (number(header, "RepetitionTime"), number(header, "EchoTime"), number(header, "InversionTime"))
    contrast = text(header, "AcquisitionContrast")
    if text(header, "AngioFlag") == "Y":
        contrast = "TOF"
    return vocabulary.sequence(contrast, strings(header, "ScanningSequence"), image_type, times, float(b_value or 0))


def _flags(header: Dataset, modality: str, image_type: tuple[str, ...], intercept: float) -> tuple[str, ...]:
    flags = []
    if image_type[:1] == ("DERIVED",):
        flags.append("derived")
    if set(image_type) & REFORMATS:
        flags.append("reformatted")
    if modality == "ct" and (math.isnan(intercept) or text(header, "RescaleType") not in ("", "HU", "US")):
        flags.append("hu_uncertain")
    if text(header, "LossyImageCompression") == "01":
        flags.append("lossy")
    return tuple(flags)


def _padding(header: Dataset) -> tuple[int, ...]:
    first, last = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if first is None or not isinstance(first, int):
        return ()
    bounds = (first, last if isinstance(last, int) else first)
    return (min(bounds), max(bounds))


def _b_value(header: Dataset) -> str:
    for tag in _B_VALUES:
        if tag in header:
            value = header[tag].value
            first = value[0] if isinstance(value, (list, pydicom.multival.MultiValue)) and len(value) else value
            if isinstance(first, bytes):
                first = first.decode("ascii", "ignore").split("\\")[0].strip(" \0")
            try:
                return f"{float(first) % 1e9:g}"  # GE adds 1e9
            except (TypeError, ValueError):
                return ""
    return ""


def _damage(file: BinaryIO, header: Dataset) -> str:
    """`truncated` or `no_pixels` where the pixels are not all there; the file stands at the pixel element."""
    syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
    if syntax is not None and syntax.name.startswith("Deflated"):
        return ""
    order = "<" if syntax is None or syntax.is_little_endian else ">"
    start = file.tell()
    size = os.fstat(file.fileno()).st_size
    element = file.read(12)
    if len(element) < 12 or struct.unpack(order + "HH", element[:4]) not in ((0x7FE0, n) for n in (0x08, 0x09, 0x10)):
        return "truncated" if 0 < len(element) < 12 else "no_pixels"
    explicit = element[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN")
    length = struct.unpack(order + "I", element[8:12] if explicit else element[4:8])[0]
    begin = start + (12 if explicit else 8)
    if length == 0xFFFFFFFF:
        return "" if _fragments_end(file, begin, size) else "truncated"
    frames = int(header.get("NumberOfFrames") or 1)
    needed = int(header.Rows) * int(header.Columns) * frames * int(header.BitsAllocated) // 8
    return "truncated" if begin + length > size or length < needed else ""


def _fragments_end(file: BinaryIO, begin: int, size: int) -> bool:
    """Whether the items of encapsulated pixels are complete."""
    while begin + 8 <= size:
        file.seek(begin, io.SEEK_SET)
        group, element, length = struct.unpack("<HHI", file.read(8))
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000):
            return False
        begin += 8 + length
    # Some writers leave the delimiter out: complete if the last fragment ends with the file.
    return begin == size
