"""What pydicom reads back has the voxels, and the places, of the volume that was written."""

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lejepa_med.data.synthetic import SeriesHeader, write_dose_report, write_secondary_capture, write_series
from lejepa_med.data.synthetic.series import tilted_grid
from lejepa_med.data.volume import Volume


def _header(**changes) -> SeriesHeader:
    return SeriesHeader(
        **({"key": "k", "study_key": "s", "patient_id": "P1", "patient_name": "SYNTHETIC^P1"} | changes)
    )


def _pixel_to_lps(dataset: pydicom.Dataset) -> np.ndarray:
    """DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1: (column, row) to LPS mm."""
    row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, dataset.PixelSpacing)
    position = np.array(dataset.ImagePositionPatient, float)
    return np.column_stack([row * between_columns, column * between_rows, position])


@settings(max_examples=25, deadline=None)
@given(
    plane=st.sampled_from(["axial", "coronal", "sagittal"]),
    order=st.sampled_from(["instance", "reversed", "shuffled"]),
    modality=st.sampled_from(["mri", "ct"]),
    tilt_deg=st.sampled_from([0.0, 0.0, 14.3, -20.0]),
    spacing_mm=st.tuples(*[st.floats(0.5, 6.0)] * 3),
    shape=st.tuples(*[st.integers(2, 6)] * 3),
)
def test_every_corner_is_where_the_affine_says(plane, order, modality, tilt_deg, spacing_mm, shape) -> None:
    affine = tilted_grid(tilt_deg if plane == "axial" else 0.0, spacing_mm, shape)
    values = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape)
    volume = Volume((values - 50 if modality == "ct" else values).astype(np.float32), affine, modality)
    rescale = {"slope": 1.0, "intercept": -1024.0} if modality == "ct" else {"slope": 0.25}
    with TemporaryDirectory() as folder:
        paths = write_series(volume, _header(plane=plane, order=order, **rescale), Path(folder))
        datasets = [pydicom.dcmread(path) for path in paths]
    for corner in itertools.product(*((0, n - 1) for n in shape)):
        lps = np.diag([-1, -1, 1]) @ (affine @ [*corner, 1])[:3]
        hits = []
        for dataset in datasets:
            matrix = _pixel_to_lps(dataset)
            (column, row), _, _, _ = np.linalg.lstsq(matrix[:, :2], lps - matrix[:, 2], rcond=None)
            if np.linalg.norm(matrix @ [column, row, 1] - lps) < 1e-3:
                value = dataset.pixel_array[round(row), round(column)]
                hits.append(value * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
                assert abs(row - round(row)) < 1e-3 and abs(column - round(column)) < 1e-3
        assert hits == [volume.array[corner]]


def test_orders_differ_only_in_names_and_instance_numbers(tmp_path: Path) -> None:
    volume = Volume(np.arange(4 * 3 * 5.0).reshape(4, 3, 5), np.eye(4), "mri")
    series = {order: write_series(volume, _header(order=order), tmp_path / order) for order in ("instance", "reversed")}
    forward, backward = ([pydicom.dcmread(path) for path in series[order]] for order in ("instance", "reversed"))
    assert [dataset.InstanceNumber for dataset in forward] == [1, 2, 3, 4, 5]
    assert [dataset.InstanceNumber for dataset in backward] == [5, 4, 3, 2, 1]
    for a, b in zip(forward, backward, strict=True):
        assert a.ImagePositionPatient == b.ImagePositionPatient and a.PixelData == b.PixelData
    shuffled = write_series(volume, _header(order="shuffled"), tmp_path / "shuffled")
    assert [path.name for path in shuffled] != sorted(path.name for path in shuffled)


def test_files_are_valid_part_10_with_elements_in_order(tmp_path: Path) -> None:
    volume = Volume(np.ones((4, 3, 2)), np.eye(4), "ct")
    paths = write_series(volume, _header(slope=1.0, intercept=-1024.0), tmp_path)
    first, second = (pydicom.dcmread(path) for path in paths)
    tags = [element.tag for element in first]
    assert tags == sorted(tags)
    assert first.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID and first.SeriesInstanceUID.is_valid
    assert first.file_meta.FileMetaInformationGroupLength == paths[0].read_bytes().index(b"\x08\0\5\0CS") - 144
    again = write_series(volume, _header(slope=1.0, intercept=-1024.0), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_sheared_positions_and_thickness_of_a_tilted_gantry(tmp_path: Path) -> None:
    affine = tilted_grid(15.0, (2.0, 2.0, 5.0), (4, 4, 3))
    paths = write_series(Volume(np.zeros((4, 4, 3)), affine, "ct"), _header(), tmp_path)
    first, second, _ = (pydicom.dcmread(path) for path in paths)
    step = np.subtract(second.ImagePositionPatient, first.ImagePositionPatient)
    np.testing.assert_allclose(step, (0, 0, 5), atol=1e-6)
    assert float(first.SliceThickness) == pytest.approx(5 * np.cos(np.deg2rad(15)), abs=1e-6)


def test_dose_report_and_secondary_capture_are_no_volumes(tmp_path: Path) -> None:
    write_dose_report(_header(), tmp_path / "sr.dcm")
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    write_secondary_capture(_header(), tmp_path / "sc.dcm", picture)
    report, capture = pydicom.dcmread(tmp_path / "sr.dcm"), pydicom.dcmread(tmp_path / "sc.dcm")
    assert report.Modality == "SR" and "PixelData" not in report
    assert "ImagePositionPatient" not in capture
    np.testing.assert_array_equal(capture.pixel_array, picture)
