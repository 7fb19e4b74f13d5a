"""SIGReg against closed forms, constants and invariances."""

import math

import pytest
import torch

from lejepa_med.objective import GAUSSIAN_REFERENCE, LeJEPALoss, SIGReg, epps_pulley, prediction_loss, resolve_lam


def plain(x: torch.Tensor, num_knots: int = 17, t_max: float = 3.0) -> torch.Tensor:
    """The trapezoid rule, written as in the paper: stores batch x slice x knots."""
    knots = torch.linspace(0, t_max, num_knots, dtype=x.dtype)
    phi = torch.exp(1j * x[..., None] * knots).mean(-3)
    gauss = torch.exp(-(knots**2) / 2)
    return x.shape[-2] * 2 * torch.trapezoid((phi - gauss).abs() ** 2 * gauss, knots, dim=-1)


def closed_form(x: torch.Tensor) -> torch.Tensor:
    """The exact integral for `[sample]`."""
    pairs = torch.exp(-((x[:, None] - x) ** 2) / 2).mean()
    cross = torch.exp(-(x**2) / 4).mean()
    root = math.sqrt(2 * math.pi)
    return len(x) * (root * pairs - 2 * math.sqrt(math.pi) * cross + math.sqrt(2 * math.pi / 3))


@pytest.mark.parametrize(("samples", "scale"), [(2, 1.0), (64, 1.0), (64, 3.0), (33, 1e3)])
def test_recurrence_equals_plain_formula_in_value_and_gradient(samples: int, scale: float) -> None:
    x = scale * torch.randn(3, samples, 7, generator=torch.Generator().manual_seed(0))
    fast = x.clone().requires_grad_()
    slow = x.double().requires_grad_()
    value, expected = epps_pulley(fast), plain(slow)
    tolerance = 1e-5 if scale < 100 else 1e-4
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(fast.grad.double(), slow.grad, rtol=10 * tolerance, atol=10 * tolerance)


def test_gradient_against_finite_differences() -> None:
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: epps_pulley(y), (x,))


@pytest.mark.parametrize("samples", [2, 50])
def test_many_knots_reach_the_closed_form(samples: int) -> None:
    x = torch.randn(samples, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    value = epps_pulley(x, num_knots=401, t_max=8.0)[0]
    torch.testing.assert_close(value, closed_form(x[:, 0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("samples", [4, 64, 256])
def test_mean_over_gaussian_samples_is_the_reference(samples: int) -> None:
    x = torch.randn(samples, 20000, generator=torch.Generator().manual_seed(3))
    statistic = epps_pulley(x)
    error = 4 * statistic.std() / math.sqrt(20000)
    assert abs(statistic.mean() - GAUSSIAN_REFERENCE) < error
    assert SIGReg().reference() == pytest.approx(GAUSSIAN_REFERENCE, abs=1e-5)


@pytest.mark.parametrize("samples", [2, 100])
def test_collapse_to_zero_costs_the_known_constant(samples: int) -> None:
    assert epps_pulley(torch.zeros(samples, 1)).item() == pytest.approx(0.40205 * samples, rel=1e-4)


def test_permutation_and_sign_do_not_matter() -> None:
    x = torch.randn(31, 6, generator=torch.Generator().manual_seed(4))
    order = torch.randperm(31, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(epps_pulley(x[order]), epps_pulley(x))
    torch.testing.assert_close(epps_pulley(-x), epps_pulley(x))


def test_views_are_averaged_not_pooled() -> None:
    z = torch.randn(4, 32, 8, generator=torch.Generator().manual_seed(6))
    sigreg = SIGReg(num_slices=64)
    one_by_one = torch.stack([sigreg(view[None], step=3) for view in z]).mean()
    torch.testing.assert_close(sigreg(z, step=3), one_by_one)


def test_directions_change_with_step_and_seed_only() -> None:
    z = torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(0)
    first = SIGReg(num_slices=16)(z, step=1)
    torch.manual_seed(1)
    assert torch.equal(first, SIGReg(num_slices=16)(z, step=1))
    assert not torch.equal(first, SIGReg(num_slices=16)(z, step=2))
    assert not torch.equal(first, SIGReg(num_slices=16, seed=1)(z, step=1))


def test_autocast_around_it_changes_nothing() -> None:
    z = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(8))
    loss = LeJEPALoss(lam=0.1, num_slices=32)
    outside = loss(z, num_global=2, step=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(z, num_global=2, step=0)
    assert torch.equal(outside.total, inside.total)


def test_prediction_is_the_mean_square_to_the_global_mean() -> None:
    z = torch.tensor([[[1.0]], [[3.0]], [[5.0]]])  # three views of one sample; the mean of the two globals is 2
    assert prediction_loss(z, num_global=2).item() == pytest.approx((1 + 1 + 9) / 3)


def test_total_mixes_the_parts_and_auto_keeps_the_papers_balance() -> None:
    z = torch.randn(3, 64, 8, generator=torch.Generator().manual_seed(9))
    parts = LeJEPALoss(lam="auto", num_slices=32)(z, num_global=2)
    assert parts.lam * 64 / (1 - parts.lam) == pytest.approx(0.05 * 256 / 0.95)
    assert resolve_lam("auto", 256) == pytest.approx(0.05)
    assert resolve_lam(0.3, 64) == 0.3
    torch.testing.assert_close(parts.total, (1 - parts.lam) * parts.prediction + parts.lam * parts.sigreg)
