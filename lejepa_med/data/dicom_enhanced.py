"""Turns an enhanced multi-frame object into single frames, through its functional groups."""

from __future__ import annotations

import dataclasses
import math

from pydicom.dataset import Dataset

from lejepa_med.data.dicom_elements import number, strings, text, vector
from lejepa_med.data.dicom_header import REFORMATS, kind, sequence
from lejepa_med.data.frame import Frame


def frames(whole: Frame, header: Dataset) -> tuple[Frame, ...]:
    """One frame per item of the per-frame functional groups; what an item lacks comes from the shared groups."""
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    items = header.PerFrameFunctionalGroupsSequence
    return tuple(_frame(whole, index, item, shared[0], header) for index, item in enumerate(items))


def _frame(whole: Frame, index: int, item: Dataset, shared: Dataset, header: Dataset) -> Frame:
    def group(name: str) -> Dataset:
        found = item.get(name) or shared.get(name)
        return found[0] if found else Dataset()

    values, content = group("PixelValueTransformationSequence"), group("FrameContentSequence")
    diffusion, echo = group("MRDiffusionSequence"), group("MREchoSequence")
    slope, intercept = number(values, "RescaleSlope"), number(values, "RescaleIntercept")
    frame_type = _frame_type(group)
    image_type = strings(frame_type, "FrameType") or whole.image_type
    component = text(frame_type, "ComplexImageComponent") or text(header, "ComplexImageComponent")
    b_value = text(diffusion, "DiffusionBValue")
    gradient = diffusion.get("DiffusionGradientDirectionSequence") or [Dataset()]
    direction = vector(gradient[0], "DiffusionGradientOrientation", 3)
    return dataclasses.replace(
        whole,
        index=index,
        pixel_spacing=vector(group("PixelMeasuresSequence"), "PixelSpacing", 2),
        orientation=vector(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        position=vector(group("PlanePositionSequence"), "ImagePositionPatient", 3),
        slope=whole.slope if math.isnan(slope) else slope,
        intercept=whole.intercept if math.isnan(intercept) else intercept,
        image_type=image_type,
        kind="phase_image" if component in ("PHASE", "REAL", "IMAGINARY") else kind(image_type),
        temporal=text(content, "TemporalPositionIndex") or whole.temporal,
        trigger=text(group("CardiacSynchronizationSequence"), "NominalCardiacTriggerDelayTime"),
        echo=text(echo, "EffectiveEchoTime"),
        b_value=b_value,
        direction=";".join(f"{part:.3f}" for part in direction),
        stack=text(content, "StackID"),
        acquisition=text(content, "FrameAcquisitionNumber"),
        time=text(content, "FrameReferenceDateTime") or text(content, "FrameAcquisitionDateTime"),
        sequence=_sequence(whole, header, group("MRTimingAndRelatedParametersSequence"), echo, b_value),
        flags=_flags(whole, values, intercept, image_type),
        bytes=whole.bytes // max(1, len(header.PerFrameFunctionalGroupsSequence)),
    )


def _frame_type(group: object) -> Dataset:
    for name in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"):
        found: Dataset = group(name)  # type: ignore[operator]
        if len(found):
            return found
    return Dataset()


def _sequence(whole: Frame, header: Dataset, timing: Dataset, echo: Dataset, b_value: str) -> str:
    if whole.modality != "mri":
        return ""
    merged = Dataset()
    for word in ("AcquisitionContrast", "ScanningSequence"):
        if word in header:
            setattr(merged, word, header[word].value)
    if "RepetitionTime" in timing:
        merged.RepetitionTime = timing.RepetitionTime
    if "EffectiveEchoTime" in echo:
        merged.EchoTime = echo.EffectiveEchoTime
    return sequence(merged, whole.image_type, b_value)


def _flags(whole: Frame, values: Dataset, intercept: float, image_type: tuple[str, ...]) -> tuple[str, ...]:
    flags = {flag for flag in whole.flags if flag == "lossy"}
    if image_type[:1] == ("DERIVED",):
        flags.add("derived")
    if set(image_type) & REFORMATS:
        flags.add("reformatted")
    if whole.modality == "ct" and (math.isnan(intercept) or text(values, "RescaleType") not in ("", "HU", "US")):
        flags.add("hu_uncertain")
    return tuple(sorted(flags))
