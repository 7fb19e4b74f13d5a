"""VICReg against the formula written out in float64, for loss and gradient; two ranks equal one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lejepa_med.config.pretraining import ObjectiveConfig
from lejepa_med.objective import LeJEPALoss, VICRegLoss, build_objective

CONFIG = ObjectiveConfig(kind="vicreg", num_slices=8)
SPLITS = [[(0, 4), (4, 9)], [(0, 1), (1, 9)]]


def views(count: int = 4, samples: int = 9, dim: int = 5) -> Tensor:
    drawn = torch.randn(count, samples, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn * torch.linspace(0.1, 1.4, dim) + 0.3


def literal(z: Tensor, num_global: int) -> tuple[Tensor, Tensor, Tensor]:
    """s, v and c, pair by pair and entry by entry."""
    count, _, dim = z.shape
    pairs = [(a, b) for a in range(num_global) for b in range(count) if a != b]
    s = sum(((z[a] - z[b]) ** 2).mean() for a, b in pairs) / len(pairs)
    v, c = z.new_zeros(()), z.new_zeros(())
    for view in z:
        v = v + sum(torch.relu(1 - torch.sqrt(view[:, j].var() + 1e-4)) for j in range(dim)) / dim / count
        covariance = torch.cov(view.T)
        for i in range(dim):
            for j in range(dim):
                c = c + (covariance[i, j] ** 2 / dim / count if i != j else 0)
    return s, v, c


@pytest.mark.parametrize(("count", "num_global"), [(2, 2), (4, 2), (5, 1)])
def test_loss_and_gradient_are_those_of_the_formula(count: int, num_global: int) -> None:
    ours, theirs = views(count).requires_grad_(), views(count).requires_grad_()
    parts = build_objective(CONFIG, 0)(ours, num_global)
    s, v, c = literal(theirs, num_global)
    expected = 25 * s + 25 * 2 * v + 2 * c
    torch.testing.assert_close(parts.total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.prediction, s, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.sigreg, expected - 25 * s, rtol=1e-12, atol=0)
    parts.total.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_two_views_are_the_loss_of_the_paper() -> None:
    a, b = views(2)
    z = torch.stack([a, b])
    variance = [torch.relu(1 - (side.var(0) + 1e-4).sqrt()).mean() for side in (a, b)]
    off = [torch.cov(side.T).square() * (1 - torch.eye(5)) for side in (a, b)]
    expected = 25 * torch.nn.functional.mse_loss(a, b) + 25 * sum(variance) + sum(part.sum() / 5 for part in off)
    torch.testing.assert_close(build_objective(CONFIG, 0)(z, 2).total, expected, rtol=1e-12, atol=0)


def test_collapse_costs_the_whole_hinge() -> None:
    parts = build_objective(CONFIG, 0)(torch.ones(3, 6, 4), 2)
    assert float(parts.prediction) == 0.0
    assert float(parts.total) == pytest.approx(2 * 25 * (1 - 0.01))


def test_computed_in_float32_under_autocast() -> None:
    z = views().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = build_objective(CONFIG, 0)(z, 2).total
    assert torch.equal(inside, build_objective(CONFIG, 0)(z, 2).total)


def test_the_config_decides() -> None:
    lejepa = build_objective(ObjectiveConfig(lam=0.3, num_slices=8), 4)
    assert isinstance(lejepa, LeJEPALoss) and (lejepa.lam, lejepa.sigreg.seed) == (0.3, 4)
    assert lejepa.mix(1.0, 2.0, 16) == pytest.approx(0.7 + 0.6)
    weighted = ObjectiveConfig.model_validate({"kind": "vicreg", "vicreg": {"invariance": 2, "variance": 0}})
    vicreg = build_objective(weighted, 0)
    assert isinstance(vicreg, VICRegLoss)
    s, _, c = literal(views(), 2)
    torch.testing.assert_close(vicreg(views(), 2).total, 2 * s + 2 * c)
    assert vicreg.mix(3.0, 4.0, 16) == 10.0


def loss_and_gradient(images: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3).requires_grad_()
    parts = build_objective(CONFIG, 0)(images @ weight, num_global=2)
    parts.total.backward()
    assert weight.grad is not None
    return [parts.total.detach(), parts.prediction.detach(), parts.sigreg.detach(), weight.grad]


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = []
    for split in SPLITS:
        low, high = split[rank]
        found = loss_and_gradient(views()[:, low:high])
        dist.all_reduce(found[3])
        results.append([*found[:3], found[3] / 2])  # as DistributedDataParallel leaves it
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    expected = loss_and_gradient(views())
    for rank in range(2):
        for found in torch.load(tmp_path / f"rank{rank}.pt", weights_only=True):
            for value, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-8)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
