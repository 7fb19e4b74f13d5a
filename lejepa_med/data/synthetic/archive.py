"""A synthetic hospital archive on disk: MRI heads as DICOM and NIfTI, CT as DICOM, labels, and the usual clutter.

    OUT/dicom/SYN0001/mr1/t1/IM0001.dcm              one half of the patients; some series share a folder ("mixed")
    OUT/nifti/sub-0002/anat/sub-0002_T1w.nii.gz      the other half, BIDS-like
    OUT/ct/CT0001/series/...                         trunk CT, one tilted head CT
    OUT/labels.csv  ct_labels.csv  README.txt
The same seed writes the same bytes.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np

from lejepa_med.data.synthetic import series
from lejepa_med.data.synthetic.body import draw_body
from lejepa_med.data.synthetic.head import Subject, draw_scan, draw_subject
from lejepa_med.data.synthetic.ranges import HEAD
from lejepa_med.data.synthetic.series import Study
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError, OutputExistsError

Progress = Callable[[str, int, int], None]

_ARCHIVE = 41  # stream of random numbers
_SEEDS_PER_ARCHIVE = 100_000
_NUM_CT = 12

_README = """SYNTHETIC DATA. No patient is behind any of these files; do not use them for anything clinical.

Written by lejepa_med.data.synthetic.write_archive (seed {seed}); ranges and their sources are in
lejepa_med/data/synthetic/ranges.py.

labels.csv      one row per head patient. patient_id is the DICOM PatientID or the BIDS label of the folder.
                ventricle_grade 0-3 follows ventricle_ml (lateral and third ventricle); lesion 0/1 and lesion_side
                none|left|right are white matter lesions, left being the patient's; age in years.
ct_labels.csv   one row per trunk CT. nodule 0/1, nodule_count, fat_mm (subcutaneous fat).

What is awkward here, on purpose:
- some patients were scanned twice: split by patient, not by scan
- {scanners} scanners with their own contrast, gain, noise, slice plane and slice thickness; two store a rescale slope
- InstanceNumber runs with, or against, the positions; file names may be random; folders named "mixed" hold two series
- localizers (three orthogonal slices in one series) beside some examinations
- dicom/copy is an exact copy of one series; dicom/{capture} holds a screenshot (secondary capture)
- ct/CT0001 holds a dose report without pixels; ct/{tilted} is a head CT with a tilted gantry, and has no label
- dicom/notes.txt is no image
- NIfTI files are stored with the first axis to the right in some, to the left in others
"""


@dataclass(frozen=True)
class ArchiveSummary:
    """What `write_archive` wrote; `dicom_series` and `dicom_files` count MR volumes, without localizers and clutter."""

    root: Path
    labels: Path
    subjects: int
    dicom_subjects: int
    nifti_subjects: int
    dicom_series: int
    dicom_files: int
    nifti_files: int
    ct_series: int
    ct_files: int
    num_bytes: int


@dataclass(frozen=True)
class _Patient:
    """Head patient `number` (from 1) of the archive."""

    number: int
    subject: Subject
    in_dicom: bool
    num_sessions: int
    flair: bool
    localizer: bool
    mixed: bool

    @property
    def patient_id(self) -> str:
        return f"SYN{self.number:04d}" if self.in_dicom else f"sub-{self.number:04d}"


def write_archive(out: Path, *, subjects: int = 240, seed: int = 0, progress: Progress | None = None) -> ArchiveSummary:
    """Write the archive to `out` and return what it holds; `progress` hears (stage, done, total).

    Raises `OutputExistsError` if `out` already holds something, `DataError` for a senseless number of subjects.
    """
    if not 0 < subjects < _SEEDS_PER_ARCHIVE:
        raise DataError(
            f"synthetic archive: got subjects={subjects}, expected 1 to {_SEEDS_PER_ARCHIVE - 1}; change it"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputExistsError(
            f"{out}: expected a new or empty folder for the synthetic archive; choose another --out"
        )
    report = progress or (lambda stage, done, total: None)
    patients = _draw_patients(subjects, seed)
    mr_files: list[list[Path]] = []
    nifti_files: list[Path] = []
    for done, patient in enumerate(patients, start=1):
        if patient.in_dicom:
            mr_files += _write_dicom_patient(patient, out / "dicom")
        else:
            nifti_files += _write_nifti_patient(patient, out / "nifti")
        report("heads", done, len(patients))
    if mr_files:
        _write_clutter(patients, mr_files[0], out / "dicom")
    ct_files = _write_cts(out / "ct", seed, report)
    _write_labels(out, patients, seed)
    return ArchiveSummary(
        root=out,
        labels=out / "labels.csv",
        subjects=len(patients),
        dicom_subjects=sum(patient.in_dicom for patient in patients),
        nifti_subjects=sum(not patient.in_dicom for patient in patients),
        dicom_series=len(mr_files),
        dicom_files=sum(map(len, mr_files)),
        nifti_files=len(nifti_files),
        ct_series=len(ct_files),
        ct_files=sum(map(len, ct_files)),
        num_bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    )


def _draw_patients(count: int, seed: int) -> list[_Patient]:
    """Where and how often each patient is scanned, drawn without regard to the labels."""
    rng = np.random.default_rng([_ARCHIVE, seed])
    place, again, flair, localizer, mixed = (rng.permutation(count) for _ in range(5))
    return [
        _Patient(
            number=index + 1,
            subject=draw_subject(seed * _SEEDS_PER_ARCHIVE + index),
            in_dicom=bool(place[index] % 2 == 0),
            num_sessions=2 if again[index] % 8 == 0 else 1,
            flair=bool(flair[index] % 3 == 0),
            localizer=bool(localizer[index] % 4 == 0),
            mixed=bool(mixed[index] % 3 == 0),
        )
        for index in range(count)
    ]


def _write_dicom_patient(patient: _Patient, root: Path) -> list[list[Path]]:
    written = []
    for session in range(1, patient.num_sessions + 1):
        study = Study(f"{patient.subject.seed} mr{session}", patient.patient_id, f"SYNTHETIC^{patient.number:04d}")
        folder = root / patient.patient_id / f"mr{session}"
        scan_seed = patient.subject.seed * 10 + session
        scan = draw_scan(scan_seed, "T1w")
        if patient.localizer:
            series.write_localizer(patient.subject, scan, study, folder / "localizer")
        written.append(series.write_mri(patient.subject, scan, study, 1, folder / ("mixed" if patient.mixed else "t1")))
        if patient.flair:
            flair = draw_scan(scan_seed, "FLAIR", scanner=scan.scanner)
            flair = replace(flair, rotation_deg=scan.rotation_deg, shift_mm=scan.shift_mm)
            target = folder / ("mixed" if patient.mixed else "flair")
            written.append(series.write_mri(patient.subject, flair, study, 2, target))
    return written


def _write_nifti_patient(patient: _Patient, root: Path) -> list[Path]:
    folder = root / patient.patient_id / "anat"
    folder.mkdir(parents=True)
    written = []
    for session in range(1, patient.num_sessions + 1):
        volume, _ = series.acquire(patient.subject, draw_scan(patient.subject.seed * 10 + session, "T1w"))
        run = "" if patient.num_sessions == 1 else f"_run-{session}"
        path = folder / f"{patient.patient_id}{run}_T1w.nii.gz"
        _write_nifti(volume, path, mirrored=patient.mixed)
        written.append(path)
    return written


def _write_nifti(volume: Volume, path: Path, mirrored: bool) -> None:
    """16-bit NIfTI with qform and sform; `mirrored` stores the first axis to the left, the affine saying so."""
    array, affine = np.rint(np.clip(volume.array, 0, 32767)).astype(np.int16), volume.affine
    if mirrored:
        flip = np.diag([-1.0, 1.0, 1.0, 1.0])
        flip[0, 3] = array.shape[0] - 1
        array, affine = array[::-1], affine @ flip
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    nibabel.save(image, path)


def _clutter_patient(patients: list[_Patient]) -> _Patient:
    return next(patient for patient in patients if patient.in_dicom)


def _write_clutter(patients: list[_Patient], files: list[Path], root: Path) -> None:
    """A copied series, a screenshot and a text file."""
    (root / "copy").mkdir()
    for path in files:
        shutil.copyfile(path, root / "copy" / path.name)
    patient = _clutter_patient(patients)
    study = Study(f"{patient.subject.seed} mr1", patient.patient_id, f"SYNTHETIC^{patient.number:04d}")
    series.write_screenshot(study, root / patient.patient_id / "mr1" / "screen" / "IM0001.dcm")
    (root / "notes.txt").write_text("Exported for the synthetic archive. This file is no image.\n")


def _write_cts(root: Path, seed: int, report: Progress) -> list[list[Path]]:
    """Trunk CTs, a dose report beside the first, and a head CT with a tilted gantry as the last patient."""
    written = []
    for number in range(1, _NUM_CT + 1):
        body_seed = seed * _SEEDS_PER_ARCHIVE + number
        study = Study(f"{body_seed} ct", f"CT{number:04d}", f"SYNTHETIC^CT{number:04d}")
        folder = root / study.patient_id
        written.append(series.write_body_ct(draw_body(body_seed), study, folder / "series"))
        if number == 1:
            series.write_dose(study, folder / "dose" / "SR0001.dcm")
        report("ct", number, _NUM_CT + 1)
    head_seed = (seed + 1) * _SEEDS_PER_ARCHIVE - 1  # a patient beyond those with labels
    name = f"CT{_NUM_CT + 1:04d}"
    study = Study(f"{head_seed} ct head", name, f"SYNTHETIC^{name}")
    subject, scan = draw_subject(head_seed), draw_scan(head_seed, "T1w")
    written.append(series.write_tilted_head_ct(subject, scan, study, root / name / "series"))
    report("ct", _NUM_CT + 1, _NUM_CT + 1)
    return written


def _write_labels(out: Path, patients: list[_Patient], seed: int) -> None:
    with (out / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient_id", "ventricle_grade", "lesion", "lesion_side", "age", "ventricle_ml"])
        for patient in patients:
            subject = patient.subject
            lesion, grade = int(subject.lesion_count > 0), subject.ventricle_grade
            age, volume_ml = f"{subject.age:.1f}", f"{subject.ventricle_ml:.2f}"
            writer.writerow([patient.patient_id, grade, lesion, subject.lesion_side, age, volume_ml])
    with (out / "ct_labels.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient_id", "nodule", "nodule_count", "fat_mm"])
        for number in range(1, _NUM_CT + 1):
            body = draw_body(seed * _SEEDS_PER_ARCHIVE + number)
            writer.writerow([f"CT{number:04d}", int(body.nodule), len(body.nodules), f"{body.fat:.1f}"])
    capture = _clutter_patient(patients).patient_id
    text = _README.format(seed=seed, scanners=HEAD.num_scanners, capture=capture, tilted=f"CT{_NUM_CT + 1:04d}")
    (out / "README.txt").write_text(text)
