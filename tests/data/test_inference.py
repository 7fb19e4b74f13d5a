"""Windows cover the volume and put every voxel where it was; octants tell left from right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lejepa_med.backbones import Backbone
from lejepa_med.data.cache import CachedVolume
from lejepa_med.data.inference import centred, to_unit, windows
from lejepa_med.errors import DataError
from lejepa_med.evaluation.features import extract_features
from lejepa_med.spec import InferenceSpec


def volume(
    array: np.ndarray, modality: str = "mri", spacing: tuple[float, ...] | None = (1.0, 1.0, 1.0)
) -> CachedVolume:
    return CachedVolume("key", "patient", modality, array, spacing)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, shape).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(4, 16)] * 3), st.sampled_from([0.0, 0.25, 0.5]))
def test_windows_cover_the_volume_and_hold_its_voxels(
    shape: tuple[int, ...], window: tuple[int, ...], overlap: float
) -> None:
    array = noise(*shape)
    found = windows(volume(array), InferenceSpec(window=window, overlap=overlap))
    assert found.images.shape[1:] == (1, *window)
    stitched = torch.full((1, *found.extent), -1.0)
    for image, start in zip(found.images, found.starts.int().tolist(), strict=True):
        box = tuple(slice(low, low + side) for low, side in zip(start, window, strict=True))
        stitched[(slice(None), *box)] = image
    assert float(stitched.min()) >= 0  # no hole between windows
    torch.testing.assert_close(stitched, centred(torch.from_numpy(array).float()[None] / 255, found.extent))
    for size, side, covered in zip(shape, window, found.extent, strict=True):
        assert covered >= size - math.ceil(0.1 * side)  # what may be cut off
        assert covered < size + side


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_neighbours_overlap_as_asked(overlap: float) -> None:
    found = windows(volume(noise(64, 16, 16)), InferenceSpec(window=(16, 16, 16), overlap=overlap))
    starts = sorted(set(found.starts[:, 0].tolist()))
    assert starts == [16 * (1 - overlap) * number for number in range(len(starts))]
    assert starts[-1] == 48


def test_pitch_brings_the_volume_to_the_backbones_voxels() -> None:
    ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None, None] * 10, (24, 12, 12)).copy()
    spec = InferenceSpec(window=(12, 12, 12), pitch_mm=2.0)
    found = windows(volume(ramp, spacing=(1.0, 2.0, 2.0)), spec)
    assert found.images.shape == (1, 1, 12, 12, 12)
    expected = (torch.arange(12) * 2 + 0.5) * 10 / 255
    torch.testing.assert_close(found.images[0, 0, 1:-1, 5, 5], expected[1:-1])


def test_ct_window() -> None:
    hu = np.array([-1000, -160, 40, 240, 3000], dtype=np.int16).reshape(5, 1, 1)
    unit = to_unit(hu, "ct", (-160.0, 240.0))
    assert unit.flatten().tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(("plane", "axis"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_slices_of_a_plane_are_those_with_something_in_them(plane: str, axis: int) -> None:
    array = noise(10, 11, 12)
    np.moveaxis(array, axis, 0)[:3] = 0
    found = windows(volume(array), InferenceSpec(window=(16, 16), planes=(plane,)))  # type: ignore[arg-type]
    expected = np.moveaxis(array, axis, 0)[3:]
    assert len(found.images) == len(expected)
    for image, piece in zip(found.images, expected, strict=True):
        torch.testing.assert_close(image, centred(torch.from_numpy(piece.copy()).float()[None] / 255, (16, 16)))


def test_three_planes_are_all_slices() -> None:
    spec = InferenceSpec(window=(16, 16), planes=("axial", "coronal", "sagittal"))
    assert len(windows(volume(noise(10, 11, 12)), spec).images) == 33


def test_an_empty_volume_still_has_a_slice() -> None:
    found = windows(volume(np.zeros((8, 8, 8), np.uint8)), InferenceSpec(window=(8, 8)))
    assert found.images.shape == (1, 1, 8, 8)


def test_a_picture_is_resized_as_a_whole() -> None:
    found = windows(volume(noise(32, 32), "image", None), InferenceSpec(window=(16, 16)))
    assert found.images.shape == (1, 1, 16, 16)
    assert float(found.images.mean()) == pytest.approx(noise(32, 32).mean() / 255, rel=0.01)


def test_dimensions_must_fit() -> None:
    with pytest.raises(DataError, match="series key: a 2D image does not fit a window"):
        windows(volume(noise(8, 8), "image", None), InferenceSpec(window=(8, 8, 8)))


class Patches(Backbone):
    """Tokens are the means of 4^3 patches; the embedding is their mean."""

    dim = token_dim = 1
    spatial_dims, in_channels = 3, 1

    def tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        maps = torch.nn.functional.avg_pool3d(images, 4)
        return maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).mean(-1)

    def intermediate(self, images: torch.Tensor, last: int = 2) -> list[torch.Tensor]:
        return [self(images)] * last


def embed(array: np.ndarray, pooling: str, side: int = 16, overlap: float = 0.0) -> np.ndarray:
    spec = InferenceSpec.model_validate({"window": (side,) * 3, "pooling": pooling, "overlap": overlap})
    return extract_features(Patches(), [volume(array)], spec, layers=None)[0]


@pytest.mark.parametrize(("side", "overlap"), [(32, 0.0), (16, 0.0), (8, 0.5)])
def test_octants_are_means_of_the_eight_corners(side: int, overlap: float) -> None:
    """One window or many: the same eight numbers."""
    array = np.zeros((32, 32, 32), np.uint8)
    values = np.arange(8).reshape(2, 2, 2) * 30
    for place in np.ndindex(2, 2, 2):
        array[tuple(slice(16 * p, 16 * p + 16) for p in place)] = values[place]
    found = embed(array, "grid2", side, overlap).reshape(2, 2, 2) * 255  # [S, A, R]: the first axis turns fastest
    if overlap == 0:
        np.testing.assert_allclose(found, values.transpose(2, 1, 0), atol=1e-3)
    else:
        assert (np.diff(found, axis=2) > 50).all()


def test_octants_tell_left_from_right_and_the_mean_does_not() -> None:
    array = np.zeros((32, 32, 32), np.uint8)
    array[20:28, 10:20, 10:20] = 200
    mirrored = array[::-1].copy()
    np.testing.assert_allclose(embed(array, "mean"), embed(mirrored, "mean"), atol=1e-6)
    grid, other = (embed(x, "grid2").reshape(2, 2, 2) for x in (array, mirrored))
    np.testing.assert_allclose(grid[..., ::-1], other, atol=1e-6)
    assert np.abs(grid - other).max() > 0.01
    assert (grid[..., 1] > grid[..., 0]).all()


def test_mean_and_max_over_windows() -> None:
    array = np.zeros((32, 16, 16), np.uint8)
    array[16:] = 102
    assert embed(array, "mean")[0] == pytest.approx(0.2)
    assert embed(array, "max")[0] == pytest.approx(0.4)


def test_volumes_do_not_mix_in_a_shared_pass() -> None:
    spec = InferenceSpec(window=(8, 8, 8))
    volumes = [volume(np.full((8 * n, 8, 8), 20 * n, np.uint8)) for n in range(1, 6)]
    together = extract_features(Patches(), volumes, spec, layers=None)
    np.testing.assert_allclose(together[:, 0], np.arange(1, 6) * 20 / 255, rtol=1e-5)
    assert extract_features(Patches(), volumes, spec, layers=2).shape == (5, 2)
