"""Every voxel of a prepared volume is where it was in the patient, and its value is what its modality promises."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lejepa_med.data.foreground import body_mask, bounding_box
from lejepa_med.data.preprocess import prepare_volume, reorient
from lejepa_med.data.regridding import resample
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec

DIRECTION = np.array([0.8, -1.3, 0.5])  # values rise along it, in units per mm


def world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World coordinates of every voxel, [*shape, 3]."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def ramp(affine: np.ndarray, shape: tuple[int, ...]) -> Volume:
    """A volume whose values are a coordinate in the patient, in mm."""
    return Volume((world(affine, shape) @ DIRECTION).astype(np.float32), affine, "ct")


def place(rotation: tuple[float, float, float], spacing: tuple[float, float, float], shear: float) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix() * spacing
    affine[:3, 2] += shear * spacing[2] * affine[:3, 1] / spacing[1]  # as a tilted gantry does
    affine[:3, 3] = (-30, 12, 55)
    return affine


def error_mm(source: Volume, found: Volume, margin: float) -> float:
    """Largest distance between the coordinate that a voxel shows and where it is, away from the source's border."""
    positions = world(found.affine, found.array.shape)
    index = (positions - source.affine[:3, 3]) @ np.linalg.inv(source.affine[:3, :3]).T
    inside = ((index >= margin) & (index <= np.array(source.array.shape) - 1 - margin)).all(-1)
    assert inside.any()
    return float(np.abs(found.array - positions @ DIRECTION)[inside].max() / np.linalg.norm(DIRECTION))


angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(*[st.floats(0.6, 3.0)] * 3)


@settings(max_examples=40, deadline=None)
@given(angles, spacings, st.just(0.0) | st.floats(-0.5, 0.5), st.tuples(*[st.integers(16, 20)] * 3))
def test_a_coordinate_stays_where_it_was(
    rotation: tuple[float, float, float],
    spacing: tuple[float, float, float],
    shear: float,
    shape: tuple[int, int, int],
) -> None:
    source = ramp(place(rotation, spacing, shear), shape)
    turned = reorient(source)
    assert error_mm(source, turned, 0) < 1e-3  # values are moved, not changed
    found = resample(turned, (1.0, 1.3, 0.9))
    assert found.spacing_mm == pytest.approx((1.0, 1.3, 0.9), rel=1e-5)
    assert error_mm(source, found, margin=4.0) < 0.05
    axes = found.affine[:3, :3] / np.linalg.norm(found.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "ARI", "LIA"])
def test_axis_codes_become_ras_without_interpolation(codes: str) -> None:
    shape = (5, 6, 7)
    axes = nibabel.orientations.axcodes2ornt(tuple(codes))
    affine = nibabel.orientations.inv_ornt_aff(axes, shape) @ np.diag([1.0, 2.0, 3.0, 1.0])
    volume = ramp(affine, shape)
    turned = reorient(volume)
    assert nibabel.aff2axcodes(turned.affine) == ("R", "A", "S")
    np.testing.assert_allclose(turned.array, world(turned.affine, turned.array.shape) @ DIRECTION, atol=1e-4)
    np.testing.assert_array_equal(np.sort(turned.array.ravel()), np.sort(volume.array.ravel()))


def test_same_grid_changes_nothing() -> None:
    affine = np.diag([1.0, 2.0, 0.5, 1.0])
    volume = Volume(np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32), affine, "mri")
    found = resample(volume, (1.0, 2.0, 0.5))
    np.testing.assert_allclose(found.array, volume.array, atol=1e-5)
    np.testing.assert_allclose(found.affine, affine, atol=1e-9)


def test_anisotropic_becomes_isotropic_and_keeps_its_extent() -> None:
    volume = ramp(np.diag([0.7, 0.7, 5.0, 1.0]), (40, 44, 12))
    found = resample(volume, (1.0, 1.0, 1.0))
    assert found.array.shape == (28, 31, 60)
    np.testing.assert_allclose(np.diag(found.affine)[:3], 1.0)
    centres = [
        volume.affine @ [*(np.array(volume.array.shape) - 1) / 2, 1],
        found.affine @ [*(np.array(found.array.shape) - 1) / 2, 1],
    ]
    np.testing.assert_allclose(*centres, atol=1e-6)


def blob(positions: np.ndarray) -> np.ndarray:
    return 1000 * np.exp(-(((positions - [4, 3, 18]) / [5, 7, 6]) ** 2).sum(-1) / 2)


def test_a_tilted_gantry_is_made_upright() -> None:
    """A round thing sampled on sheared slices is round again, at the same place."""
    affine = np.diag([0.8, 0.8, 1.5, 1.0])
    affine[1, 2] = 0.6
    affine[:3, 3] = (-16, -24, 0)
    positions = world(affine, (52, 52, 26))
    found = resample(Volume(blob(positions).astype(np.float32), affine, "ct"), (1.0, 1.0, 1.0))
    expected = blob(world(found.affine, found.array.shape))
    assert np.abs(found.array - expected).max() < 0.04 * 1000
    np.testing.assert_allclose(found.affine[:3, :3], np.eye(3), atol=1e-9)


def test_shrinking_averages_instead_of_picking() -> None:
    checkers = (np.indices((32, 32, 32)).sum(0) % 2 * 100).astype(np.float32)
    found = resample(Volume(checkers, np.eye(4), "mri"), (2.0, 2.0, 2.0)).array[2:-2, 2:-2, 2:-2]
    assert np.abs(found - 50).max() < 5


def phantom(low: float, high: float) -> Volume:
    """A ball in air with noise, 2 mm."""
    random = np.random.default_rng(0)
    distance = np.linalg.norm(world(np.eye(4), (40, 40, 40)) - [20, 18, 22], axis=-1)
    values = np.where(
        distance < 9, random.uniform(low, high, (40, 40, 40)), random.uniform(0, 0.02, (40, 40, 40)) * high
    )
    return Volume(values.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]), "mri")


def test_mri_percentiles_of_the_body_become_0_and_255() -> None:
    volume, spec = phantom(100, 900), PreprocessSpec(spacing_mm=(2.0, 2.0, 2.0), foreground=False)
    prepared = prepare_volume(volume, spec)
    assert prepared.array.dtype == np.uint8
    mask = body_mask(volume.array.astype(np.float32), "mri")
    low, high = np.percentile(volume.array[mask], [0.5, 99.5])
    expected = np.round(np.clip((volume.array - low) / (high - low), 0, 1) * 255)
    assert np.abs(prepared.array - expected).max() <= 1
    assert (prepared.array.min(), prepared.array.max()) == (0, 255)


@pytest.mark.parametrize("gain", [3.7, 0.01])
def test_mri_does_not_depend_on_the_scanners_gain(gain: float) -> None:
    volume, spec = phantom(100, 900), PreprocessSpec(spacing_mm=(2.0, 2.0, 2.0))
    louder = Volume(volume.array * np.float32(gain), volume.affine, "mri")
    first, second = prepare_volume(volume, spec).array, prepare_volume(louder, spec).array
    assert first.shape == second.shape
    assert np.abs(first.astype(int) - second).max() <= 1


def test_foreground_is_the_box_of_the_body_with_its_margin() -> None:
    spec = PreprocessSpec(spacing_mm=(2.0, 2.0, 2.0), foreground_margin_mm=5.0)
    prepared = prepare_volume(phantom(500, 900), spec)
    np.testing.assert_array_equal(prepared.array.shape, [17 + 2 * 3] * 3)  # the ball is 17 voxels wide, 5 mm are 3
    np.testing.assert_allclose(prepared.affine[:3, 3], 2.0 * (np.array([20, 18, 22]) - 8 - 3))
    assert prepared.array[11, 11, 11] > 0


def test_bounding_box_stops_at_the_edge() -> None:
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[0, 2:4, 6] = True
    assert bounding_box(mask, np.array([2, 1, 1])) == (slice(0, 3), slice(1, 5), slice(5, 7))


def test_ct_keeps_hounsfield_units() -> None:
    hu = np.random.default_rng(0).uniform(-1000, 2000, (12, 12, 12)).astype(np.float32)
    hu[0, 0, 0], hu[1, 0, 0] = -3000, 9000
    spec = PreprocessSpec(foreground=False)
    prepared = prepare_volume(Volume(hu, np.eye(4), "ct"), spec)
    assert prepared.array.dtype == np.int16
    np.testing.assert_array_equal(prepared.array, np.round(np.clip(hu, -1024, 3071)))


def test_largest_part_is_the_body_and_the_table_is_not() -> None:
    hu = np.full((30, 30, 30), -1000, dtype=np.float32)
    hu[8:22, 8:22, 8:22] = 40
    hu[:, 27, :] = 200  # a thin plate
    mask = body_mask(hu, "ct")
    assert mask[15, 15, 15]
    assert not mask[:, 27].any()


@pytest.mark.parametrize(("modality", "value"), [("mri", 7.0), ("ct", np.nan), ("ct", np.inf), ("unknown", None)])
def test_what_cannot_be_prepared(modality: str, value: float | None) -> None:
    array = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    if value == 7.0:
        array[:] = 7
    elif value is not None:
        array[3, 3, 3] = value
    expected = "modality is unknown" if modality == "unknown" else "constant or holds values that are not finite"
    with pytest.raises(DataError, match=expected):
        prepare_volume(Volume(array, np.eye(4), modality), PreprocessSpec())


def test_pictures_are_resized_by_their_longer_side_and_padded() -> None:
    picture = np.zeros((40, 80), dtype=np.uint8)
    picture[:, 40:] = 200
    prepared = prepare_volume(Volume(picture, np.eye(4), "image"), PreprocessSpec(image_size=32))
    assert prepared.array.shape == (32, 32)
    assert prepared.spacing_mm is None
    inner = prepared.array[8:24]
    assert prepared.array[:8].max() == prepared.array[24:].max() == 0
    assert (inner[:, :14] == 0).all()
    assert (inner[:, 18:] == 200).all()  # 8-bit pictures keep their grey
