"""How views look: each augmentation as often and as strong as asked, HU windows exact, mixed batches like pure ones."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from lejepa_med.config import ViewsConfig
from lejepa_med.randomness import generator
from lejepa_med.views.intensity import Intensity, apply_gibbs, apply_intensity, draw_intensity

OFF = {"gamma_probability": 0, "bias_probability": 0, "contrast_probability": 0, "noise_probability": 0}
QUIET = ViewsConfig.model_validate({"mri": OFF, "ct": {"noise_probability": 0}})


def draw(config: ViewsConfig, samples: int, views: int = 4, ct: bool = False, axes: int = 3) -> Intensity:
    keys = [generator("test", position) for position in range(samples)]
    return draw_intensity(config, views, axes, torch.full((samples,), ct), keys)


def images(samples: int, views: int = 4, side: int = 5, low: float = 0.0, high: float = 255.0) -> torch.Tensor:
    values = torch.rand(samples, views, 1, side, side, side, generator=torch.Generator().manual_seed(0))
    return low + (high - low) * values


def agrees(share: float, probability: float, count: int) -> bool:
    return abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / count)


def test_every_mri_augmentation_comes_as_often_as_asked() -> None:
    config, samples = ViewsConfig(), 600
    drawn = draw(config, samples)
    count = samples * 4
    assert agrees(float((drawn.gamma != 1).float().mean()), config.mri.gamma_probability, count)
    assert agrees(float((drawn.contrast != 1).float().mean()), config.mri.contrast_probability, count)
    assert agrees(float((drawn.bias != 0).any(-1).float().mean()), config.mri.bias_probability, count)
    assert agrees(float((drawn.noise_std != 0).float().mean()), config.mri.noise_probability, count)


def test_augmentations_are_drawn_independently() -> None:
    drawn = draw(ViewsConfig(), 600)
    on = torch.stack([drawn.gamma != 1, drawn.contrast != 1, (drawn.bias != 0).any(-1), drawn.noise_std != 0])
    correlation = torch.corrcoef(on.flatten(1).float()) - torch.eye(4)
    assert float(correlation.abs().max()) < 4 / math.sqrt(2400)


def test_strengths_have_the_distribution_of_the_config() -> None:
    config = ViewsConfig.model_validate({"mri": dict.fromkeys(OFF, 1)})
    drawn, mri = draw(config, 400), config.mri
    log_low, log_high = math.log(mri.gamma[0]), math.log(mri.gamma[1])
    for values, low, high in (
        (drawn.gamma.log(), log_low, log_high),
        (drawn.contrast, *mri.contrast),
        (drawn.noise_std, *mri.noise_std),
        (drawn.bias.abs().sum(-1), 0.0, mri.bias_field),
    ):
        uniform = (values.flatten().double() - low) / (high - low)
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3


def test_ct_has_noise_and_a_window_and_nothing_that_breaks_hu() -> None:
    config = ViewsConfig()
    drawn = draw(config, 500, ct=True)
    assert bool((drawn.gamma == 1).all() and (drawn.contrast == 1).all() and (drawn.bias == 0).all())
    assert agrees(float((drawn.noise_std != 0).float().mean()), config.ct.noise_probability, 2000)
    centre, width = drawn.window.mean(-1), drawn.window[..., 1] - drawn.window[..., 0]
    low, high = config.ct.window_centre_hu
    assert stats.kstest(((centre.flatten() - low) / (high - low)).numpy(), "uniform").pvalue > 1e-3
    low, high = (math.log(value) for value in config.ct.window_width_hu)
    assert stats.kstest(((width.flatten().log() - low) / (high - low)).numpy(), "uniform").pvalue > 1e-3


def test_ct_window_maps_hu_as_drawn() -> None:
    x = images(3, low=-1024, high=2000)
    drawn = draw(QUIET, 3, ct=True)
    low, high = drawn.window.view(3, 4, 1, 1, 1, 1, 2).unbind(-1)
    expected = ((x - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(apply_intensity(x.clone(), drawn, torch.ones(3, dtype=torch.bool)), expected)
    assert 0.1 < float(expected.mean()) < 0.9


def test_mri_without_augmentation_is_the_input_over_255() -> None:
    x = images(2)
    torch.testing.assert_close(apply_intensity(x.clone(), draw(QUIET, 2), torch.zeros(2, dtype=torch.bool)), x / 255)


def test_gamma_contrast_and_bias_are_applied_as_drawn() -> None:
    config = ViewsConfig.model_validate({"mri": dict.fromkeys(OFF, 1) | {"noise_probability": 0}})
    x, drawn = images(2, side=7), draw(config, 2)
    out = apply_intensity(x.clone(), drawn, torch.zeros(2, dtype=torch.bool))
    axis = torch.linspace(-1, 1, 7)
    a, b, c = torch.meshgrid(axis, axis, axis, indexing="ij")
    basis = torch.stack([a, b, c, a * a, a * b, a * c, b * b, b * c, c * c])
    for sample in range(2):
        for view in range(4):
            field = (drawn.bias[sample, view].view(-1, 1, 1, 1) * basis).sum(0).exp()
            base = (x[sample, view, 0] / 255) ** drawn.gamma[sample, view] * drawn.contrast[sample, view]
            torch.testing.assert_close(out[sample, view, 0], (base * field).clamp(0, 1))


def test_noise_has_its_standard_deviation_and_differs_between_views() -> None:
    config = ViewsConfig.model_validate({"mri": OFF | {"noise_probability": 1, "noise_std": (0.04, 0.04)}})
    x = torch.full((1, 2, 1, 16, 16, 16), 127.5)
    out = apply_intensity(x, draw(config, 1, views=2), torch.tensor([False])) - 0.5
    for view in range(2):
        assert float(out[0, view].std()) == pytest.approx(0.04, rel=0.05)
    assert abs(float((out[0, 0] * out[0, 1]).mean())) < 0.04**2 * 0.1


def test_a_draw_can_be_applied_twice() -> None:
    config = ViewsConfig.model_validate({"mri": {"noise_probability": 1}})
    drawn, flags = draw(config, 2), torch.zeros(2, dtype=torch.bool)
    first = apply_intensity(images(2), drawn, flags)
    assert torch.equal(first, apply_intensity(images(2), drawn, flags))


@pytest.mark.parametrize("side", [12, 15])
def test_ringing_removes_the_high_frequencies_of_one_axis(side: int) -> None:
    config = ViewsConfig.model_validate({"mri": OFF | {"gibbs_probability": 1, "gibbs": (0.5, 0.5)}})
    drawn, x = draw(config, 1, views=30), images(1, views=30, side=side)[0]
    before = torch.fft.fftn(x, dim=(2, 3, 4))
    apply_gibbs(x, drawn, 0)
    after, kept = torch.fft.fftn(x, dim=(2, 3, 4)), round(0.5 * (side // 2))
    frequency = (torch.fft.fftfreq(side) * side).abs()
    for view in range(30):
        axis = int(drawn.gibbs_axis[0, view])
        mask = (frequency <= kept + 0.1).view([-1 if a == axis else 1 for a in range(3)])
        torch.testing.assert_close(after[view], before[view] * mask, rtol=0, atol=0.05)
    assert set(drawn.gibbs_axis[0].tolist()) == {0, 1, 2}


def test_ringing_comes_as_often_as_asked_and_never_to_ct() -> None:
    config = ViewsConfig.model_validate({"mri": {"gibbs_probability": 0.2}})
    rings = draw(config, 2500).gibbs_kept
    assert stats.binomtest(int((rings < 1).sum()), 10_000, 0.2).pvalue > 1e-3
    uniform = ((rings[rings < 1] - 0.5) / 0.4).numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert bool((draw(config, 100, ct=True).gibbs_kept == 1).all())
    plain = draw(ViewsConfig(), 100)
    torch.testing.assert_close(plain.gamma, draw(config, 100).gamma, rtol=0, atol=0)
