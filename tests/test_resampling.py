"""Resampling against the input, torch's interpolation, ramps, and the filter written as a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import interpolate

from lejepa_med.resampling import axis_weights, resample, resize


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def box(start: float, length: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[float(start)]]), torch.tensor([[float(length)]])


def matrices(images: torch.Tensor, boxes: list[tuple[float, float]], size: tuple[int, ...]) -> list[torch.Tensor]:
    return [
        axis_weights(*box(*one), in_size, out_size)
        for one, in_size, out_size in zip(boxes, images.shape[2:], size, strict=True)
    ]


def triangle_mean(signal: torch.Tensor, start: float, length: float, out_size: int, blur: float) -> list[float]:
    """Each output as a weighted mean, written out voxel by voxel from the definition."""
    pitch, values = length / out_size, []
    half = max(1.0, abs(pitch) * blur)
    for out in range(out_size):
        centre = min(max(start + (out + 0.5) * pitch - 0.5, 0.0), len(signal) - 1.0)
        triangle = {v - centre: max(0.0, 1 - abs(v - centre) / half) for v in range(-40, len(signal) + 40)}
        moments = [sum(w * d**power for d, w in triangle.items()) for power in (1, 2)]
        tilt = -moments[0] / moments[1] if half > 1 else 0.0
        weights = [w * (1 + tilt * d) for d, w in triangle.items()][40 : 40 + len(signal)]
        values.append(sum(w * float(s) for w, s in zip(weights, signal, strict=True)) / sum(weights))
    return values


@pytest.mark.parametrize("shape", [(7, 5), (6, 5, 4)])
def test_the_whole_box_at_its_own_size_is_the_input(shape: tuple[int, ...]) -> None:
    images = rand(2, 3, *shape)
    weights = [w.expand(2, 1, -1, -1) for w in matrices(images, [(0.0, float(side)) for side in shape], shape)]
    torch.testing.assert_close(resample(images, weights)[:, 0], images)


@pytest.mark.parametrize("mode", ["bilinear", "trilinear"])
def test_enlarging_is_linear_interpolation(mode: str) -> None:
    axes = 2 if mode == "bilinear" else 3
    image = rand(2, *(4, 6, 5)[:axes])
    size = tuple(2 * side + 1 for side in image.shape[1:])
    expected = interpolate(image[None], size=size, mode=mode, align_corners=False)[0]
    torch.testing.assert_close(resize(image, size), expected)


def test_shrinking_is_torchs_antialiased_interpolation_away_from_the_edge() -> None:
    image = rand(1, 40, 40)
    expected = interpolate(image[None], size=(10, 10), mode="bilinear", antialias=True, align_corners=False)[0]
    torch.testing.assert_close(resize(image, (10, 10)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("start", "length", "out", "blur"),
    [(0, 24, 8, 1.0), (0, 24, 6, 1.0), (3.3, 11.7, 5, 1.0), (2.5, 20, 7, 2.0), (20, -17.5, 9, 1.3), (1, 4, 11, 1.0)],
)
def test_matrix_is_the_triangle_filter_by_its_definition(start: float, length: float, out: int, blur: float) -> None:
    signal = rand(24)
    weights = axis_weights(*box(start, length), 24, out, blur)[0, 0]
    torch.testing.assert_close(weights @ signal, torch.tensor(triangle_mean(signal, start, length, out, blur)))


@pytest.mark.parametrize("blur", [1.0, 0.9, 1.7])
def test_weights_are_positive_and_their_centre_of_gravity_is_where_it_should_be(blur: float) -> None:
    """Shrunk, enlarged or blurred: a ramp stays the ramp away from the edges (0.086 voxels off without the tilt)."""
    pitch = torch.cat([torch.linspace(0.3, 3, 1500), torch.linspace(3, 9, 300)])[:, None]
    start = 20 + rand(len(pitch), 1)
    weights = axis_weights(start, 4 * pitch, 96, 4, blur)
    centre = start[..., None] + (torch.arange(4) + 0.5) * pitch[..., None] - 0.5
    assert float(weights.min()) >= 0
    inside = centre + pitch[..., None] * blur < 95
    assert float(inside.float().mean()) > 0.9
    assert float((weights @ torch.arange(96.0) - centre)[inside].abs().max()) < 1e-4
    plain = (1 - (torch.arange(96) - centre[..., None]).abs() / (blur * pitch[..., None, None]).clamp(min=1)).clamp(
        min=0
    )
    plain = plain / plain.sum(-1, keepdim=True)
    assert 0.08 < float((plain @ torch.arange(96.0) - centre)[inside].abs().max()) < 0.087
    assert float(((weights + 1e-9) / (plain + 1e-9)).max()) < 1.6


def test_a_fine_grating_is_averaged_away_when_shrunk() -> None:
    grating = (torch.arange(96) % 2).float()
    shrunk = resize(grating[None, :, None].expand(1, 96, 4), (32, 4))
    picked = grating[1::3]
    assert picked.std() > 0.4  # plain subsampling keeps a false, coarse grating
    inner = shrunk[0, 1:-1]
    assert float((inner - 0.5).abs().max()) < 0.06


@pytest.mark.parametrize("factor", [2, 4])
def test_a_slow_wave_survives_shrinking(factor: int) -> None:
    wave = torch.sin(2 * math.pi * (torch.arange(96) + 0.5) / 96)
    shrunk = resize(wave[None, None].expand(1, 4, 96), (4, 96 // factor))[0, 0]
    expected = torch.sin(2 * math.pi * (torch.arange(96 // factor) + 0.5) * factor / 96)
    assert float((shrunk - expected)[2:-2].abs().max()) < 0.01 * factor


def test_a_negative_length_is_the_flipped_view() -> None:
    images = rand(1, 2, 9, 8, 7)
    size = (4, 6, 5)
    boxes = [(1.3, 6.0), (0.0, 8.0), (2.0, 3.7)]
    plain = resample(images, matrices(images, boxes, size))[:, 0]
    for axis in range(3):
        flipped = list(boxes)
        start, length = boxes[axis]
        flipped[axis] = (start + length, -length)
        view = resample(images, matrices(images, flipped, size))[:, 0]
        torch.testing.assert_close(view, plain.flip(2 + axis))
        assert not torch.allclose(view, plain)


@pytest.mark.parametrize("axes", [2, 3])
def test_several_views_at_once_equal_one_by_one(axes: int) -> None:
    images = rand(3, 2, *(11, 10, 9)[:axes])
    size = (5, 4, 6)[:axes]
    weights = [
        axis_weights(2 * rand(3, 4, seed=axis), 4 + 5 * rand(3, 4, seed=9 + axis), side, out)
        for axis, (side, out) in enumerate(zip(images.shape[2:], size, strict=True))
    ]
    together = resample(images, weights)
    assert together.shape == (3, 4, 2, *size)
    for sample in range(3):
        for view in range(4):
            one = [w[sample : sample + 1, view : view + 1] for w in weights]
            torch.testing.assert_close(together[sample, view], resample(images[sample : sample + 1], one)[0, 0])


def test_2d_equals_3d_of_one_slice() -> None:
    images = rand(2, 1, 8, 9)
    flat = [axis_weights(rand(2, 3, seed=i), 5 + rand(2, 3, seed=9 + i), side, 6) for i, side in enumerate((8, 9))]
    slab = axis_weights(torch.zeros(2, 3), torch.ones(2, 3), 1, 1)
    deep = resample(images[..., None], [*flat, slab])
    torch.testing.assert_close(deep[..., 0], resample(images, flat))


def test_a_box_outside_the_source_repeats_its_edge() -> None:
    signal = rand(1, 1, 6)
    weights = axis_weights(*box(-3.0, 3.0), 6, 3)
    out = torch.einsum("bvoi,bci->bo", weights, signal)
    torch.testing.assert_close(out, signal[0, :, :1].expand(1, 3))
