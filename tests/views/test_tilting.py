"""Turns and tilts: where each voxel comes from, no aliasing, left stays left, and how often what is drawn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats

from lejepa_med.config import ConfigError, ViewsConfig, validate
from lejepa_med.randomness import generator
from lejepa_med.views import BatchedMultiCrop, kernel
from lejepa_med.views.geometry import Boxes, draw_boxes
from lejepa_med.views.grids import Grids, lay_grids, resample_views
from lejepa_med.views.kernel import resample_sample
from lejepa_med.views.tilting import Tilts, allowed_turns, turns

HOW = ("torch", "cpp")
QUIET = dict.fromkeys((f"{name}_probability" for name in ("gamma", "bias", "contrast", "noise")), 0)


def config_of(**settings: Any) -> ViewsConfig:
    plain = {
        "global_size": (16, 16, 16),
        "local_size": (8, 8, 8),
        "global_pitch_mm": None,
        "local_pitch_mm": None,
        "blur_probability": 0,
        "thick_slice_probability": 0,
        "mri": QUIET,
    }
    return ViewsConfig.model_validate(plain | settings)


def draw(config: ViewsConfig, samples: int, base: tuple[int, ...], spacing: tuple[float, ...] = ()) -> Boxes:
    keys = [generator("turned", sample) for sample in range(samples)]
    return draw_boxes(config, "global", keys, base, spacing or (1.0,) * len(base), torch.ones(samples, *base))


def make(images: torch.Tensor, grids: Grids, size: tuple[int, ...], how: str, air: float = 0.0) -> torch.Tensor:
    if how == "torch":
        return resample_views(images, grids, size, torch.full((len(images),), air))
    if not kernel.available():
        pytest.skip("needs a C++ compiler")
    views = torch.empty(len(images), grids.tilted.shape[1], images.shape[1], *size)
    for sample in range(len(images)):
        resample_sample(images[sample].contiguous(), views[sample], grids, sample, air)
    return views


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("settings", [{}, {"tilt_degrees": 25.0}, {"tilt_degrees": 10.0, "tilt_shear": 0.2}])
def test_voxel_values_name_their_position(settings: dict[str, Any], axes: int, how: str) -> None:
    """Ramps along each axis: a view voxel inside the base crop shows where it lies."""
    base, spacing = (44, 40, 36)[:axes], (1.0, 1.3, 0.8)[:axes]
    flips = {"flip_left_right": 0.5, "flip_other": 0.5, "global_fraction": (0.2, 0.6), "max_magnification": 2.0}
    sizes = {"global_size": (16,) * axes, "local_size": (8,) * axes}
    config = config_of(**sizes, **flips, **settings, tilt_probability=1.0 if settings else 0.0)
    boxes = draw(config, 6, base, spacing)
    ramps = torch.stack(torch.meshgrid(*[torch.arange(side) + 0.5 for side in base], indexing="ij"))
    views = make(ramps.expand(6, *ramps.shape), lay_grids(boxes, base, config.global_size), config.global_size, how)
    steps = torch.stack(torch.meshgrid(*[(torch.arange(16) + 0.5) / 16 - 0.5] * axes, indexing="ij"), -1).double()
    offset = steps * boxes.length.double().view(6, 2, *(1,) * axes, axes)
    if boxes.matrix is not None:
        offset = torch.einsum("nvab,nv...b->nv...a", boxes.matrix, offset)
    centre = (boxes.start + boxes.length / 2).double().view(6, 2, *(1,) * axes, axes)
    expected = (centre + offset).movedim(-1, 2)
    margin = 4.0
    limit = torch.tensor(base).view(1, 1, axes, *(1,) * axes) - margin
    inside = ((expected > margin) & (expected < limit)).all(2, keepdim=True).expand_as(expected)
    assert float(inside.float().mean()) > 0.3
    error = (views - expected)[inside]
    assert float(error.abs().max()) < 1e-4


@pytest.mark.parametrize("how", HOW)
def test_a_tilt_turns_millimetres_not_voxels(how: str) -> None:
    """A ball in anisotropic voxels stays one: a tilted view of it equals the straight view."""
    base, spacing = (48, 48, 24), (1.0, 1.0, 2.0)
    sides = [(torch.arange(s) + 0.5 - s / 2) * mm for s, mm in zip(base, spacing, strict=True)]
    grid = torch.meshgrid(*sides, indexing="ij")
    ball = torch.sigmoid(15 - sum(axis**2 for axis in grid).sqrt())[None, None]
    boxes = Boxes(torch.zeros(1, 1, 3), torch.tensor([[[48.0, 48, 24]]]), torch.ones(1, 1, 3))
    straight = make(ball, lay_grids(boxes, base, (24, 24, 24)), (24, 24, 24), how)
    config = config_of(tilt_probability=1.0, tilt_degrees=40.0, num_global=1)
    tilts = draw(config, 1, base, spacing).tilts
    assert tilts is not None
    scale = torch.tensor(spacing).double()
    matrix = tilts.matrix * scale[None, None, None, :] / scale[None, None, :, None]
    tilted = make(
        ball, lay_grids(Boxes(boxes.start, boxes.length, boxes.blur, tilts, matrix), base, (24,) * 3), (24,) * 3, how
    )
    assert float((tilted - straight).abs().max()) < 0.12
    wrong = lay_grids(Boxes(boxes.start, boxes.length, boxes.blur, tilts, tilts.matrix), base, (24,) * 3)
    assert float((make(ball, wrong, (24,) * 3, how) - straight).abs().max()) > 0.3


def tilted_2d(pitch: float, degrees: float) -> Grids:
    length, angle = torch.full((1, 1, 2), 48 * pitch), torch.tensor(math.radians(degrees)).double()
    boxes = Boxes((200 - length) / 2, length, torch.ones(1, 1, 2))
    if degrees == 0:
        return lay_grids(boxes, (200, 200), (48, 48))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(1, 1, 2, 2)
    flags = torch.ones(1, 1, dtype=torch.bool)
    return lay_grids(
        Boxes(boxes.start, boxes.length, boxes.blur, Tilts(0 * flags.long(), turn, flags), turn), (200, 200), (48, 48)
    )


def contrast(grids: Grids, cycles_per_voxel: float, how: str) -> float:
    """Largest amplitude that a grating of amplitude 1 leaves in the view, over its directions."""
    x, y = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
    found = []
    for direction in (0.0, 0.3, 0.6, math.pi / 4, 1.2, math.pi / 2):
        phase = 2 * math.pi * cycles_per_voxel * (x * math.cos(direction) + y * math.sin(direction))
        view = make(torch.cos(phase)[None, None], grids, (48, 48), how)[..., 6:-6, 6:-6]
        found.append(float(view.std()) * math.sqrt(2))
    return max(found)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("degrees", [0.0, 7.0, 20.0, 45.0])
@pytest.mark.parametrize("pitch", [1.5, 2.0, 2.7])
def test_no_aliasing_when_shrinking(pitch: float, degrees: float, how: str) -> None:
    """Gratings beyond 1.4 times the view's highest frequency leave less than 0.25 of their contrast, as along the
    axes; without antialiasing they leave more than 0.5. What the view can show well stays."""
    grids = tilted_2d(pitch, degrees)
    fine = [f / pitch for f in (0.7, 0.85, 1.0) if f / pitch <= 0.5]
    assert fine
    for frequency in fine:
        assert contrast(grids, frequency, how) < 0.25
    plain = Grids(
        grids.start, torch.ones_like(grids.pitch), torch.ones_like(grids.half), grids.count * 4, *grids_rest(grids)
    )
    if degrees:
        assert max(contrast(plain, frequency, how) for frequency in fine) > 0.5
    assert contrast(grids, 0.1 / pitch, how) > 0.9


def grids_rest(grids: Grids) -> tuple[torch.Tensor, ...]:
    return grids.origin, grids.matrix, grids.edge, grids.tilted


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_a_view_that_does_not_shrink_keeps_a_coarse_grating(degrees: float, how: str) -> None:
    assert contrast(tilted_2d(1.0, degrees), 1 / 8, how) > 0.9


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("air", [0.0, -1000.0])
def test_beyond_the_base_crop_is_air(air: float, how: str) -> None:
    base = (30, 30)
    config = config_of(global_size=(16, 16), local_size=(8, 8), tilt_probability=1.0, tilt_degrees=45.0)
    config = config.model_copy(update={"global_fraction": (1.0, 1.0), "aspect": 1.0})
    boxes = draw(config, 20, base)
    views = make(torch.full((20, 1, *base), 100.0), lay_grids(boxes, base, (16, 16)), (16, 16), how, air)
    assert float(views.min()) == pytest.approx(air, abs=1e-3)
    assert float((views > 99.9).float().mean()) > 0.7
    assert float(views.max()) == pytest.approx(100, abs=1e-3)


def test_smaller_tilted_boxes_lie_inside_the_base_crop() -> None:
    config = config_of(global_fraction=(0.05, 0.2), tilt_probability=1.0, tilt_degrees=30.0, max_magnification=10.0)
    base = (60, 50, 40)
    boxes = draw(config, 200, base, (1.0, 1.0, 1.5))
    assert boxes.matrix is not None
    reach = (boxes.matrix.abs() @ boxes.length.abs().double()[..., None])[..., 0] / 2
    centre, limits = boxes.start + boxes.length / 2, torch.tensor(base)
    small = (2 * reach < limits).all(-1)
    assert float(small.float().mean()) > 0.8
    assert float((centre - reach)[small].min()) > -1e-3
    assert float((limits - centre - reach)[small].min()) > -1e-3


def test_turns_are_the_proper_rotations() -> None:
    for axes, number in ((2, 4), (3, 24)):
        corner = torch.arange(1, 1 + 2**axes).view((2,) * axes)
        pictures = {tuple(turn.apply(corner).flatten().tolist()) for turn in turns(axes)}
        assert len(turns(axes)) == len(pictures) == number
        mirrored = {tuple(turn.apply(corner.flip(0)).flatten().tolist()) for turn in turns(axes)}
        assert not pictures & mirrored  # no turn is a mirror image
        assert torch.equal(turns(axes)[0].apply(corner), corner)


def test_only_axes_of_equal_sides_change_places() -> None:
    config = config_of(rot90_axes="any", flip_left_right=1.0)
    for number in allowed_turns(config, (16, 16, 8)):
        assert turns(3)[number].apply(torch.zeros(16, 16, 8)).shape == (16, 16, 8)
    assert len(allowed_turns(config, (16, 16, 16))) == 23
    assert len(allowed_turns(config, (16, 16, 8))) == 7
    assert len(allowed_turns(config, (16, 12, 8))) == 3


@pytest.mark.parametrize("settings", [{}, {"flip_other": 1.0}, {"tilt_probability": 1.0, "tilt_degrees": 45.0}])
def test_left_stays_left_in_ten_thousand_views(settings: dict[str, Any]) -> None:
    """A ramp from left to right rises in every view while flip_left_right is 0, whatever else is on."""
    config = config_of(rot90_probability=0.9, num_global=50, num_local=0, global_size=(2, 2, 2), **settings)
    config = config.model_copy(update={"global_fraction": (0.3, 0.5), "min_body": 0.0, "redraws": 1})
    ramp = torch.arange(20.0)[:, None, None].expand(1, 1, 20, 20, 20) * 10
    images = ramp.expand(200, -1, -1, -1, -1).contiguous().to(torch.uint8)
    views = BatchedMultiCrop(config)(images, (1.0, 1.0, 1.0), torch.zeros(200, dtype=torch.bool), ("left",))[0]
    rise = views[:, :, 0].diff(dim=2).mean((2, 3, 4))
    assert rise.numel() == 10_000
    assert float(rise.min()) > 0


def test_any_turns_never_mirror_but_move_left() -> None:
    """A left-handed corner stays left-handed; left itself gets to other sides."""
    corner = torch.zeros(24, 24, 24)
    corner[12:, :12, :12], corner[:12, 12:, :12], corner[:12, :12, 12:] = 1, 2, 3  # axis 0, 1, 2 in right-handed order
    config = config_of(rot90_probability=1.0, rot90_axes="any", num_global=30, global_fraction=(1, 1), aspect=1)
    images = (corner * 60).to(torch.uint8)[None, None].expand(5, -1, -1, -1, -1).contiguous()
    views = BatchedMultiCrop(config)(images, (1.0,) * 3, torch.zeros(5, dtype=torch.bool), ("any",))[0]
    proper = {tuple(turn.apply((corner * 60)[None])[0][6::12, 6::12, 6::12].flatten().tolist()) for turn in turns(3)}
    found = {tuple((view * 255).round()[3::8, 3::8, 3::8].flatten().tolist()) for view in views.flatten(0, 2)}
    assert found <= proper
    assert len(found) > 15


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rot90_probability": 0.5, "global_size": [16, 16], "local_size": [8, 8]}, "in 2D every turn moves left"),
        ({"rot90_probability": 0.5, "rot90_axes": "any", "flip_other": 0.5}, "mirror images"),
        ({"mri": {"gibbs": [0.0, 0.5]}}, "share of k-space"),
        ({"mri_by_sequence": {"t1": {"gama": [1, 2]}}}, "gama"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        validate(ViewsConfig, settings, "views.yaml")


def test_a_sequence_starts_from_mri_also_when_written_and_read_again() -> None:
    config = ViewsConfig.model_validate({"mri": {"bias_field": 0.1}, "mri_by_sequence": {"flair": {"gamma": [1, 2]}}})
    assert config.mri_by_sequence["flair"] == config.mri.model_copy(update={"gamma": (1.0, 2.0)})
    assert ViewsConfig.model_validate(config.model_dump()) == config


def chi_square(counts: torch.Tensor) -> float:
    return float(stats.chisquare(counts.double().numpy()).pvalue)


def test_ten_thousand_draws() -> None:
    """Turns uniform over the allowed ones, tilts as often as asked, places and fractions uniform."""
    config = config_of(
        rot90_probability=0.4, tilt_probability=0.3, tilt_degrees=20.0, tilt_shear=0.1, num_global=100, redraws=1
    )
    config = config.model_copy(update={"global_fraction": (0.05, 0.3), "max_magnification": 100.0})
    boxes = draw(config, 100, (50, 40, 30))
    assert boxes.tilts is not None
    turn = boxes.tilts.turn.flatten()
    on = int((turn > 0).sum())
    assert stats.binomtest(on, 10_000, 0.4).pvalue > 1e-3
    counts = torch.stack([(turn == number).sum() for number in allowed_turns(config, (16, 16, 16))])
    assert int(counts.sum()) == on and len(counts) == 3
    assert chi_square(counts) > 1e-3
    tilted = boxes.tilts.tilted
    assert stats.binomtest(int(tilted.sum()), 10_000, 0.3).pvalue > 1e-3
    both = int((tilted.flatten() & (turn > 0)).sum())
    assert stats.binomtest(both, 10_000, 0.12).pvalue > 1e-3
    place = boxes.start / (torch.tensor([50.0, 40, 30]) - boxes.length)
    for axis in range(3):
        assert chi_square(torch.histc(place[~tilted][:, axis], 20, 0, 1)) > 1e-3
    fraction = (boxes.length.prod(-1) / 60_000 - 0.05) / 0.25
    assert stats.kstest(fraction.flatten().numpy(), "uniform").pvalue > 1e-3


def test_tilts_are_uniform_in_angle_and_direction() -> None:
    config = config_of(tilt_probability=1.0, tilt_degrees=20.0, num_global=100)
    tilts = draw(config, 100, (50, 40, 30)).tilts
    assert tilts is not None
    matrix = tilts.matrix.flatten(0, 1)
    identity = torch.eye(3).double().expand_as(matrix)
    torch.testing.assert_close(matrix @ matrix.transpose(1, 2), identity)  # rotations
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(10_000).double())
    angle = torch.rad2deg(((matrix.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2).clamp(-1, 1).arccos())
    assert stats.kstest((angle / 20).numpy(), "uniform").pvalue > 1e-3
    axis = torch.stack([matrix[:, 2, 1] - matrix[:, 1, 2], matrix[:, 0, 2] - matrix[:, 2, 0]], -1)
    axis = axis / (2 * torch.deg2rad(angle).sin()[:, None])
    for column in axis[angle > 1].unbind(-1):  # each coordinate of a uniform direction is uniform
        assert stats.kstest(((column + 1) / 2).numpy(), "uniform").pvalue > 1e-3
