"""The foreground is the patient: both legs, no table, no noise, and all of a volume that is filled to its border."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from lejepa_med.data.foreground import _opened, air_threshold, body_mask, bounding_box


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    return np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1) < radius


def rayleigh(shape: tuple[int, ...], sigma: float, coils: int = 1) -> np.ndarray:
    parts = np.random.default_rng(0).normal(0, sigma, (2 * coils, *shape))
    return np.sqrt((parts**2).sum(0)).astype(np.float32)


def box_of(array: np.ndarray, modality: str) -> list[tuple[int, int]]:
    box = bounding_box(body_mask(array.astype(np.float32), modality), np.zeros(3, dtype=int))
    return [(side.start, side.stop) for side in box]


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(*[st.integers(5, 9)] * 3)))
def test_opening_is_scipys(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(_opened(mask), ndimage.binary_opening(mask))


def test_both_legs_are_kept_and_a_table_is_not() -> None:
    hu = np.full((80, 60, 40), -1000.0)
    hu[ball((80, 60), (22, 30), 12)] = 40
    hu[ball((80, 60), (58, 30), 10)] = 40
    hu[:, 50:52, :] = 300  # the shell of a table
    assert box_of(hu, "ct") == [(11, 68), (19, 42), (0, 40)]


def test_a_table_that_touches_the_body_is_cut_off() -> None:
    hu = np.full((80, 60, 40), -1000.0)
    hu[ball((80, 60), (40, 30), 18)] = 40
    hu[:, 47:49, :] = 300
    assert box_of(hu, "ct")[0] == (23, 58)


@pytest.mark.parametrize(("sigma", "coils"), [(0.02, 1), (0.15, 1), (0.05, 8)])
def test_noise_around_a_head_is_no_head(sigma: float, coils: int) -> None:
    """From invisible noise to a background at 19 % of the signal, where a fixed threshold takes everything."""
    shape = (60, 60, 60)
    noise = rayleigh(shape, 1000 * sigma, coils)
    head = ball(shape, (30, 30, 30), 20)
    found = box_of(np.where(head, 1000 + noise, noise), "mri")
    assert np.abs(np.array(found) - [11, 50]).max() <= 2


def test_without_strong_noise_the_threshold_is_a_share_of_the_bright_end() -> None:
    shape = (40, 40, 40)
    array = np.where(ball(shape, (20, 20, 20), 15), 1000, rayleigh(shape, 20.0)).astype(np.float32)
    assert air_threshold(array, "mri") == pytest.approx(0.12 * float(np.percentile(array, 98)))


@pytest.mark.parametrize("modality", ["mri", "ct", "pet"])
def test_a_volume_filled_to_its_border_is_kept_whole(modality: str) -> None:
    tissue = np.random.default_rng(0).uniform(200, 900, (30, 31, 32))
    assert box_of(tissue, modality) == [(0, 30), (0, 31), (0, 32)]
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 1, (40, 40, 40)), 4)
    brain = 500 + 3000 * smooth
    assert box_of(brain, modality) == [(0, 40)] * 3


def test_pet_with_a_bladder_50_times_brighter_than_the_body() -> None:
    shape = (60, 60, 60)
    uptake = np.abs(np.random.default_rng(0).normal(0, 0.02, shape))
    body = ball((60, 60), (30, 30), 20)
    uptake[body] = 1.0
    uptake[ball(shape, (30, 30, 10), 11)] = 50.0  # 2.6 % of all voxels
    assert box_of(uptake, "pet") == [(11, 50), (11, 50), (0, 60)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 3), (1, 40, 40), (2, 30, 3)])
def test_tiny_volumes(shape: tuple[int, ...]) -> None:
    assert box_of(np.full(shape, 10.0), "mri") == [(0, side) for side in shape]
    assert body_mask(np.full(shape, -1000, dtype=np.float32), "ct").all()  # nothing but air: all of it


def test_a_thin_slab_is_opened_in_its_plane() -> None:
    array = np.zeros((3, 60, 60))
    array[:, 20:40, 20:40] = 1000
    array[1, 5, 5] = 1000  # a speck
    assert box_of(array, "mri") == [(0, 3), (20, 40), (20, 40)]


def test_a_head_takes_under_two_seconds() -> None:
    shape = (192, 192, 192)
    array = np.where(ball(shape, (96, 96, 96), 70), 1000, rayleigh(shape, 20.0)).astype(np.float32)
    began = time.process_time()
    body_mask(array, "mri")
    assert time.process_time() - began < 2.0
