"""Two ranks with uneven shares of a batch equal one process: losses, and gradients after DDP's averaging."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lejepa_med import distributed
from lejepa_med.distributed import mean_over_ranks, total_over_ranks
from lejepa_med.objective import LeJEPALoss

SPLITS = [[(0, 4), (4, 8)], [(0, 1), (1, 8)], [(0, 6), (6, 8)]]
DIM, PROJECTED = 5, 3


def batch() -> Tensor:
    """[view, sample, dim]."""
    return torch.randn(4, 8, DIM, generator=torch.Generator().manual_seed(0))


def loss_and_gradient(images: Tensor) -> dict[str, Tensor]:
    """One step of a linear model; the gradient is what this rank would hand to DDP."""
    weight = torch.linspace(-1, 1, DIM * PROJECTED).reshape(DIM, PROJECTED).requires_grad_()
    parts = LeJEPALoss(lam="auto", num_slices=16)(images @ weight, num_global=2, step=3)
    parts.total.backward()
    assert weight.grad is not None
    values = {"total": parts.total, "prediction": parts.prediction, "sigreg": parts.sigreg}
    return {name: value.detach() for name, value in values.items()} | {"gradient": weight.grad}


def without_the_reduced_value(total: Tensor, count: int) -> Tensor:
    """The mistake of two public implementations: the collective runs and its result is dropped."""
    dist.all_reduce(total.detach().clone())
    return total / count


def without_the_sum_of_gradients() -> AbstractContextManager[object]:
    """The other half of the mistake: values are reduced, but each rank sends back its own gradient alone."""
    return patch.object(distributed._SumOverRanks, "backward", staticmethod(lambda ctx, gradient: gradient))


def steps_of(rank: int) -> list[dict[str, Tensor]]:
    """One step per split; gradients as DistributedDataParallel leaves them."""
    results = []
    for split in SPLITS:
        low, high = split[rank]
        result = loss_and_gradient(batch()[:, low:high])
        dist.all_reduce(result["gradient"])
        result["gradient"] /= 2
        results.append(result)
    return results


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results: list[Any] = steps_of(rank)
    mean = mean_over_ranks(torch.tensor(10.0 * (rank + 1)), 1 + 2 * rank)
    results.append({"mean": mean, "count": torch.tensor(total_over_ranks(1 + 2 * rank, mean.device))})
    with without_the_sum_of_gradients():
        local_gradients = steps_of(rank)
    from lejepa_med.objective import lejepa, sigreg

    with (
        patch.object(lejepa, "mean_over_ranks", without_the_reduced_value),
        patch.object(sigreg, "mean_over_ranks", without_the_reduced_value),
    ):
        dropped = steps_of(rank)
    torch.save([*results, local_gradients, dropped], f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """Per rank: the steps, the mean with its count, and the steps with each of the two mistakes."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("number", range(len(SPLITS)))
def test_two_ranks_equal_one_process(ranks: list[list[Any]], number: int) -> None:
    expected = loss_and_gradient(batch())
    for rank in range(2):
        for name, value in expected.items():
            torch.testing.assert_close(ranks[rank][number][name], value, rtol=1e-5, atol=1e-6)


def test_mean_weighs_by_counts(ranks: list[list[Any]]) -> None:
    for rank in range(2):
        assert float(ranks[rank][len(SPLITS)]["mean"]) == 30.0 / 4
        assert int(ranks[rank][len(SPLITS)]["count"]) == 4


def test_dropping_the_reduced_value_is_noticed(ranks: list[list[Any]]) -> None:
    expected, wrong = loss_and_gradient(batch()), ranks[0][-1]
    for number in range(len(SPLITS)):
        for name, value in expected.items():
            found = wrong[number][name]
            assert float((found - value).norm() / value.norm()) > 1e-3, (number, name)


def test_not_summing_the_gradient_is_noticed(ranks: list[list[Any]]) -> None:
    """Losses are right; the gradient is half as long."""
    expected, wrong = loss_and_gradient(batch()), ranks[0][-2]
    for number in range(len(SPLITS)):
        torch.testing.assert_close(wrong[number]["total"], expected["total"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(2 * wrong[number]["gradient"], expected["gradient"], rtol=1e-4, atol=1e-6)


def test_one_process_needs_no_group() -> None:
    assert not dist.is_initialized()
    total = torch.tensor(6.0, requires_grad=True)
    mean = distributed.mean_over_ranks(total, 4)
    mean.backward()
    assert total.grad is not None
    assert (float(mean.detach()), float(total.grad), total_over_ranks(7, mean.device)) == (1.5, 0.25, 7)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
