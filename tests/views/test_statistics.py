"""Ten thousand draws: everything as often as configured, independently, within its range, of the right distribution.

Nothing is resampled here. A p-value below 1e-3 fails (1e-5 where some hundred are looked at); the draws are fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats

from lejepa_med.config import ViewsConfig
from lejepa_med.randomness import generator
from lejepa_med.views import BatchedMultiCrop, SampleFacts
from lejepa_med.views.multicrop import Draw
from lejepa_med.views.tilting import turns

SAMPLES, VIEWS = 100, 100
BASE, SPACING = (60, 50, 40), (1.0, 1.3, 0.8)
MRI = {
    "gamma_probability": 0.7,
    "bias_probability": 0.4,
    "contrast_probability": 0.6,
    "noise_probability": 0.35,
    "gibbs_probability": 0.25,
}
SETTINGS: dict[str, Any] = {
    "num_global": VIEWS,
    "num_local": VIEWS,
    "global_pitch_mm": None,
    "local_pitch_mm": None,
    "max_magnification": 100.0,
    "redraws": 1,
    "flip_left_right": 0.3,
    "flip_other": 0.2,
    "rot90_probability": 0.45,
    "rot90_axes": "any",
    "tilt_probability": 0.55,
    "tilt_degrees": 0.0,
    "tilt_shear": 0.2,
    "blur_probability": 0.3,
    "thick_slice_probability": 0.15,
    "mri": MRI,
    "ct": {"noise_probability": 0.65},
}
Seen = Callable[[Draw], torch.Tensor]


def tilted(drawn: Draw) -> torch.Tensor:
    assert drawn.boxes.tilts is not None
    identity = torch.eye(drawn.boxes.start.shape[-1]).double()
    return (drawn.boxes.tilts.matrix != identity).flatten(2).any(-1)


def turned(drawn: Draw) -> torch.Tensor:
    assert drawn.boxes.tilts is not None
    return drawn.boxes.tilts.turn > 0


SWITCHES: dict[str, tuple[float, Seen]] = {
    "flip left right": (0.3, lambda d: d.boxes.length[..., 0] < 0),
    "flip second axis": (0.2, lambda d: d.boxes.length[..., 1] < 0),
    "flip last axis": (0.2, lambda d: d.boxes.length[..., -1] < 0),
    "rot90": (0.45, turned),
    "tilt and shear": (0.55, tilted),
    "blur": (0.3, lambda d: (d.boxes.blur > 1).all(-1)),
    "thick slices": (0.15, lambda d: (d.boxes.blur > 1).sum(-1) == 1),
    "gamma": (0.7, lambda d: d.intensity.gamma[..., 0] != 1),
    "bias field": (0.4, lambda d: (d.intensity.bias[..., 0, :] != 0).any(-1)),
    "contrast": (0.6, lambda d: d.intensity.contrast[..., 0] != 1),
    "noise": (0.35, lambda d: d.intensity.noise_std[..., 0] != 0),
    "gibbs": (0.25, lambda d: d.intensity.gibbs_kept < 1),
}


def draw(settings: dict[str, Any], axes: int = 3, which: str = "global", ct: bool = False, **more: Any) -> Draw:
    """One draw of 100 samples with 100 views each. `more`: channels, facts."""
    sizes = {"global_size": (12,) * axes, "local_size": (6,) * axes}
    config = ViewsConfig.model_validate(SETTINGS | sizes | settings)
    keys = [generator("statistics", sample) for sample in range(SAMPLES)]
    flags, cells = torch.full((SAMPLES,), ct), torch.ones(SAMPLES, *(8,) * axes)
    crop = BatchedMultiCrop(config)
    return crop.draw(which, keys, BASE[:axes], SPACING[:axes], flags, cells, **more)  # type: ignore[arg-type]


def as_often_as(seen: torch.Tensor, chance: float) -> float:
    """The p-value of chi-square of how often it was seen."""
    assert seen.numel() == SAMPLES * VIEWS
    on, count = int(seen.sum()), seen.numel()
    return float(stats.chisquare([on, count - on], [count * chance, count * (1 - chance)]).pvalue)


def evenly(values: torch.Tensor, number: int) -> float:
    """The p-value of chi-square of whole numbers below `number` being equally frequent."""
    return float(stats.chisquare(torch.bincount(values.flatten(), minlength=number).numpy()).pvalue)


def uniform(values: torch.Tensor, low: float, high: float) -> bool:
    """Inside the range, and of uniform distribution (Kolmogorov-Smirnov)."""
    unit = (values.flatten().double() - low) / (high - low)
    assert float(unit.min()) >= -1e-5 and float(unit.max()) <= 1 + 1e-5
    return float(stats.kstest(unit.numpy(), "uniform").pvalue) > 1e-3


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("which", ["global", "local"])
def test_every_augmentation_at_its_probability(which: str, axes: int) -> None:
    drawn = draw({}, axes, which)
    for name, (chance, seen) in SWITCHES.items():
        if name == "thick slices" and axes == 2:
            assert not seen(drawn).any()
        else:
            assert as_often_as(seen(drawn), chance) > 1e-3, name


@pytest.mark.parametrize(("chance", "share"), [(0, 0.0), (1, 1.0)])
def test_never_and_always(chance: int, share: float) -> None:
    same = dict.fromkeys((key for key in SETTINGS if key.endswith("_probability")), chance)
    flips = {"flip_left_right": chance, "flip_other": chance}
    settings = same | flips | {"thick_slice_probability": 0, "mri": dict.fromkeys(MRI, chance)}
    drawn = draw(settings)
    for name, (_, seen) in SWITCHES.items():
        if name == "thick slices" or (drawn.boxes.tilts is None and name in ("rot90", "tilt and shear")):
            continue
        assert float(seen(drawn).float().mean()) == share, name
    assert (drawn.boxes.tilts is None) == (chance == 0)


def test_augmentations_do_not_depend_on_each_other() -> None:
    """Every pair, but for blur and thick slices, of which a view has one at most."""
    drawn = draw({})
    seen = {name: switch(drawn).flatten() for name, (_, switch) in SWITCHES.items()}
    for one, other in itertools.combinations(seen, 2):
        table = torch.zeros(2, 2)
        for i, j in itertools.product((0, 1), repeat=2):
            table[i, j] = ((seen[one] == bool(i)) & (seen[other] == bool(j))).sum()
        p = stats.chi2_contingency(table.numpy()).pvalue if (table > 0).all() else 0.0
        assert (p > 1e-5) != ({one, other} == {"blur", "thick slices"}), (one, other, p)


def test_views_and_samples_do_not_depend_on_each_other() -> None:
    drawn = draw({})
    for name, (chance, switch) in SWITCHES.items():
        seen = switch(drawn)
        for first, second in ((seen[:, :-1], seen[:, 1:]), (seen[:-1], seen[1:])):
            both = int((first & second).sum())
            assert stats.binomtest(both, first.numel(), chance**2).pvalue > 1e-5, name


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(("which", "low", "high"), [("global", 0.3, 1.0), ("local", 0.05, 0.3)])
def test_fractions_and_places(which: str, low: float, high: float, axes: int) -> None:
    """Crops are uniform over all places that they fit into, along each axis and together; so are their fractions."""
    drawn = draw({"tilt_probability": 0, "aspect": 1.0, "flip_left_right": 0, "flip_other": 0}, axes, which).boxes
    base = torch.tensor(BASE[:axes])
    assert uniform((drawn.length / base).prod(-1), low, high)
    place = (drawn.start / (base - drawn.length)).reshape(-1, axes)
    for axis in range(axes):
        assert evenly((place[:, axis] * 20).long().clamp(max=19), 20) > 1e-3
    cells = (place * 4).long().clamp(max=3)
    together = (cells * torch.tensor([4**axis for axis in range(axes)])).sum(-1)
    assert evenly(together, 4**axes) > 1e-3


def test_aspect_leaves_the_fraction_and_favours_no_axis() -> None:
    drawn = draw({"tilt_probability": 0, "aspect": 1.3, "local_fraction": (0.05, 0.3)}, which="local").boxes
    relative = drawn.length.abs() / torch.tensor(BASE)
    assert uniform(relative.prod(-1), 0.05, 0.3)
    assert evenly(relative.argmax(-1), 3) > 1e-3


@pytest.mark.parametrize("axes", [2, 3])
def test_turns_are_uniform_over_those_allowed(axes: int) -> None:
    drawn = draw({"rot90_probability": 1}, axes).boxes
    assert drawn.tilts is not None
    assert evenly(drawn.tilts.turn - 1, len(turns(axes)) - 1) > 1e-3


def test_shear_fills_its_range_in_every_pair_of_axes() -> None:
    drawn = draw({"tilt_probability": 1}).boxes
    assert drawn.tilts is not None
    for row, column in itertools.product(range(3), repeat=2):
        values = drawn.tilts.matrix[..., row, column]
        if row == column:
            torch.testing.assert_close(values, torch.ones_like(values))
        else:
            assert uniform(values, -0.2, 0.2)


def test_tilt_angles_in_2d_fill_their_range() -> None:
    drawn = draw({"tilt_probability": 1, "tilt_degrees": 20.0, "tilt_shear": 0.0}, axes=2).boxes
    assert drawn.tilts is not None
    matrix = drawn.tilts.matrix
    assert uniform(torch.rad2deg(torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])), -20, 20)


def test_filters_fill_their_range_and_thick_slices_any_axis_or_the_known_one() -> None:
    drawn = draw({}).boxes.blur
    thick = (drawn > 1).sum(-1) == 1
    assert uniform(drawn[(drawn > 1).all(-1)][:, 0], 1.0, 2.0)
    assert uniform(drawn[thick].amax(-1), 1.0, 2.0)
    assert evenly(drawn[thick].argmax(-1), 3) > 1e-3
    facts = SampleFacts(slice_axis=torch.full((SAMPLES,), 2))
    known = draw({}, facts=facts).boxes.blur
    assert torch.equal((known > 1).sum(-1) == 1, thick)
    assert bool((known[thick].argmax(-1) == 2).all())


def test_strengths_of_mri_fill_their_ranges() -> None:
    drawn = draw({"mri": dict.fromkeys(MRI, 1)}).intensity
    assert uniform(drawn.gamma.log(), torch.tensor(0.7).log().item(), torch.tensor(1.5).log().item())
    assert uniform(drawn.contrast, 0.75, 1.25)
    assert uniform(drawn.noise_std, 0.0, 0.05)
    assert uniform(drawn.bias.abs().sum(-1), 0.0, 0.3)
    assert uniform(drawn.gibbs_kept, 0.5, 0.9)
    assert evenly(drawn.gibbs_axis, 3) > 1e-3


def test_ct_has_its_window_its_noise_and_nothing_else() -> None:
    drawn = draw({}, ct=True)
    intensity = drawn.intensity
    low, high = intensity.window.unbind(-1)
    assert uniform((low + high) / 2, -100.0, 100.0)
    assert uniform((high - low).log(), torch.tensor(350.0).log().item(), torch.tensor(1500.0).log().item())
    assert as_often_as(intensity.noise_std[..., 0] > 0, 0.65) > 1e-3
    assert uniform(intensity.noise_std[intensity.noise_std > 0], 0.0, 0.03)
    for name in ("gamma", "bias field", "contrast", "gibbs"):
        assert not SWITCHES[name][1](drawn).any()
    assert as_often_as(SWITCHES["flip left right"][1](drawn), 0.3) > 1e-3


@pytest.mark.parametrize(("axes", "channels", "how", "same"), [
    (3, 2, "auto", False), (3, 3, "auto", False), (2, 3, "auto", True), (2, 2, "auto", False),
    (3, 2, "shared", True), (2, 3, "separate", False),
])  # fmt: skip
def test_channels_look_the_same_or_independent(axes: int, channels: int, how: str, same: bool) -> None:
    drawn = draw({"intensity_channels": how}, axes, channels=channels).intensity
    parts = {"gamma": drawn.gamma != 1, "contrast": drawn.contrast != 1, "noise_std": drawn.noise_std != 0}
    parts["bias"] = (drawn.bias != 0).any(-1)
    chances = {"gamma": 0.7, "contrast": 0.6, "noise_std": 0.35, "bias": 0.4}
    for name, seen in parts.items():
        values = getattr(drawn, name)
        for channel in range(channels):
            assert as_often_as(seen[..., channel], chances[name]) > 1e-3
            assert torch.equal(values[:, :, channel], values[:, :, 0]) == (same or channel == 0)
        if not same:
            assert as_often_as(seen[..., 0] & seen[..., -1], chances[name] ** 2) > 1e-3
    low, high = drawn.window.unbind(-1)
    assert low.shape == high.shape == (SAMPLES, VIEWS)  # a CT window is that of all channels


def view_to_patient(drawn: Draw) -> torch.Tensor:
    """Per view the matrix from steps along its axes to millimetres along R, A, S."""
    boxes = drawn.boxes
    assert boxes.tilts is not None and boxes.matrix is not None
    spacing = torch.tensor(SPACING).double()
    straight = spacing[:, None] * boxes.matrix * (boxes.length.double() / 12)[..., None, :]
    out = torch.empty_like(straight)
    for number, turn in enumerate(turns(3)):
        rows = boxes.tilts.turn == number
        for axis, source in enumerate(turn.order):
            out[..., axis][rows] = straight[..., source][rows] * (-1 if axis in turn.reversed_axes else 1)
    return out


@pytest.mark.parametrize("tilt", [{"tilt_degrees": 45.0, "tilt_shear": 0.0}, {"tilt_degrees": 20.0, "tilt_shear": 0.3}])
@pytest.mark.parametrize("flip_other", [0.0, 0.5])
def test_left_and_right_never_change_places_while_their_flip_is_off(flip_other: float, tilt: dict[str, float]) -> None:
    """The first axis of every view runs from left to right, whatever is turned, tilted, sheared and flipped besides."""
    settings = {"flip_other": flip_other, "rot90_axes": "keep_left_right", "rot90_probability": 0.9, **tilt}
    off, on = (view_to_patient(draw(settings | {"flip_left_right": chance})) for chance in (0.0, 0.5))
    assert off.shape == (SAMPLES, VIEWS, 3, 3)
    assert bool((off[..., 0, 0] > 0).all())
    assert as_often_as(on[..., 0, 0] < 0, 0.5) > 1e-3


def test_no_view_is_a_mirror_image_while_flips_are_off() -> None:
    """Also where left may get to any side: the determinant stays positive."""
    settings = {"flip_other": 0.0, "rot90_probability": 0.9, "tilt_degrees": 45.0, "tilt_shear": 0.1}
    off, on = (torch.linalg.det(view_to_patient(draw(settings | {"flip_left_right": p}))) for p in (0.0, 0.5))
    assert bool((off > 0).all())
    assert as_often_as(on < 0, 0.5) > 1e-3
    kept = view_to_patient(draw(settings | {"flip_left_right": 0.0}))[..., 0, 0]
    assert bool((kept < 0).any())  # turned by half a circle, not mirrored
