"""Reads a DICOM header without its pixels and turns it into a frame, or into the reason why it is no volume.

Kept are CT, MR and PET images, classic and enhanced. Values are those of RescaleSlope and RescaleIntercept alone:
private scalings (Philips) and real world value maps are not used; a lookup table or a slope of 0 is refused.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

from lejepa_med.data import vocabulary
from lejepa_med.data.dicom import layout as pixel_layout
from lejepa_med.data.dicom.elements import Elements, integer, number, strings, tag_of, text, vector
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.kinds import flags_of_type, hu_uncertain, kind, sequence
from lejepa_med.data.dicom.stream import Source, size_of, walk_file
from lejepa_med.data.files import storage

_CLASS = "1.2.840.10008.5.1.4.1.1."
MODALITY_OF_CLASS = {
    _CLASS + "2": "ct", _CLASS + "2.1": "ct", _CLASS + "2.2": "ct",
    _CLASS + "4": "mri", _CLASS + "4.1": "mri", _CLASS + "4.4": "mri",
    _CLASS + "128": "pet", _CLASS + "130": "pet", _CLASS + "128.1": "pet",
}  # fmt: skip
_REASON_OF_CLASS = (
    (_CLASS + "88.59", "key_object"), (_CLASS + "88", "structured_report"), (_CLASS + "66", "segmentation"),
    (_CLASS + "481", "radiotherapy"), (_CLASS + "11", "presentation_state"), (_CLASS + "104", "document"),
    (_CLASS + "7", "secondary_capture"), ("1.2.840.10008.1.3.10", "dicomdir"), (_CLASS + "4.3", "colour"),
)  # fmt: skip
_COLOUR = ("PALETTE", "RGB", "YBR", "HSV", "ARGB", "CMYK", "XYB")

_B_VALUES = ((0x0019100C, 0x00190010, b"SIEMENS MR HEADER"), (0x00431039, 0x00430010, b"GEMS_PARM_01"))
_WORDS = """
    SpecificCharacterSet SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID FrameOfReferenceUID
    Modality Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated BitsStored HighBit PhotometricInterpretation
    PixelRepresentation PixelSpacing ImageOrientationPatient ImagePositionPatient RescaleSlope RescaleIntercept
    RescaleType ModalityLUTSequence PixelPaddingValue PixelPaddingRangeLimit ImageType TemporalPositionIdentifier
    TriggerTime EchoNumbers EchoTime DiffusionGradientOrientation DiffusionBValue StackID AcquisitionNumber
    AcquisitionTime FrameReferenceTime ScanningSequence RepetitionTime InversionTime AcquisitionContrast
    BodyPartExamined AngioFlag ComplexImageComponent LossyImageCompression BurnedInAnnotation SpacingBetweenSlices
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
"""
TAGS = frozenset([*map(tag_of, _WORDS.split()), *(tag for place in _B_VALUES for tag in place[:2])])
"""Every element that is read from a header."""


class NotAVolume(Exception):  # noqa: N818  (an outcome, not an error)
    """A file that holds no slice of a volume; `reason` is a word of the vocabulary."""

    def __init__(self, reason: str, header: Elements | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.owner = tuple(text(header, word) for word in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"))


def looks_like_dicom(path: Path | str) -> bool:
    """Whether a file starts like DICOM, with the preamble or without it."""
    with storage.open_binary(str(path)) as file:
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


def read_header(path: str) -> tuple[Frame, Elements]:
    """The header of a DICOM image and what it says of the image as a whole.

    Raises `NotAVolume` for everything that is no CT, MR or PET image.
    """
    header = None
    with storage.open_binary(path) as file:
        try:
            walked, data = walk_file(file, TAGS)
            header = Elements(walked.raw, walked.encoding)
            sop_class = text(header, "SOPClassUID") or walked.sop_class
            _check_class(sop_class, header)
            layout = pixel_layout.look(header, walked, data)
            return _single(path, header, MODALITY_OF_CLASS[sop_class], layout, file), header
        except NotAVolume:
            raise
        except pixel_layout.Refused as refused:
            raise NotAVolume(refused.reason, header) from None
        except Exception:
            raise NotAVolume("unreadable", header) from None


def _check_class(sop_class: str, header: Elements) -> None:
    if not sop_class:
        raise NotAVolume("unreadable", header)
    for prefix, reason in _REASON_OF_CLASS:
        if sop_class == prefix or sop_class.startswith(prefix + "."):
            raise NotAVolume(reason, header)
    if sop_class not in MODALITY_OF_CLASS:
        raise NotAVolume("other_dicom", header)
    if integer(header, "SamplesPerPixel", 1) > 1 or text(header, "PhotometricInterpretation").startswith(_COLOUR):
        raise NotAVolume("colour", header)
    if header.sequence("ModalityLUTSequence"):
        raise NotAVolume("values_unknown", header)


def _single(path: str, header: Elements, modality: str, layout: pixel_layout.Layout, file: Source) -> Frame:
    image_type = strings(header, "ImageType")
    b_value = _b_value(header)
    slope, intercept = rescaling(header)
    return Frame(
        path=path,
        index=0,
        sop_uid=text(header, "SOPInstanceUID"),
        series_uid=text(header, "SeriesInstanceUID"),
        study_uid=text(header, "StudyInstanceUID"),
        patient_id=text(header, "PatientID"),
        frame_of_reference=text(header, "FrameOfReferenceUID"),
        modality=modality,
        rows=integer(header, "Rows"),
        columns=integer(header, "Columns"),
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
        echo=text(header, "EchoNumbers") + "/" + text(header, "EchoTime"),
        b_value=b_value,
        direction=direction_of(header),
        stack=text(header, "StackID"),
        acquisition=text(header, "AcquisitionNumber"),
        time=text(header, "AcquisitionTime"),
        sequence=sequence(header, image_type, b_value, _times(header)) if modality == "mri" else "",
        body_part=vocabulary.body_part(text(header, "BodyPartExamined")),
        flags=_flags(header, modality, image_type),
        damage=layout.damage,
        mosaic=0,
        bytes=size_of(file),
        pixels=layout.pixels,
    )


def rescaling(values: Elements) -> tuple[float, float]:
    """Slope and intercept, NaN where absent; raises `NotAVolume` where they are given and no usable numbers."""
    slope, intercept = number(values, "RescaleSlope"), number(values, "RescaleIntercept")
    if values.plain("RescaleSlope") and not (math.isfinite(slope) and slope != 0):
        raise NotAVolume("values_unknown")
    if values.plain("RescaleIntercept") and not math.isfinite(intercept):
        raise NotAVolume("values_unknown")
    return slope, intercept


def direction_of(values: Elements) -> str:
    """The direction of a diffusion gradient as text, empty where absent."""
    return ";".join(f"{part:.3f}" for part in vector(values, "DiffusionGradientOrientation", 3))


def _times(header: Elements) -> tuple[float, float, float]:
    return number(header, "RepetitionTime"), number(header, "EchoTime"), number(header, "InversionTime")


def _flags(header: Elements, modality: str, image_type: tuple[str, ...]) -> tuple[str, ...]:
    flags = flags_of_type(image_type)
    if modality == "ct" and hu_uncertain(header):
        flags.add("hu_uncertain")
    if text(header, "LossyImageCompression") == "01":
        flags.add("lossy")
    if text(header, "BurnedInAnnotation").upper() == "YES":
        flags.add("burned_in")
    return tuple(sorted(flags))


def _padding(header: Elements) -> tuple[int, ...]:
    """Lowest and highest padding value as stored; their sign is that of the pixels, whatever their own element says."""
    bounds = []
    for word in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        found = header.plain(word)
        if found is not None:
            signed = integer(header, "PixelRepresentation") == 1
            if len(found[1]) == 2:
                order = "little" if header.encoding.little else "big"
                bounds.append(int.from_bytes(found[1], order, signed=signed))  # type: ignore[arg-type]
            else:
                value = number(header, word)
                bounds += [int(value)] if value.is_integer() else []
    return (min(bounds), max(bounds)) if bounds and header.plain("PixelPaddingValue") else ()


def _b_value(header: Elements) -> str:
    value = number(header, "DiffusionBValue")
    for tag, creator, name in _B_VALUES:
        if math.isnan(value) and tag in header.raw:
            owner = header.raw.get(creator, (b"", b""))[1].strip(b" \0")
            if owner in (b"", name):  # another vendor's element of this number means something else
                value = _first_number(header, tag)
    return f"{value % 1e9:g}" if math.isfinite(value) else ""  # GE adds 1e9


def _first_number(header: Elements, tag: int) -> float:
    vr, data = header.raw[tag]
    if vr in (b"", b"UN", b"OB", b"IS", b"DS", b"LO", b"SH"):
        first: object = data.decode("latin-1").split("\\")[0].strip(" \0")
    else:
        value = header.converted(tag)
        first = value[0] if isinstance(value, list) and value else value
    try:
        return float(first)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
