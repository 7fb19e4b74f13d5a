"""The series of the archive: the geometry and header that a synthetic scanner gives to heads and trunks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.synthetic.body import Body, body_phantom
from lejepa_med.data.synthetic.dicom_writer import (
    SLICE_AXIS,
    FileOrder,
    Plane,
    SeriesHeader,
    uid,
    write_dose_report,
    write_secondary_capture,
    write_series,
)
from lejepa_med.data.synthetic.head import Scan, Subject, head_ct, head_phantom
from lejepa_med.data.synthetic.ranges import BODY, HEAD, HEAD_CT
from lejepa_med.data.synthetic.shapes import Vector, affine_centred, make_grid
from lejepa_med.data.volume import Volume

_GEOMETRY = 31  # stream of random numbers
_PLANES: tuple[Plane, ...] = ("axial", "sagittal", "axial", "coronal", "axial", "sagittal")
_ORDERS: tuple[FileOrder, ...] = ("instance", "shuffled", "reversed")
_RESCALED_SCANNERS = (2, 5)  # these two vendors store MR with a rescale slope
_T1_NAMES = ("t1_se_tra", "t1_mprage_sag", "AX T1 SE", "T1 3D cor", "T1W_SE", "SAG T1 MPRAGE")
_FLAIR_NAMES = ("t2_flair_tra", "AX FLAIR", "FLAIR_longTR", "t2_tirm_tra_dark-fluid", "AX T2 FLAIR", "FLAIR")


@dataclass(frozen=True)
class Study:
    """Patient and visit that series belong to."""

    key: str
    patient_id: str
    patient_name: str


def acquire(subject: Subject, scan: Scan) -> tuple[Volume, Plane]:
    """The MRI as this scan's scanner acquires it: its slice plane and thickness, a small matrix; axis-aligned RAS."""
    plane: Plane = "axial" if scan.sequence == "FLAIR" else _PLANES[scan.scanner % len(_PLANES)]
    thickness = round(float(np.random.default_rng([_GEOMETRY, scan.scanner]).uniform(*HEAD.slice_thickness)), 1)
    axis = SLICE_AXIS[plane]
    spacing = [HEAD.pixel] * 3
    shape = [HEAD.matrix] * 3
    spacing[axis], shape[axis] = thickness, round(HEAD.field_of_view[axis] / thickness)
    volume = head_phantom(subject, scan, (spacing[0], spacing[1], spacing[2]), (shape[0], shape[1], shape[2]))
    return volume, plane


def mr_elements(scan: Scan) -> dict[str, Any]:
    """Header of one MR protocol: names, timing and field strength of its scanner."""
    inverted = scan.inversion_ms is not None
    names = _FLAIR_NAMES if scan.sequence == "FLAIR" else _T1_NAMES
    elements: dict[str, Any] = {
        "ManufacturerModelName": f"SYNTHETIC MR {scan.scanner}",
        "StationName": f"MR{scan.scanner}",
        "MagneticFieldStrength": "1.5",
        "BodyPartExamined": "HEAD",
        "SeriesDescription": names[scan.scanner % len(names)],
        "ProtocolName": names[scan.scanner % len(names)],
        "ScanningSequence": ["SE", "IR"] if scan.sequence == "FLAIR" else (["GR", "IR"] if inverted else "SE"),
        "SequenceVariant": "MP" if inverted else "NONE",
        "MRAcquisitionType": "3D" if inverted and scan.sequence == "T1w" else "2D",
        "RepetitionTime": f"{scan.repetition_ms:.1f}",
        "EchoTime": f"{scan.echo_ms:.1f}",
        "FlipAngle": "9" if inverted and scan.sequence == "T1w" else "90",
    }
    if scan.inversion_ms is not None:
        elements["InversionTime"] = f"{scan.inversion_ms:.1f}"
    return elements


def write_mri(subject: Subject, scan: Scan, study: Study, number: int, folder: Path) -> list[Path]:
    """Write one MR series; file order and rescale follow the scanner. Series in one folder get random names."""
    volume, plane = acquire(subject, scan)
    header = SeriesHeader(
        key=f"{study.key} {scan.sequence}",
        study_key=study.key,
        patient_id=study.patient_id,
        patient_name=study.patient_name,
        elements=mr_elements(scan) | {"SeriesNumber": number},
        plane=plane,
        order="shuffled" if folder.name == "mixed" else _ORDERS[scan.seed % len(_ORDERS)],
        slope=0.25 if scan.scanner in _RESCALED_SCANNERS else None,
    )
    return write_series(volume, header, folder)


def write_localizer(subject: Subject, scan: Scan, study: Study, folder: Path) -> list[Path]:
    """Three orthogonal scout slices in one series, as scanners put before every examination."""
    volume = head_phantom(subject, scan, (6.0, 6.0, 6.0), (36, 36, 30))
    elements = mr_elements(scan) | {
        "SeriesInstanceUID": uid(f"series {study.key} localizer"),
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        "SeriesDescription": "localizer",
        "ProtocolName": "localizer",
        "SeriesNumber": 99,
    }
    paths = []
    for plane, axis in SLICE_AXIS.items():
        middle = volume.array.shape[axis] // 2
        affine = volume.affine.copy()
        affine[:3, 3] += middle * affine[:3, axis]
        cut = Volume(np.take(volume.array, [middle], axis=axis), affine, "mri")
        header = SeriesHeader(
            f"{study.key} localizer {plane}", study.key, study.patient_id, study.patient_name, elements, plane
        )
        paths += write_series(cut, header, folder / plane)
    return paths


def _ct_elements(description: str, body_part: str) -> dict[str, Any]:
    return {
        "ManufacturerModelName": "SYNTHETIC CT",
        "StationName": "CT1",
        "BodyPartExamined": body_part,
        "SeriesDescription": description,
        "ProtocolName": description,
        "ScanOptions": "HELICAL MODE",
        "KVP": "120",
        "ConvolutionKernel": "STANDARD",
        "SeriesNumber": 2,
    }


def write_body_ct(body: Body, study: Study, folder: Path) -> list[Path]:
    """Write one trunk CT, stored as HU + 1024."""
    volume = body_phantom(body, (BODY.pixel, BODY.pixel, BODY.slice_thickness))
    header = SeriesHeader(
        key=f"{study.key} ct",
        study_key=study.key,
        patient_id=study.patient_id,
        patient_name=study.patient_name,
        elements=_ct_elements("CHEST 5.0 mm", "CHEST"),
        order=_ORDERS[body.seed % len(_ORDERS)],
        slope=1.0,
        intercept=-1024.0,
    )
    return write_series(volume, header, folder)


def tilted_grid(tilt_deg: float, spacing_mm: Vector, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """RAS affine of a gantry tilted about the left-right axis: slices lean, the table still moves along S (a shear)."""
    affine = affine_centred(shape, spacing_mm)
    cos, sin = np.cos(np.deg2rad(tilt_deg)), np.sin(np.deg2rad(tilt_deg))
    affine[:3, 1] = (0.0, spacing_mm[1] * cos, spacing_mm[1] * sin)
    affine[:3, 3] = (0.0, 0.0, HEAD.field_centre_s) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def write_tilted_head_ct(subject: Subject, scan: Scan, study: Study, folder: Path) -> list[Path]:
    """Write a head CT with a tilted gantry: the matrix of its positions and orientation is sheared."""
    tilt = round(float(np.random.default_rng([_GEOMETRY, subject.seed]).uniform(*HEAD_CT.gantry_tilt_deg)), 1)
    shape = (HEAD.matrix, HEAD.matrix, 36)
    affine = tilted_grid(tilt, (3.5, 3.5, 5.0), shape)
    volume = head_ct(subject, scan, make_grid(shape, affine, scan.pose), affine)
    header = SeriesHeader(
        key=f"{study.key} ct head",
        study_key=study.key,
        patient_id=study.patient_id,
        patient_name=study.patient_name,
        elements=_ct_elements("HEAD STD", "HEAD") | {"ScanOptions": "AXIAL MODE", "GantryDetectorTilt": str(tilt)},
        slope=1.0,
        intercept=-1024.0,
    )
    return write_series(volume, header, folder)


def write_dose(study: Study, path: Path) -> None:
    """Write the dose report of a CT study."""
    header = SeriesHeader(f"{study.key} dose", study.key, study.patient_id, study.patient_name)
    write_dose_report(replace(header, elements={"SeriesDescription": "Dose Report", "SeriesNumber": 999}), path)


def write_screenshot(study: Study, path: Path) -> None:
    """Write a secondary capture: a coloured picture without geometry."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(128)), axis=-1)
    header = SeriesHeader(f"{study.key} screenshot", study.key, study.patient_id, study.patient_name)
    elements = {"SeriesDescription": "Screen Save", "SeriesNumber": 900}
    write_secondary_capture(replace(header, elements=elements), path, picture)
