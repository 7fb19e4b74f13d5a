"""SIGReg against constants and invariances; `test_paths.py` compares its paths with the formula and the closed form."""

import math

import pytest
import torch

from lejepa_med.objective import (
    GAUSSIAN_REFERENCE,
    LeJEPALoss,
    SIGReg,
    epps_pulley,
    prediction_loss,
    random_directions,
    resolve_lam,
)


@pytest.mark.parametrize("samples", [2, 4, 64, 256])
def test_mean_over_gaussian_samples_is_the_reference(samples: int) -> None:
    x = torch.randn(samples, 20000, generator=torch.Generator().manual_seed(3))
    statistic = epps_pulley(x)
    error = 4 * statistic.std() / math.sqrt(20000)
    assert abs(statistic.mean() - GAUSSIAN_REFERENCE) < error
    assert SIGReg().reference() == pytest.approx(GAUSSIAN_REFERENCE, abs=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 100, 5000])
def test_collapse_to_zero_costs_the_known_constant(samples: int) -> None:
    assert epps_pulley(torch.zeros(samples, 1)).item() == pytest.approx(0.40205 * samples, rel=1e-4)


def test_permutation_and_sign_do_not_matter() -> None:
    x = torch.randn(31, 6, generator=torch.Generator().manual_seed(4))
    order = torch.randperm(31, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(epps_pulley(x[order]), epps_pulley(x))
    torch.testing.assert_close(epps_pulley(-x), epps_pulley(x))


def test_slices_do_not_see_each_other() -> None:
    x = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(10))
    one_by_one = torch.stack([epps_pulley(view[:, slice, None])[0] for view in x for slice in range(6)])
    torch.testing.assert_close(epps_pulley(x).flatten(), one_by_one)


@pytest.mark.parametrize("turned", [True, False])
def test_rotation_of_the_embedding_does_not_matter_in_distribution(turned: bool) -> None:
    """Many directions see the same cloud after a rotation, and another one after a shear."""
    random = torch.Generator().manual_seed(11)
    z = torch.randn(1, 64, 4, generator=random) * torch.tensor([2.0, 1.0, 0.5, 0.1])
    matrix = torch.linalg.qr(torch.randn(4, 4, generator=random))[0]
    if not turned:
        matrix = matrix + torch.diag(torch.ones(3), 1)
    directions = random_directions(4, 20000, 0, 0)
    before, after = epps_pulley(z @ directions), epps_pulley(z @ matrix @ random_directions(4, 20000, 0, 1))
    difference = abs(before.mean() - after.mean())
    error = math.sqrt((before.var() + after.var()) / 20000)
    assert (difference < 4 * error) == turned


def test_directions_are_unit_vectors_without_a_preferred_one() -> None:
    directions = random_directions(8, 20000, 0, 0)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(20000))
    torch.testing.assert_close(directions @ directions.T / 20000, torch.eye(8) / 8, rtol=0, atol=4e-3)


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
    assert resolve_lam("auto", 256) == resolve_lam("sqrt", 256) == pytest.approx(0.05)
    for batch in (16, 64, 1024):
        lam = resolve_lam("sqrt", batch)
        assert lam * batch**0.5 / (1 - lam) == pytest.approx(0.05 * 256**0.5 / 0.95)
    assert resolve_lam(0.3, 64) == 0.3
    torch.testing.assert_close(parts.total, (1 - parts.lam) * parts.prediction + parts.lam * parts.sigreg)
