"""Turns an enhanced multi-frame object into single frames, through its functional groups."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from lejepa_med.data.dicom.elements import Elements, integer, number, strings, text, vector
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.header import NotAVolume, direction_of, rescaling
from lejepa_med.data.dicom.kinds import flags_of_type, hu_uncertain, kind, sequence

NOT_MAGNITUDE = ("PHASE", "REAL", "IMAGINARY")
_GROUPS = (
    "PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence", "PixelValueTransformationSequence",
    "FrameContentSequence", "MRDiffusionSequence", "MREchoSequence", "MRTimingAndRelatedParametersSequence",
    "CardiacSynchronizationSequence", "MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence",
)  # fmt: skip
_FRAME_TYPES = _GROUPS[-3:]


def frames(whole: Frame, header: Elements) -> tuple[Frame, ...]:
    """One frame per item of the per-frame functional groups; what an item lacks comes from the shared groups.

    Raises `NotAVolume` where the items are not as many as the frames.
    """
    items = header.sequence("PerFrameFunctionalGroupsSequence")
    if len(items) != integer(header, "NumberOfFrames", 1):
        raise NotAVolume("unreadable", header)
    nothing = Elements({}, header.encoding)
    shared = dict.fromkeys(_GROUPS, nothing)
    for item in header.sequence("SharedFunctionalGroupsSequence")[:1]:
        shared |= _groups(item)
    return tuple(
        _frame(dataclasses.replace(whole, index=index, bytes=whole.bytes // len(items)), shared | _groups(item), header)
        for index, item in enumerate(items)
    )


def _groups(item: Elements) -> dict[str, Elements]:
    return {name: found[0] for name in _GROUPS if name in item and (found := item.sequence(name))}


def _frame(whole: Frame, groups: Mapping[str, Elements], header: Elements) -> Frame:
    values, content = groups["PixelValueTransformationSequence"], groups["FrameContentSequence"]
    diffusion, echo = groups["MRDiffusionSequence"], groups["MREchoSequence"]
    slope, intercept = rescaling(values)
    frame_type = next((groups[name] for name in _FRAME_TYPES if groups[name].raw), groups[_FRAME_TYPES[0]])
    image_type = strings(frame_type, "FrameType") or whole.image_type
    component = text(frame_type, "ComplexImageComponent") or text(header, "ComplexImageComponent")
    b_value = text(diffusion, "DiffusionBValue")
    gradient = diffusion.sequence("DiffusionGradientDirectionSequence")
    return dataclasses.replace(
        whole,
        pixel_spacing=vector(groups["PixelMeasuresSequence"], "PixelSpacing", 2),
        orientation=vector(groups["PlaneOrientationSequence"], "ImageOrientationPatient", 6),
        position=vector(groups["PlanePositionSequence"], "ImagePositionPatient", 3),
        slope=whole.slope if math.isnan(slope) else slope,
        intercept=whole.intercept if math.isnan(intercept) else intercept,
        image_type=image_type,
        kind="phase_image" if component in NOT_MAGNITUDE else kind(image_type),
        temporal=text(content, "TemporalPositionIndex") or whole.temporal,
        trigger=text(groups["CardiacSynchronizationSequence"], "NominalCardiacTriggerDelayTime"),
        echo=text(echo, "EffectiveEchoTime"),
        b_value=b_value,
        direction=direction_of(gradient[0]) if gradient else "",
        stack=text(content, "StackID"),
        acquisition=text(content, "FrameAcquisitionNumber"),
        time=text(content, "FrameReferenceDateTime") or text(content, "FrameAcquisitionDateTime"),
        sequence=_sequence(whole, header, groups, b_value),
        flags=_flags(whole, values, image_type),
    )


def _sequence(whole: Frame, header: Elements, groups: Mapping[str, Elements], b_value: str) -> str:
    if whole.modality != "mri":
        return ""
    repetition = number(groups["MRTimingAndRelatedParametersSequence"], "RepetitionTime")
    echo = number(groups["MREchoSequence"], "EffectiveEchoTime")
    return sequence(header, whole.image_type, b_value, (repetition, echo, math.nan))


def _flags(whole: Frame, values: Elements, image_type: tuple[str, ...]) -> tuple[str, ...]:
    flags = {flag for flag in whole.flags if flag in ("lossy", "burned_in")} | flags_of_type(image_type)
    if whole.modality == "ct" and (hu_uncertain(values) if values.raw else "hu_uncertain" in whole.flags):
        flags.add("hu_uncertain")
    return tuple(sorted(flags))
