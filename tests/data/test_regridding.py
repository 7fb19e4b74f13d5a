"""Resampling keeps what is there: places in every orientation, detail in a plane, air outside; and invents nothing."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lejepa_med.data.preprocess import clip, prepare_volume, reorient
from lejepa_med.data.regridding import resample
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec

ORDERS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


@settings(max_examples=4, deadline=None)
@given(st.tuples(*[st.integers(2, 6)] * 3), st.tuples(*[st.floats(0.5, 4.0)] * 3), st.integers(0, 99))
def test_all_48_axis_orders_keep_every_value_at_its_place(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
) -> None:
    assert len(ORDERS) == 48
    values = np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape).astype(np.int16)
    for order, signs in ORDERS:
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, list(order)] * np.array(spacing) * signs
        affine[:3, 3] = (3, -70, 11)
        turned = reorient(Volume(values, affine, "mri"))
        assert (np.diag(turned.affine)[:3] > 0).all()
        index = (world(turned.affine, turned.array.shape) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
        np.testing.assert_array_equal(turned.array, values[tuple(np.moveaxis(np.rint(index).astype(int), -1, 0))])


@pytest.mark.parametrize(("factor", "period"), [(1.5, 2.2), (2.0, 2.5), (3.0, 3.7), (4.0, 5.0)])
def test_a_grating_finer_than_the_grid_becomes_grey(factor: float, period: float) -> None:
    """Picking voxels would turn it into a coarse one of full contrast."""
    wave = 100 * np.cos(2 * np.pi * np.arange(120) / period)
    for axis in range(3):
        array = np.moveaxis(np.broadcast_to(wave[:, None, None], (120, 4, 4)), 0, axis).astype(np.float32)
        spacing = tuple(factor if other == axis else 1.0 for other in range(3))
        found = np.moveaxis(resample(Volume(array, np.eye(4), "mri"), spacing).array, axis, 0)[4:-4]
        assert np.abs(found).max() < 25  # a triangle lets through under a quarter of it


def test_what_the_grid_can_show_stays() -> None:
    wave = 100 * np.cos(2 * np.pi * np.arange(120) / 16)
    array = np.broadcast_to(wave[:, None, None], (120, 4, 4)).astype(np.float32)
    found = resample(Volume(array, np.eye(4), "mri"), (2.0, 1.0, 1.0)).array[4:-4]
    assert np.abs(found).max() > 90


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_are_untouched_where_only_the_slice_axis_changes(axis: int) -> None:
    array = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    affine = np.eye(4)
    affine[axis, axis] = 5.0
    affine[:3, 3] = (0.3, -7.1, 100.9)
    found = resample(Volume(array, affine, "mri"), (1.0, 1.0, 1.0))
    assert found.array.shape[axis] == 45
    planes, sources = np.moveaxis(found.array, axis, 0), np.moveaxis(array, axis, 0)
    for number, plane in enumerate(sources):
        np.testing.assert_array_equal(planes[5 * number + 2], plane)  # where a slice was scanned, it stands unchanged
    assert planes.min() >= array.min() and planes.max() <= array.max()  # no ringing
    np.testing.assert_allclose(planes[5], 0.4 * sources[0] + 0.6 * sources[1], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(-35, 35), st.floats(0.4, 1.5), st.floats(0.6, 6.0), st.sampled_from([0, 1]), st.booleans())
def test_a_tilt_of_any_angle_is_right_to_a_twentieth_of_a_millimetre(
    angle: float, pixel: float, thick: float, axis: int, turned: bool
) -> None:
    affine = np.diag([pixel, pixel, thick, 1.0])
    affine[axis, 2] = np.tan(np.deg2rad(angle)) * thick
    affine[:3, 3] = (-30.0, 20.0, 700.0)
    shape, direction = (40, 40, 14), np.array([0.8, -1.3, 0.5])
    array = (world(affine, shape) @ direction).astype(np.float32)
    volume = Volume(array[:, ::-1] if turned else array, affine, "ct")
    if turned:
        affine = affine @ np.array([[1, 0, 0, 0], [0, -1, 0, 39], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        volume = Volume(array[:, ::-1], affine, "ct")
    found = resample(reorient(volume), (1.0, 1.0, 1.0))
    positions = world(found.affine, found.array.shape)
    index = (positions - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    margin = np.array([3 / pixel, 3 / pixel, 1.5])
    margin[axis] += abs(affine[axis, 2]) / pixel  # beside the edge of the next slice there is air
    inside = ((index >= margin) & (index <= np.array(shape) - 1 - margin)).all(-1)
    error = np.abs(found.array - positions @ direction)[inside] / np.linalg.norm(direction)
    assert not inside.any() or error.max() < 0.05


def test_an_upright_wall_in_tilted_slices_is_upright() -> None:
    """Slices are shifted before they are mixed: the wall's edge is as sharp between slices as in them."""
    affine = np.diag([0.8, 0.8, 5.0, 1.0])
    affine[1, 2] = 1.8
    shape = (20, 90, 12)
    wall = np.clip(world(affine, shape)[..., 1] - 35.0, -1, 1) * 500
    found = resample(Volume(wall.astype(np.float32), affine, "ct"), (1.0, 1.0, 1.0))
    y = world(found.affine, found.array.shape)[..., 1]
    expected = np.clip(y - 35.0, -1, 1) * 500
    inside = (y > 25) & (y < 45)
    assert np.abs(found.array - expected)[inside].max() < 250  # bilinear at a 2 mm edge; a mix of shifted slices: 450


def test_a_skewed_plane_is_straightened() -> None:
    affine = np.eye(4)
    affine[:3, :3] = [[1.0, 0.3, 0.2], [0.0, 1.0, -0.4], [0.0, 0.1, 2.0]]
    shape, direction = (30, 30, 20), np.array([0.8, -1.3, 0.5])
    found = resample(Volume((world(affine, shape) @ direction).astype(np.float32), affine, "mri"), (1.0, 1.0, 1.0))
    positions = world(found.affine, found.array.shape)
    index = (positions - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    inside = ((index >= 3) & (index <= np.array(shape) - 4)).all(-1)
    assert inside.sum() > 1000
    assert np.abs(found.array - positions @ direction)[inside].max() < 0.05
    axes = found.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)


@pytest.mark.parametrize(("lowest", "outside"), [(-3024, -1024), (-1000, -1000), (0, 0)])
def test_what_a_tilted_ct_does_not_cover_is_air(lowest: int, outside: int) -> None:
    """Padding of -3024 is no air; where air is 0 because the values are no HU, it is 0."""
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 1.0
    array = np.full((20, 20, 10), 40, dtype=np.int16)
    array[0, 0, 0] = lowest
    found = resample(Volume(array, affine, "ct"), (1.0, 1.0, 1.0)).array
    assert found[5, -1, 0] == outside and found[5, 0, -1] == outside


def test_padding_and_metal_do_not_bleed() -> None:
    array = np.full((20, 20, 20), 40, dtype=np.int16)
    array[:10], array[15, 15, 15] = -3024, 30000
    clipped = clip(Volume(array, np.eye(4), "ct"), (-1024.0, 3071.0))
    assert (clipped.array.min(), clipped.array.max(), clipped.array.dtype) == (-1024, 3071, np.int16)
    assert array.min() == -3024
    spec = PreprocessSpec(spacing_mm=(2.0, 2.0, 2.0), foreground=False)
    prepared = prepare_volume(Volume(array, np.eye(4), "ct"), spec).array
    assert prepared.min() == -1024
    assert prepared[4:6].max() <= 40 and prepared[4:6].min() >= -1024
    assert prepared.max() < 700  # an eighth to a quarter of 3071, not of 30000


def test_slices_too_far_apart_are_refused() -> None:
    array = np.random.default_rng(0).normal(size=(20, 20, 6)).astype(np.float32)
    volume = Volume(array, np.diag([1.0, 1.0, 8.5, 1.0]), "mri")
    with pytest.raises(DataError, match=r"voxels too far apart: 8.5 mm.* to 1 mm .*max_upsampling \(8\)"):
        prepare_volume(volume, PreprocessSpec())
    assert prepare_volume(volume, PreprocessSpec(max_upsampling=9.0, foreground=False)).array.shape == (20, 20, 51)
    thick = Volume(array, np.diag([1.0, 1.0, 6.0, 1.0]), "mri")
    assert prepare_volume(thick, PreprocessSpec(foreground=False)).array.shape == (20, 20, 36)


@pytest.mark.parametrize("modality", ["mri", "ct"])
@pytest.mark.parametrize("spacing", [1.0, 0.7])
def test_memory_stays_within_three_times_the_volume(modality: str, spacing: float) -> None:
    side = 160
    array = np.random.default_rng(0).integers(-900, 900, (side, side, side)).astype(np.int16)
    volume = Volume(array, np.diag([spacing] * 3 + [1.0]), modality)
    tracemalloc.start()
    prepare_volume(volume, PreprocessSpec())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + array.nbytes < 3 * 4 * side**3


def test_same_bytes_whatever_the_layout_in_memory() -> None:
    array = np.random.default_rng(0).normal(size=(15, 16, 17)).astype(np.float32)
    affine = np.diag([0.9, 1.1, 2.0, 1.0])
    first = resample(Volume(array, affine, "mri"), (1.0, 1.0, 1.0)).array
    second = resample(Volume(np.asfortranarray(array), affine, "mri"), (1.0, 1.0, 1.0)).array
    np.testing.assert_array_equal(first, second)
