"""The archive on disk: what it holds, that its labels are those of its patients, and that it is the same every time."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from lejepa_med.data.synthetic import ArchiveSummary, draw_subject, write_archive
from lejepa_med.errors import DataError, OutputExistsError

SUBJECTS = 12


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> ArchiveSummary:
    return write_archive(tmp_path_factory.mktemp("synthetic") / "archive", subjects=SUBJECTS, seed=3)


@pytest.fixture(scope="module")
def headers(archive: ArchiveSummary) -> list[pydicom.Dataset]:
    paths = [path for path in archive.root.rglob("*") if path.is_file() and _is_dicom(path)]
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(paths)]


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def _digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_and_progress_reaches_the_end(archive: ArchiveSummary, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    again = write_archive(tmp_path / "b", subjects=SUBJECTS, seed=3, progress=lambda *step: heard.append(step))
    assert _digests(again.root) == _digests(archive.root)
    assert ("heads", SUBJECTS, SUBJECTS) in heard and heard[-1] == ("ct", 13, 13)


def test_labels_are_those_of_the_patients_on_disk(archive: ArchiveSummary, headers: list[pydicom.Dataset]) -> None:
    rows = _rows(archive.labels)
    assert list(rows[0]) == ["patient_id", "ventricle_grade", "lesion", "lesion_side", "age", "ventricle_ml"]
    on_disk = {header.PatientID for header in headers if header.Modality == "MR"}
    on_disk |= {folder.name for folder in (archive.root / "nifti").iterdir()}
    assert [row["patient_id"] for row in rows] == sorted(on_disk, key=lambda name: name[-4:])
    for index, row in enumerate(rows):
        subject = draw_subject(300_000 + index)
        assert row["lesion"] == str(int(row["lesion_side"] != "none")) == str(int(subject.lesion_count > 0))
        assert int(row["ventricle_grade"]) == subject.ventricle_grade
        assert float(row["ventricle_ml"]) == pytest.approx(subject.ventricle_ml, abs=0.01)
        assert float(row["age"]) == pytest.approx(subject.age, abs=0.1)


def test_counts_of_the_summary_are_those_on_disk(archive: ArchiveSummary, headers: list[pydicom.Dataset]) -> None:
    ct = {header.SeriesInstanceUID for header in headers if header.Modality == "CT"}
    volumes = [h for h in headers if h.Modality == "MR" and "LOCALIZER" not in h.ImageType]
    per_series = Counter(header.SeriesInstanceUID for header in volumes)
    copied = len(list((archive.root / "dicom" / "copy").iterdir()))
    assert (archive.subjects, archive.dicom_subjects, archive.nifti_subjects) == (SUBJECTS, 6, 6)
    assert (archive.ct_series, archive.dicom_series) == (len(ct), len(per_series)) == (13, archive.dicom_series)
    assert archive.dicom_files == len(volumes) - copied
    assert archive.nifti_files == len(list(archive.root.rglob("*_T1w.nii.gz")))
    assert archive.num_bytes == sum(path.stat().st_size for path in archive.root.rglob("*") if path.is_file())


def test_the_clutter_is_there(archive: ArchiveSummary, headers: list[pydicom.Dataset]) -> None:
    kinds = Counter(header.Modality for header in headers)
    assert kinds["SR"] == kinds["OT"] == 1
    assert (archive.root / "dicom" / "notes.txt").is_file() and (archive.root / "README.txt").is_file()
    instances = Counter(header.SOPInstanceUID for header in headers)
    assert set(instances.values()) == {1, 2}
    tilted = [header for header in headers if "GantryDetectorTilt" in header]
    assert {header.PatientID for header in tilted} == {"CT0013"}
    step = np.subtract(tilted[1].ImagePositionPatient, tilted[0].ImagePositionPatient)
    row, column = np.array(tilted[0].ImageOrientationPatient, float).reshape(2, 3)
    lean = np.rad2deg(np.arccos(abs(step @ np.cross(row, column)) / np.linalg.norm(step)))
    assert lean == pytest.approx(float(tilted[0].GantryDetectorTilt), abs=1e-3)
    localizers = [header for header in headers if "LOCALIZER" in header.get("ImageType", ())]
    assert len(localizers) % 3 == 0 and len({tuple(h.ImageOrientationPatient) for h in localizers}) == 3


def test_some_patients_have_two_scans_of_the_same_head(archive: ArchiveSummary) -> None:
    dicom = [folder for folder in (archive.root / "dicom").glob("SYN*") if (folder / "mr2").is_dir()]
    nifti = list((archive.root / "nifti").glob("*/anat/*_run-2_T1w.nii.gz"))
    assert len(dicom) + len(nifti) == 2


def test_ct_values_and_labels(archive: ArchiveSummary) -> None:
    rows = _rows(archive.root / "ct_labels.csv")
    assert [row["patient_id"] for row in rows] == [f"CT{n:04d}" for n in range(1, 13)]
    assert {row["nodule"] for row in rows} == {"0", "1"}
    dataset = pydicom.dcmread(next((archive.root / "ct" / "CT0002" / "series").iterdir()))
    hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    assert -1024 <= hu.min() < -900 and 100 < hu.max() < 3000


def test_nifti_files_are_integer_with_both_forms_set(archive: ArchiveSummary) -> None:
    orientations = set()
    for path in archive.root.rglob("*.nii.gz"):
        image = nibabel.load(path)
        assert image.get_data_dtype() == np.int16 and image.ndim == 3
        assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        orientations.add("".join(nibabel.aff2axcodes(image.affine)))
    assert orientations == {"RAS", "LAS"}


def test_a_used_folder_and_a_senseless_size_are_refused(archive: ArchiveSummary, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="new or empty folder"):
        write_archive(archive.root)
    with pytest.raises(DataError, match="subjects=0"):
        write_archive(tmp_path / "c", subjects=0)
    assert not (tmp_path / "c").exists()
