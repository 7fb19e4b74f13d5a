"""Where views are cut: inside their bounds, uniformly, flipped as asked, on body, one pitch where size matters."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from lejepa_med.config import ViewsConfig
from lejepa_med.randomness import generator
from lejepa_med.resampling import axis_weights, resample
from lejepa_med.views.geometry import Boxes, body_cells, draw_boxes

BASE = (60, 50, 40)


def views_config(**settings: object) -> ViewsConfig:
    tiny = {"global_size": (12, 10, 8), "local_size": (6, 6, 6), "global_pitch_mm": None, "local_pitch_mm": None}
    return ViewsConfig.model_validate(tiny | settings)


def draw(
    config: ViewsConfig,
    which: str = "global",
    samples: int = 200,
    base: tuple[int, ...] = BASE,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    body: torch.Tensor | None = None,
) -> Boxes:
    keys = [generator("test", which, position) for position in range(samples)]
    cells = torch.ones(samples, *(8,) * len(base)) if body is None else body
    return draw_boxes(config, which, keys, base, spacing, cells)  # type: ignore[arg-type]


@pytest.mark.parametrize(("which", "low", "high"), [("global", 0.3, 1.0), ("local", 0.05, 0.3)])
@pytest.mark.parametrize("base", [BASE, (64, 48)])
def test_fractions_lie_in_their_range_and_fill_it(which: str, low: float, high: float, base: tuple[int, ...]) -> None:
    config = views_config(global_size=(12,) * len(base), local_size=(4,) * len(base), aspect=1.0, max_magnification=100)
    boxes = draw(config, which, base=base, spacing=(1.0,) * len(base))
    fraction = (boxes.length / torch.tensor(base)).prod(-1)
    assert float(fraction.min()) >= low - 1e-5
    assert float(fraction.max()) <= high + 1e-5
    uniform = (fraction.flatten() - low) / (high - low)
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3


def test_boxes_stay_inside_the_base_crop() -> None:
    for which in ("global", "local"):
        boxes = draw(views_config(aspect=1.5), which)
        assert float(boxes.start.min()) >= -1e-4
        assert bool((boxes.start + boxes.length <= torch.tensor(BASE) + 1e-3).all())


def test_aspect_changes_sides_but_not_the_volume() -> None:
    config = views_config(local_fraction=(0.1, 0.1), aspect=1.3, max_magnification=100)
    relative = draw(config, "local").length / torch.tensor(BASE)
    torch.testing.assert_close(relative.prod(-1), torch.full(relative.shape[:2], 0.1))
    sides = relative / 0.1 ** (1 / 3)
    assert float(sides.max()) > 1.2
    assert float(sides.log().abs().max()) <= 4 / 3 * math.log(1.3) + 1e-5  # the mean of the jitter is taken out


def test_pitch_stays_inside_its_bounds() -> None:
    spacing = (0.8, 1.0, 1.25)
    config = views_config(
        global_size=(24,) * 3, local_size=(14,) * 3, global_pitch_mm=(1, 1.6), local_pitch_mm=(1, 1.5)
    )
    for which, high in (("global", 1.6), ("local", 1.5)):
        size = 24 if which == "global" else 14
        pitch = draw(config, which, spacing=spacing).length * torch.tensor(spacing) / size
        assert float(pitch.min()) >= 1.0 - 1e-5
        assert float(pitch.max()) <= high + 1e-5
        assert float(pitch.std()) > 0.02


def test_nothing_is_magnified_beyond_the_limit() -> None:
    config = views_config(local_size=(40, 40, 40), local_fraction=(0.05, 0.05), max_magnification=1.25)
    boxes = draw(config, "local", base=(80, 80, 80))
    assert float(boxes.length.min()) == pytest.approx(40 / 1.25)


def test_physical_scale_keeps_one_pitch_with_small_jitter() -> None:
    config = views_config(scale="physical_mm", local_pitch_mm=(1.0, 4.0), pitch_jitter=1.1, aspect=1.0)
    spacing = (1.0, 2.0, 0.5)
    pitch = draw(config, "local", spacing=spacing).length * torch.tensor(spacing) / 6
    torch.testing.assert_close(pitch, pitch[..., :1].expand_as(pitch))  # isotropic in millimetres
    assert 2.0 / 1.1 - 1e-4 <= float(pitch.min()) < 1.85
    assert 2.16 < float(pitch.max()) <= 2.0 * 1.1 + 1e-4
    other = draw(config, "local", base=(120, 100, 80), spacing=spacing).length * torch.tensor(spacing) / 6
    torch.testing.assert_close(other, pitch)  # a larger head is seen larger, not zoomed away


def test_places_are_uniform() -> None:
    boxes = draw(views_config(num_local=10), "local", samples=220)
    place = boxes.start / (torch.tensor(BASE) - boxes.length)
    for axis in range(3):
        counts = torch.histc(place[..., axis], bins=20, min=0, max=1)
        assert int(counts.sum()) == 2200
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_left_right_flips_have_their_own_probability(chance: float, expected: float) -> None:
    boxes = draw(views_config(flip_left_right=chance, flip_other=0.0), "global", samples=600)
    flipped = (boxes.length < 0).float().mean((0, 1))
    assert abs(float(flipped[0]) - expected) <= 4 * math.sqrt(expected * (1 - expected) / 1200)
    assert flipped[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_laterality_on_an_asymmetric_image(chance: float) -> None:
    """A ramp from left to right: every view rises as the patient does, unless flips are on."""
    ramp = torch.arange(60.0)[:, None, None].expand(1, 1, *BASE).contiguous()
    config = views_config(flip_left_right=chance, blur_probability=0, thick_slice_probability=0)
    boxes = draw(config, "global", samples=1)
    weights = [
        axis_weights(boxes.start[..., axis], boxes.length[..., axis], side, out)
        for axis, (side, out) in enumerate(zip(BASE, config.global_size, strict=True))
    ]
    views = resample(ramp, weights)[0, :, 0]
    slope = views.diff(dim=1)
    assert bool((slope < 0).all() if chance else (slope > 0).all())


def test_blur_and_thick_slices_come_as_often_as_asked() -> None:
    config = views_config(num_local=10, blur_probability=0.3, thick_slice_probability=0.2, blur_factor=2.0)
    blur = draw(config, "local", samples=300).blur.reshape(-1, 3)
    wide = (blur > 1).sum(-1)
    for axes, share in ((3, 0.3), (1, 0.2), (0, 0.5)):
        error = 4 * math.sqrt(share * (1 - share) / len(blur))
        assert abs(float((wide == axes).float().mean()) - share) < error
    assert not bool((wide == 2).any())
    assert 1.9 < float(blur.max()) <= 2.0
    assert len(set(blur[wide == 1].argmax(-1).tolist())) == 3  # any axis can be the thick one


def test_crops_of_air_are_drawn_again() -> None:
    samples = 150
    body = torch.zeros(samples, 8, 8, 8)
    body[:, :4] = 1  # the left half is body

    def share(boxes: Boxes) -> torch.Tensor:
        low, high = boxes.start[..., 0], boxes.start[..., 0] + boxes.length[..., 0]
        return (high.clamp(max=30) - low.clamp(max=30)) / (high - low)

    once = share(draw(views_config(redraws=1), "local", samples, body=body))
    tried = share(draw(views_config(redraws=12, min_body=0.5), "local", samples, body=body))
    assert float((once < 0.5).float().mean()) > 0.3
    assert float((tried < 0.5).float().mean()) < 0.01


def test_without_any_body_the_best_try_is_kept() -> None:
    body = torch.zeros(50, 8, 8, 8)
    body[:, 0] = 0.2  # nowhere enough for min_body
    few = draw(views_config(redraws=1, min_body=0.9), "local", 50, body=body)
    many = draw(views_config(redraws=12, min_body=0.9), "local", 50, body=body)
    assert float(many.start[..., 0].mean()) < 0.5 * float(few.start[..., 0].mean())


def test_body_cells_are_shares() -> None:
    mask = torch.zeros(2, 16, 16, 16, dtype=torch.bool)
    mask[0, :2, :2, :1] = True
    cells = body_cells(mask)
    assert cells.shape == (2, 8, 8, 8)
    assert float(cells[0, 0, 0, 0]) == 0.5
    assert float(cells.sum()) == 0.5
    assert body_cells(torch.ones(1, 5, 20, dtype=torch.bool)).shape == (1, 5, 8)
