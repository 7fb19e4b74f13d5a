"""From slices to one array: types, padding, slices that do not decode, and what that takes."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import compressed, field, image, misplaced, set_pixels, write
from dicom_factory import stack as slices_of

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.assembly import assemble
from lejepa_med.data.dicom.header_pass import read_frames
from lejepa_med.data.dicom.resample import onto_grid
from lejepa_med.data.dicom.stack import Stack
from lejepa_med.data.dicom.volume import UndecodableError, read_volume


def stack_of(paths: list[Path]) -> Stack:
    (candidate,) = assemble([frame for path in paths for frame in read_frames(path)], IndexSettings())
    assert candidate.stack is not None and not candidate.reason
    return candidate.stack


def damaged(paths: list[Path], *which: int) -> Stack:
    """A stack in which these files turned out not to decode, after their headers were read."""
    built = stack_of(paths)
    for k in which:
        data = paths[k].read_bytes()
        paths[k].write_bytes(data[:-120] + bytes(20) + b"\xff" * 100)
    return built


def test_an_inner_slice_that_does_not_decode_is_interpolated(tmp_path: Path) -> None:
    built = damaged(write(tmp_path, compressed(slices_of(8))), 3)
    volume = read_volume(built)
    assert misplaced(volume) <= 1.01 and volume.filled_slices == 1


@pytest.mark.parametrize("which", [(0,), (7,), (2, 5)])
def test_ends_and_more_than_a_tenth_are_not_invented(tmp_path: Path, which: tuple[int, ...]) -> None:
    built = damaged(write(tmp_path, compressed(slices_of(8))), *which)
    with pytest.raises(UndecodableError, match="cannot be decoded") as error:
        read_volume(built)
    assert (error.value.lost, error.value.total) == (len(which), 8)


def test_padding_is_not_mixed_into_a_filled_hole(tmp_path: Path) -> None:
    made = []
    for dataset in slices_of(8):
        values = field(dataset.ImagePositionPatient)
        values[0, :] = 65_000
        set_pixels(dataset, values)
        dataset.PixelPaddingValue = 65_000
        made.append(dataset)
    volume = read_volume(stack_of(write(tmp_path, made[:3] + made[4:])))
    inside = volume.array[:, 1:]
    assert np.all(volume.array[:, 0] == inside.min()) and volume.array.shape[2] == 8
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 1]
    assert misplaced(dataclasses.replace(volume, array=inside, affine=affine)) <= 1.01


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 255, "uint8"), (0, 256, "int16"), (-1, 255, "int16"), (0, 40_000, "uint16"), (-1, 40_000, "int32")],
)
@pytest.mark.parametrize("order", [1, -1])
def test_the_smallest_type_that_holds_all_slices(tmp_path: Path, low: int, high: int, dtype: str, order: int) -> None:
    made = slices_of(4)
    for dataset, value in zip(made, [0, low, high, 7][::order], strict=True):
        set_pixels(dataset, np.full((7, 9), value + 1.0))
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1
    array = read_volume(stack_of(write(tmp_path, made))).array
    assert array.dtype == np.dtype(dtype)
    assert array[0, 0].tolist() == [0, low, high, 7][::order]


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_onto_a_grid_as_a_linear_field_says(dtype: type[np.generic]) -> None:
    """Slices beside their slots in three directions, one slot empty: a linear field comes back exactly."""
    slots = np.array([0, 1, 2, 4, 5])
    shifts = np.array([[0, 0, 0], [0.5, -0.25, 0.25], [0, 0, -0.25], [-1.5, 0, 0.125], [0, 0, 0]], dtype=float)
    column, row = np.meshgrid(np.arange(6.0), np.arange(5.0))
    weights = np.array([800.0, 1600.0, 3200.0])
    array = np.zeros((6, 5, 6), dtype=dtype)
    for slot, (dc, dr, ds) in zip(slots, shifts, strict=True):
        array[slot] = (column + dc) * weights[0] + (row + dr) * weights[1] + (slot + ds) * weights[2]
    onto_grid(array, slots, shifts, np.eye(4))
    expected = np.stack([column * 800 + row * 1600 + slot * 3200 for slot in range(6)])
    np.testing.assert_allclose(array, expected, atol=1.0 if dtype is np.int16 else 0.01)


def test_memory_is_little_more_than_the_volume(tmp_path: Path) -> None:
    made = [image((0, 0, 2.0 * k), k + 1, shape=(4, 4)) for k in range(60)]
    noise = np.random.default_rng(0).integers(0, 3000, (200, 200)).astype(float)
    noise[:10] = 0
    for dataset in made:
        set_pixels(dataset, noise)
        dataset.PixelPaddingValue = 0
    built = stack_of(write(tmp_path, made))
    tracemalloc.start()
    array = read_volume(built).array
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.dtype == np.int16 and peak < 1.3 * array.nbytes
