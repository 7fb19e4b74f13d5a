"""NIfTI files: geometry, headers that contradict themselves, and what is no volume."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lejepa_med.data import nifti
from lejepa_med.data.converting import write_nifti
from lejepa_med.data.file_volume import BadFile
from lejepa_med.data.label_map import looks_like_labels
from lejepa_med.data.volume import Volume

NOISE = np.random.default_rng(0).normal(500, 100, (8, 9, 10))
AFFINE = np.array([[0, -1.5, 0, 10], [2.0, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, units: str = "mm") -> Path:
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units(units)
    nibabel.save(image, path)
    return path


def reason(path: Path) -> str:
    with pytest.raises(BadFile) as caught:
        nifti.look(path)
    return caught.value.reason


@settings(max_examples=20, deadline=None)
@given(arrays.arrays(np.int16, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(-1024, 3071)))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("roundtrip") / "a.nii.gz"
    write_nifti(Volume(array, AFFINE, "ct"), path)
    volume = nifti.read(path, 0, "ct")
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.spacing_mm == pytest.approx((2.0, 1.5, 3.0))


def test_a_sheared_affine_survives(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[1, 2] = 1.1
    write_nifti(Volume(NOISE.astype(np.float32), sheared, "ct"), tmp_path / "a.nii.gz")
    np.testing.assert_allclose(nifti.read(tmp_path / "a.nii.gz", 0, "ct").affine, sheared, atol=1e-5)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(720, dtype=np.int16).reshape(8, 9, 10), AFFINE)
    image.header.set_slope_inter(0.5, -7)
    nibabel.save(image, tmp_path / "a.nii")
    stored = nibabel.load(tmp_path / "a.nii")
    (volume,) = nifti.look(tmp_path / "a.nii")
    np.testing.assert_allclose(nifti.read(tmp_path / "a.nii", 0, "mri").array, stored.get_fdata(), atol=1e-4)
    assert (volume.low, volume.high) == (stored.get_fdata().min(), stored.get_fdata().max())


@pytest.mark.parametrize(("units", "factor"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)])
def test_units_become_millimetres(tmp_path: Path, units: str, factor: float) -> None:
    affine = np.diag([1 / factor, 1 / factor, 2 / factor, 1])
    (volume,) = nifti.look(save(tmp_path / "a.nii", NOISE.astype(np.float32), affine, units))
    np.testing.assert_allclose(np.diag(volume.affine)[:3], [1, 1, 2], rtol=1e-5)
    assert ("units_converted" in volume.flags) == (factor != 1)


@pytest.mark.parametrize("stored", ["int64", "uint64", "float64", ">i2", ">f4"])
def test_voxels_come_in_types_that_torch_and_nifti_have(tmp_path: Path, stored: str) -> None:
    array = NOISE.astype(stored)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE, dtype=stored), tmp_path / "a.nii")
    volume = nifti.read(tmp_path / "a.nii", 0, "mri")
    assert volume.array.dtype.isnative and volume.array.dtype.itemsize <= 4
    np.testing.assert_allclose(volume.array, array, rtol=1e-6)
    write_nifti(volume, tmp_path / "b.nii.gz")


def test_orientations_that_disagree_are_flagged_and_sform_is_used(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(NOISE.astype(np.float32), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(np.diag([2, 1.5, 3, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii")
    (volume,) = nifti.look(tmp_path / "a.nii")
    assert volume.flags == ("qform_sform_differ",)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_no_orientation_is_flagged(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(NOISE.astype(np.float32), None)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "a.nii")
    assert nifti.look(tmp_path / "a.nii")[0].flags == ("no_orientation",)


def test_further_axes_become_parts(tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=(4, 5, 6, 2, 3)).astype(np.float32)
    path = save(tmp_path / "a.nii.gz", array)
    volumes = nifti.look(path)
    assert [volume.part for volume in volumes] == list(range(6)) and {volume.num_parts for volume in volumes} == {6}
    np.testing.assert_array_equal(nifti.read(path, 3, "mri").array, array[..., 1, 1])


def test_colour_is_rejected(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert reason(save(tmp_path / "a.nii", pixels)) == "colour"


@pytest.mark.parametrize("cut", [30, 400, 3000])
def test_truncated_gzip_is_a_reason(tmp_path: Path, cut: int) -> None:
    path = save(tmp_path / "a.nii.gz", NOISE)
    path.write_bytes(path.read_bytes()[:cut])
    assert reason(path) in ("truncated", "unreadable")


def test_truncated_plain_file_is_a_reason(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", NOISE)
    path.write_bytes(path.read_bytes()[:-100])
    assert reason(path) == "truncated"


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.full((4, 4, 4), 3.0), "constant"),
        (np.where(NOISE > 600, np.nan, NOISE), "not_finite"),
        (np.where(NOISE > 600, np.inf, NOISE), "not_finite"),
        (NOISE.astype(np.complex64), "complex_values"),
    ],
)
def test_voxels_that_are_no_image(tmp_path: Path, array: np.ndarray, problem: str) -> None:
    assert nifti.look(save(tmp_path / "a.nii", array))[0].problem == problem


def test_label_maps_are_told_from_images() -> None:
    distance = np.linalg.norm(np.mgrid[-12:12, -12:12, -12:12] + 0.5, axis=0)
    regions = (np.digitize(distance, [3, 6, 9]) * (distance < 11)).astype(np.uint8)
    atlas = np.kron(np.arange(1, 28).reshape(3, 3, 3), np.ones((8, 8, 8))).astype(np.int16)
    for labels in (regions, regions.astype(np.float64), atlas, atlas * 37, (distance < 1).astype(np.int16)):
        assert looks_like_labels(labels)
    grey = np.clip(120 - 8 * distance + np.random.default_rng(0).normal(0, 6, distance.shape), 0, 255)
    for image in (grey, grey.astype(np.uint8), (grey / 8).astype(np.uint8), (grey * 10 - 1000).astype(np.int16)):
        assert not looks_like_labels(image)
