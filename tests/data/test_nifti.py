"""NIfTI files: geometry, headers that contradict themselves, and what is no volume."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lejepa_med.data.converting import write_nifti
from lejepa_med.data.files import nifti
from lejepa_med.data.files.file_volume import BadFile
from lejepa_med.data.files.label_map import looks_like_labels
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


def header_of(path: Path, **fields: object) -> Path:
    """The file with fields of its header overwritten."""
    content = path.read_bytes()
    header = np.frombuffer(bytearray(content[:348]), nibabel.Nifti1Header.template_dtype).copy()
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.tobytes() + content[348:])
    return path


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dim": [3, 30_000, 30_000, 30_000, 1, 1, 1, 1]}, "truncated"),
        ({"dim": [7, 8, 9, 10, 32767, 32767, 32767, 32767]}, "truncated"),
        ({"dim": [3, -8, 9, 10, 1, 1, 1, 1]}, "unreadable"),
        ({"dim": [3, 8, 0, 10, 1, 1, 1, 1]}, "unreadable"),
        ({"vox_offset": 1e18}, "unreadable"),
        ({"vox_offset": np.nan}, "unreadable"),
        ({"vox_offset": 20}, "unreadable"),
        ({"vox_offset": 1e6}, "truncated"),
        ({"datatype": 1234}, "unreadable"),
        ({"datatype": 64}, "truncated"),
        ({"magic": b"ni1"}, "unreadable"),
        ({"srow_x": [1e9, 0, 0, 0]}, "no_geometry"),
        ({"srow_x": [0, 0, 0, 0]}, "no_geometry"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "no_geometry"),
        ({"srow_x": [1, 0, 0, 1e30]}, "no_geometry"),
        ({"scl_slope": 2, "scl_inter": np.inf}, "unreadable"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, fields: dict[str, object], expected: str) -> None:
    assert reason(header_of(save(tmp_path / "a.nii", NOISE.astype(np.int16)), **fields)) == expected


def test_claims_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    plain = header_of(save(tmp_path / "a.nii", NOISE.astype(np.uint8)), dim=[3, 2000, 2000, 2000, 1, 1, 1, 1])
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain.read_bytes()))
    bomb = gzip.compress(bytes(1 << 24))  # a thousandth of what the header claims, or less
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain.read_bytes()) + bomb)
    tracemalloc.start()
    for name in ("a.nii", "a.nii.gz", "b.nii.gz"):
        assert reason(tmp_path / name) == "truncated"
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    many = header_of(save(tmp_path / "c.nii", np.zeros(20_000, np.uint8)), dim=[4, 1, 1, 1, 20_000, 1, 1, 1])
    assert reason(many) == "too_large"


def test_a_look_holds_one_part_at_a_time(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 4000, (64, 64, 64, 12)).astype(np.int16)
    path = save(tmp_path / "a.nii", array)
    tracemalloc.start()
    assert len(nifti.look(path)) == 12
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * array[..., 0].nbytes  # the part and the bytes it is made of, in chunks where it is large


@pytest.mark.parametrize("offset", [352, 0, 400])
def test_voxels_start_where_the_header_says(tmp_path: Path, offset: int) -> None:
    path = save(tmp_path / "a.nii", NOISE.astype(np.float32))
    content = path.read_bytes()
    path.write_bytes(content[:352] + bytes(max(0, offset - 352)) + content[352:])
    found = nifti.read(header_of(path, vox_offset=offset), 0, "mri")
    np.testing.assert_array_equal(found.array, NOISE.astype(np.float32))


def test_a_second_version_header_and_wrong_names_of_compression(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(NOISE, AFFINE), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(content)
    (tmp_path / "c.nii").write_bytes(gzip.compress(content))
    for name in ("a.nii", "b.nii.gz", "c.nii"):
        found = nifti.read(tmp_path / name, 0, "mri")
        np.testing.assert_allclose(found.array, NOISE, rtol=1e-6)
        np.testing.assert_allclose(found.affine, AFFINE)


def test_an_impossible_qform_beside_a_good_sform(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", NOISE.astype(np.float32))
    header_of(path, qform_code=1, quatern_b=3, quatern_c=4, sform_code=1)
    (volume,) = nifti.look(path)
    assert volume.flags == ("qform_sform_differ",)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert reason(header_of(path, sform_code=0)) == "no_geometry"


def test_a_wrong_checksum_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", NOISE)
    path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    assert reason(path) == "unreadable"


def test_nan_outside_the_body_is_the_lowest_value(tmp_path: Path) -> None:
    distance = np.linalg.norm(np.mgrid[-8:8, -8:8, -8:8] + 0.5, axis=0)
    scan = (500 + 50 * np.random.default_rng(0).normal(size=distance.shape)).astype(np.float32)
    masked = np.where(distance < 8, scan, np.nan)
    (volume,) = nifti.look(save(tmp_path / "a.nii.gz", masked))
    assert (volume.problem, volume.flags) == ("", ("nan_filled",))
    read = nifti.read(tmp_path / "a.nii.gz", 0, "mri").array
    np.testing.assert_array_equal(read, np.where(distance < 8, scan, np.nanmin(masked)))
    assert (volume.low, volume.high) == (read.min(), read.max())
    dotted, half = scan.copy(), scan.copy()
    dotted[3, 4, 5] = np.nan
    half[4:12, 4:12, 4:12] = np.nan  # a hole in the body is no background
    assert nifti.look(save(tmp_path / "b.nii", dotted))[0].flags == ("nan_filled",)
    assert nifti.look(save(tmp_path / "c.nii", half))[0].problem == "not_finite"
    assert nifti.look(save(tmp_path / "d.nii", np.full_like(scan, np.nan)))[0].problem == "not_finite"
    masked[8, 8, 8] = np.inf
    assert nifti.look(save(tmp_path / "e.nii", masked))[0].problem == "not_finite"
