"""A whole step on 2 or 4 ranks is that of one process: backbone and projector with BatchNorm, loss, DDP, any split.

Each world is started once and runs every case; the mistakes that public implementations make are among them.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lejepa_med import distributed
from lejepa_med.backbones import Backbone, batchnorm
from lejepa_med.config import ProjectorConfig
from lejepa_med.objective import LeJEPALoss, lejepa, random_directions, sigreg
from lejepa_med.training.micro_batch import embed_views
from lejepa_med.training.model import Pretrainer

SAMPLES = 16
SPLITS = {2: [(8, 8), (5, 11), (15, 1)], 4: [(4, 4, 4, 4), (1, 3, 5, 7)]}
MISTAKES = ("value of the loss", "value of BatchNorm", "gradient")
MICRO_BATCHES = (1, 3)
Values = dict[str, Tensor]


class Tiny(Backbone):
    """Two convolutions with a normalisation each, a short cut (two paths meet), and dropout if asked for."""

    dim = token_dim = 6
    spatial_dims, in_channels = 3, 1

    def __init__(self, norm: str, dropout: float = 0.0) -> None:
        super().__init__()
        bias = norm != "batch"  # before BatchNorm its gradient is zero but for rounding
        self.first = nn.Conv3d(1, 6, 3, stride=2, bias=bias)
        self.second = nn.Conv3d(6, 6, 3, padding=1, bias=bias)
        self.norms = nn.ModuleList(nn.BatchNorm3d(6) if norm == "batch" else nn.GroupNorm(2, 6) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norms[0](self.first(images)).relu()
        x = x + self.dropout(self.norms[1](self.second(x)))
        return x.relu().flatten(2).mean(-1)

    def tokens(self, images: Tensor) -> Any:
        raise NotImplementedError

    def intermediate(self, images: Tensor, last: int = 2) -> Any:
        raise NotImplementedError


def views() -> list[Tensor]:
    """Two large and three small views of every sample; samples differ in mean and spread, as split halves do."""
    drawn = torch.Generator().manual_seed(0)
    shift = torch.linspace(-1, 2, SAMPLES).view(1, SAMPLES, 1, 1, 1, 1)
    return [
        shift + (1 + shift.abs()) * torch.randn(n, SAMPLES, 1, *(side,) * 3, generator=drawn)
        for n, side in ((2, 9), (3, 5))
    ]


def step(share: slice, norm: str, micro_batch: int | None = None) -> Values:
    """Losses, gradients of all parameters after DDP's averaging, and running statistics, of two forward passes."""
    torch.manual_seed(0)
    model = Pretrainer(Tiny(norm), ProjectorConfig(hidden=8, dim=4), micro_batch)
    # Buffers are not broadcast: they have to agree on their own.
    network = DistributedDataParallel(model, broadcast_buffers=False) if dist.is_initialized() else model
    calls: list[int] = []
    if isinstance(network, DistributedDataParallel):
        network.register_comm_hook(calls, counted_average)
    mine = [group[:, share] for group in views()]
    network(mine)[1].square().mean().backward()
    network.zero_grad()
    calls.clear()
    parts = LeJEPALoss(lam="auto", num_slices=32)(network(mine)[1], num_global=2, step=3)
    parts.total.backward()
    gradients = {key: value.grad for key, value in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    losses = {"total": parts.total, "prediction": parts.prediction, "sigreg": parts.sigreg}
    statistics = {key: value.clone() for key, value in model.named_buffers()}
    return (
        {key: value.detach() for key, value in losses.items()}
        | gradients
        | statistics
        | {"talks": torch.tensor(len(calls))}
    )


def counted_average(calls, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
    """DDP's averaging of gradients, counted."""
    calls.append(bucket.index())
    return allreduce_hook(None, bucket)


def without_the_reduced_value(total: Tensor, count: int) -> Tensor:
    """The mistake of two public implementations: the collective runs and its result is dropped."""
    dist.all_reduce(total.detach().clone())
    return total / count


@contextmanager
def mistake(name: str) -> Iterator[None]:
    match name:
        case "value of the loss":
            with (
                patch.object(lejepa, "mean_over_ranks", without_the_reduced_value),
                patch.object(sigreg, "mean_over_ranks", without_the_reduced_value),
            ):
                yield
        case "value of BatchNorm":
            with patch.object(batchnorm, "mean_over_ranks", without_the_reduced_value):
                yield
        case "gradient":
            with patch.object(distributed._SumOverRanks, "backward", staticmethod(lambda ctx, gradient: gradient)):
                yield


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # torch before 2.15 needs it
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    results: dict[str, Values] = {"directions": {"directions": random_directions(4, 32, 0, 3)}}
    for split in SPLITS[world]:
        share = slice(sum(split[:rank]), sum(split[: rank + 1]))
        for name in ("none", *MISTAKES):
            with nullcontext() if name == "none" else mistake(name):
                results[f"{split} {name}"] = step(share, "batch")
        for micro_batch in MICRO_BATCHES:
            results[f"{split} micro {micro_batch}"] = step(share, "group", micro_batch)
        results[f"{split} micro batch"] = step(share, "batch", 4)
    torch.save(results, f"{folder}/rank{rank}of{world}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where every rank of every world has left what it found."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, __file__, str(folder)], check=True, timeout=400)
    return folder


@pytest.fixture(scope="module", params=list(SPLITS))
def world(request: pytest.FixtureRequest, worlds: Path) -> list[dict[str, Values]]:
    """What each rank found."""
    size = request.param
    return [torch.load(worlds / f"rank{rank}of{size}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def one_process() -> dict[str, Values]:
    return {norm: step(slice(None), norm) for norm in ("batch", "group")}


def distance(found: Values, expected: Values) -> dict[str, float]:
    """Of each value from the expected one, relative to its norm."""
    return {
        key: float((found[key] - value).float().norm() / value.float().norm())
        for key, value in expected.items()
        if key != "talks"
    }


def test_any_split_equals_one_process(world: list[dict[str, Values]], one_process: dict[str, Values]) -> None:
    for split in SPLITS[len(world)]:
        for rank in world:
            wrong = {k: v for k, v in distance(rank[f"{split} none"], one_process["batch"]).items() if v > 1e-5}
            assert wrong == {}, split


def test_running_statistics_are_the_same_on_all_ranks(world: list[dict[str, Values]]) -> None:
    for split in SPLITS[len(world)]:
        for key, value in world[0][f"{split} none"].items():
            if "running" in key or "tracked" in key:
                assert all(torch.equal(rank[f"{split} none"][key], value) for rank in world), key


def test_directions_are_the_same_on_all_ranks(world: list[dict[str, Values]]) -> None:
    expected = random_directions(4, 32, 0, 3)
    assert all(torch.equal(rank["directions"]["directions"], expected) for rank in world)


@pytest.mark.parametrize("name", MISTAKES)
def test_the_mistake_is_noticed(world: list[dict[str, Values]], one_process: dict[str, Values], name: str) -> None:
    """The comparison above, on a world that drops what was reduced, fails for losses or gradients of every split."""
    for split in SPLITS[len(world)]:
        found = distance(world[0][f"{split} {name}"], one_process["batch"])
        gradients = [value for key, value in found.items() if "weight" in key]
        assert max(gradients) > 0.01, (split, found)
        if name != "gradient":
            assert found["total"] > 1e-3, (split, found)


@pytest.mark.parametrize("micro_batch", MICRO_BATCHES)
def test_micro_batches_on_ranks_equal_one_process(
    world: list[dict[str, Values]], one_process: dict[str, Values], micro_batch: int
) -> None:
    for split in SPLITS[len(world)]:
        for rank in world:
            found = rank[f"{split} micro {micro_batch}"]
            assert {k: v for k, v in distance(found, one_process["group"]).items() if v > 1e-5} == {}, split
            assert int(found["talks"]) == 1, "gradients are averaged once per step, not once per micro-batch"


def test_micro_batches_with_batchnorm_agree_between_ranks(world: list[dict[str, Values]]) -> None:
    """Not the whole batch's step, but one step: equal losses, gradients and statistics everywhere."""
    for split in SPLITS[len(world)]:
        expected = world[0][f"{split} micro batch"]
        for rank in world:
            assert max(distance(rank[f"{split} micro batch"], expected).values()) < 1e-6


def test_one_rank_of_an_uneven_world_may_be_empty() -> None:
    assert embed_views(Tiny("group"), [group[:, :0] for group in views()], None).shape == (5, 0, 6)


if __name__ == "__main__":
    for size in SPLITS:  # forked before anything has run: torch is imported once, not once per rank
        torch.multiprocessing.start_processes(work, args=(size, sys.argv[1]), nprocs=size, start_method="fork")
