"""Label maps are told from intensities: phantoms of both kinds, in few bits and many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from lejepa_med.data.files.label_map import looks_like_labels

SIZE = 48
PLACES = np.mgrid[:SIZE, :SIZE, :SIZE] - SIZE / 2 + 0.5
RADIUS = np.linalg.norm(PLACES, axis=0)
BODY = RADIUS < 20
NOISE = np.random.default_rng(0).normal(size=(SIZE,) * 3)


def smooth(sigma: float) -> np.ndarray:
    field = ndimage.gaussian_filter(NOISE, sigma)
    return (field - field.min()) / np.ptp(field)


@pytest.mark.parametrize("bits", [4, 5, 6, 8, 16])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
def test_smooth_images_are_no_labels(sigma: float, bits: int) -> None:
    stored = np.round(smooth(sigma) * (2**bits - 1)).astype(np.uint16 if bits > 8 else np.uint8)
    assert not looks_like_labels(stored)
    assert not looks_like_labels(np.where(BODY, stored, 0))
    assert not looks_like_labels(np.where(BODY, stored, 0).astype(np.float64))


@pytest.mark.parametrize("sigma", [1.0, 4.0, 16.0])
def test_pet_and_probabilities_in_eight_bits_are_no_labels(sigma: float) -> None:
    uptake = np.exp(4 * smooth(sigma)) * BODY
    assert not looks_like_labels((255 * uptake / uptake.max()).astype(np.uint8))
    steep = 1 / (1 + np.exp(200 * (0.5 - smooth(sigma)) / sigma))
    assert not looks_like_labels(np.round(255 * steep * BODY).astype(np.uint8))
    edge = 1 / (1 + np.exp((RADIUS - 15) / (sigma / 2)))
    assert not looks_like_labels(np.round(255 * edge).astype(np.uint8))
    assert not looks_like_labels(np.round(100 * edge).astype(np.uint8))


@pytest.mark.parametrize("mean", [0.3, 1.0, 5.0, 20.0])
def test_counts_are_no_labels(mean: float) -> None:
    draw = np.random.default_rng(1)
    assert not looks_like_labels((draw.poisson(mean, BODY.shape) * BODY).astype(np.int16))
    assert not looks_like_labels((draw.poisson(mean * (1 + smooth(6.0))) * BODY).astype(np.int16))


def test_ct_with_constant_air_is_no_label_map() -> None:
    scan = np.where(BODY, np.round(40 + 15 * NOISE), -1000).astype(np.int16)
    window = np.round(np.clip((scan + 160.0) / 400, 0, 1) * 255).astype(np.uint8)
    for stored in (scan, (scan + 1024).astype(np.uint16), scan.astype(np.float32), window, window // 2):
        assert not looks_like_labels(stored)


@pytest.mark.parametrize("stored", [np.uint8, np.int16, np.int32, np.float32, np.float64, np.bool_])
def test_masks_are_labels_in_any_type(stored: type) -> None:
    assert looks_like_labels(BODY.astype(stored))
    assert looks_like_labels((BODY * 255).astype(stored))


@pytest.mark.parametrize("count", [3, 5, 10, 30, 116, 250])
def test_segmentations_are_labels(count: int) -> None:
    draw = np.random.default_rng(count)
    distance, nearest = cKDTree(draw.uniform(-20, 20, (count, 3))).query(PLACES.reshape(3, -1).T)
    labels, distance = (nearest + 1).reshape(BODY.shape), distance.reshape(BODY.shape)
    numbers = np.append(0, draw.permutation(2000)[:count] + 1)  # FreeSurfer's reach 14,175
    for regions in (labels * BODY, np.where(distance < 2.5, labels, 0), np.where(distance < 1.6, labels, 0)):
        assert looks_like_labels(regions.astype(np.uint8))
        assert looks_like_labels(numbers[regions].astype(np.int32))
        assert looks_like_labels(numbers[regions].astype(np.float32))


def test_numbered_vertebrae_are_labels() -> None:
    spine = np.zeros((32, 32, 96), np.uint8)
    for number in range(16):
        spine[8:24, 8:24, 6 * number : 6 * number + 5] = number + 1  # discs between them
    assert looks_like_labels(spine)


def test_nested_regions_are_labels_where_they_are_few() -> None:
    assert looks_like_labels((np.digitize(RADIUS, [5, 10, 12, 15, 17]) * BODY).astype(np.uint8))


def test_pictures_are_judged_by_the_number_of_values_alone() -> None:
    page = np.kron(np.arange(12).reshape(3, 4) * 20, np.ones((20, 20))).astype(np.uint8)
    assert not looks_like_labels(page) and looks_like_labels(page // 40)
