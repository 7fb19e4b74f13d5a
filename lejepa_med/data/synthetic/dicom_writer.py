"""Volumes as classic DICOM series (Explicit VR little endian), and the other objects that lie around in an archive.

Elements that a series shares are encoded once; a slice adds its own, so that a file takes less than a millisecond.
UIDs are hashes of what they name: the same call writes the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
)

from lejepa_med.data.volume import Volume

Plane = Literal["axial", "coronal", "sagittal"]
FileOrder = Literal["instance", "reversed", "shuffled"]
Elements = Mapping[str, Any]
"""Standard keyword -> value."""

_PREAMBLE = b"\0" * 128 + b"DICM"
_IMPLEMENTATION = "2.25.82710352907412654300913461275"
SLICE_AXIS: dict[Plane, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
_TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class SeriesHeader:
    """What names one series: `key` makes its UIDs, `elements` are further standard keywords and values.

    `order`: file names and InstanceNumbers follow the position ("instance"), or the numbers run against it
    ("reversed"), or names are random, and in every second series the numbers run backwards ("shuffled").
    `slope` and `intercept` are the rescale from stored values (slope None: no rescale, as in most MR).
    """

    key: str
    study_key: str
    patient_id: str
    patient_name: str
    elements: Elements = field(default_factory=dict)
    plane: Plane = "axial"
    order: FileOrder = "instance"
    slope: float | None = None
    intercept: float = 0.0


def uid(key: str) -> str:
    """DICOM UID that is a hash of `key`."""
    return f"2.25.{int.from_bytes(hashlib.sha256(key.encode()).digest()[:15], 'big')}"


def encode(elements: Elements) -> dict[int, bytes]:
    """Elements in Explicit VR little endian, by tag."""
    encoded = {}
    for keyword, value in elements.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_data_element(buffer, DataElement(tag, _value_representation(keyword), value))
        encoded[tag] = buffer.getvalue()
    return encoded


def _value_representation(keyword: str) -> str:
    vr = dictionary_VR(keyword)
    return {"OB or OW": "OW", "US or SS": "US"}.get(vr, vr)


def _meta(sop_class: str, instance_uid: str) -> bytes:
    """File meta group: preamble, group length and what names the object."""
    body = b"".join(
        encode(
            {
                "FileMetaInformationVersion": b"\0\1",
                "MediaStorageSOPClassUID": sop_class,
                "MediaStorageSOPInstanceUID": instance_uid,
                "TransferSyntaxUID": ExplicitVRLittleEndian,
                "ImplementationClassUID": _IMPLEMENTATION,
            }
        ).values()
    )
    return _PREAMBLE + encode({"FileMetaInformationGroupLength": len(body)})[0x00020000] + body


def _write(path: Path, sop_class: str, instance_uid: str, encoded: Mapping[int, bytes]) -> None:
    parts = [encoded[tag] for tag in sorted(encoded)]
    path.write_bytes(_meta(sop_class, instance_uid) + b"".join(parts))


def _common(header: SeriesHeader, sop_class: str, modality: str) -> dict[str, Any]:
    return {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": sop_class,
        "StudyDate": "20200115",
        "SeriesDate": "20200115",
        "StudyTime": "101500",
        "AccessionNumber": f"SYN{int(hashlib.sha256(header.study_key.encode()).hexdigest()[:8], 16) % 10**8:08d}",
        "Modality": modality,
        "Manufacturer": "SYNTHETIC",
        "InstitutionName": "SYNTHETIC HOSPITAL",
        "ReferringPhysicianName": "",
        "PatientName": header.patient_name,
        "PatientID": header.patient_id,
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyInstanceUID": uid(f"study {header.study_key}"),
        "SeriesInstanceUID": uid(f"series {header.key}"),
        "StudyID": "1",
        "SeriesNumber": 1,
        **header.elements,
    }


def _image_elements(header: SeriesHeader, modality: str, pixels: NDArray[np.uint16]) -> dict[str, Any]:
    sop_class = CTImageStorage if modality == "CT" else MRImageStorage
    elements = {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"],
        "PatientPosition": "HFS",
        "AcquisitionNumber": 1,
        "FrameOfReferenceUID": uid(f"frame {header.study_key}"),
        "PositionReferenceIndicator": "",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[1],
        "Columns": pixels.shape[2],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        **_common(header, sop_class, modality),
    }
    if header.slope is not None:
        elements |= {"RescaleIntercept": str(header.intercept), "RescaleSlope": str(header.slope), "RescaleType": "US"}
        if modality == "CT":
            elements["RescaleType"] = "HU"
    return elements


def image_planes(volume: Volume, plane: Plane) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """`[slice, row, column]` as a radiologist reads it, and the 4x4 matrix from (column, row, slice) to LPS mm.

    Columns run to the patient's left (sagittal: to the back), rows to the back (coronal, sagittal: to the feet), slices
    to the head (coronal: front, sagittal: right). The voxel axes of `volume` must run roughly to R, A and S.
    """
    slice_axis = SLICE_AXIS[plane]
    column_axis, row_axis = (axis for axis in range(3) if axis != slice_axis)
    array = np.flip(volume.array, axis=(column_axis, row_axis)).transpose(slice_axis, row_axis, column_axis)
    flipped = np.eye(4)
    for axis in (column_axis, row_axis):
        flipped[axis, axis], flipped[axis, 3] = -1.0, volume.array.shape[axis] - 1
    order = np.eye(4)[:, [column_axis, row_axis, slice_axis, 3]]
    matrix = volume.affine @ flipped @ order
    matrix[:3] = _TO_LPS @ matrix[:3]
    return array, matrix


def _number(value: float) -> str:
    """Decimal string of at most 16 characters."""
    return f"{value:.8f}"[:16].rstrip("0").rstrip(".")


def _file_names(header: SeriesHeader, count: int) -> tuple[list[str], list[int]]:
    """File name and InstanceNumber of each slice, in order of position."""
    ascending = list(range(1, count + 1))
    match header.order:
        case "instance":
            return [f"IM{n:04d}.dcm" for n in ascending], ascending
        case "reversed":
            return [f"IM{n:04d}.dcm" for n in ascending], ascending[::-1]
        case "shuffled":
            names = [hashlib.sha256(f"{header.key} {n}".encode()).hexdigest()[:10] for n in ascending]
            reverse = int(names[0], 16) % 2
            return names, ascending[::-1] if reverse else ascending


def write_series(volume: Volume, header: SeriesHeader, folder: Path) -> list[Path]:
    """Write one file per slice of `volume` (modality "mri" or "ct") to `folder`; returns them in order of position.

    Stored values are rounded `(value - intercept) / slope`, clipped to 16 bits.
    """
    modality = "CT" if volume.modality == "ct" else "MR"
    array, matrix = image_planes(volume, header.plane)
    scaled = (array.astype(np.float32) - header.intercept) / (header.slope or 1.0)
    pixels = np.clip(np.rint(scaled), 0, 65535).astype("<u2")
    steps = np.linalg.norm(matrix[:3, :3], axis=0)
    directions = matrix[:3, :3] / steps
    elements = _image_elements(header, modality, pixels) | {
        "ImageOrientationPatient": [_number(v) for v in directions[:, :2].T.ravel().tolist()],
        "PixelSpacing": [_number(steps[1]), _number(steps[0])],
        "SliceThickness": _number(abs(float(np.linalg.det(np.c_[directions[:, :2], matrix[:3, 2]])))),
    }
    shared = encode(elements)
    folder.mkdir(parents=True, exist_ok=True)
    names, numbers = _file_names(header, len(pixels))
    paths = []
    for index, (name, number) in enumerate(zip(names, numbers, strict=True)):
        position = matrix @ (0, 0, index, 1)
        instance = uid(f"instance {header.key} {index}")
        own = {
            "SOPInstanceUID": instance,
            "InstanceNumber": number,
            "ImagePositionPatient": [_number(v) for v in position[:3].tolist()],
            "SliceLocation": _number(float(directions[:, 2] @ position[:3])),
            "PixelData": pixels[index].tobytes(),
        }
        _write(folder / name, elements["SOPClassUID"], instance, shared | encode(own))
        paths.append(folder / name)
    return paths


def write_dose_report(header: SeriesHeader, path: Path) -> None:
    """A minimal radiation dose structured report: a title, no content items."""
    instance = uid(f"instance {header.key}")
    elements = _common(header, XRayRadiationDoseSRStorage, "SR") | {
        "SOPInstanceUID": instance,
        "ContentDate": "20200115",
        "ContentTime": "101500",
        "InstanceNumber": 1,
        "ValueType": "CONTAINER",
        "ContinuityOfContent": "SEPARATE",
        "CompletionFlag": "COMPLETE",
        "VerificationFlag": "UNVERIFIED",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, XRayRadiationDoseSRStorage, instance, encode(elements))


def write_secondary_capture(header: SeriesHeader, path: Path, picture: NDArray[np.uint8]) -> None:
    """A screenshot: `picture` is `[row, column, 3]` RGB, without any geometry."""
    instance = uid(f"instance {header.key}")
    elements = _common(header, SecondaryCaptureImageStorage, "OT") | {
        "SOPInstanceUID": instance,
        "ImageType": ["DERIVED", "SECONDARY"],
        "ConversionType": "WSD",
        "InstanceNumber": 1,
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "Rows": picture.shape[0],
        "Columns": picture.shape[1],
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": picture.tobytes(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, SecondaryCaptureImageStorage, instance, encode(elements))
