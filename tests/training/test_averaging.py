"""The average is the exponential one, survives a resume to the bit, and is what a run leaves behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import small_run
from torch import nn

from lejepa_med.config.pretraining import TrainConfig
from lejepa_med.errors import UserError, WeightsError
from lejepa_med.training.averaging import WeightAverage, average_of, describe_average, exponential, mean_from
from lejepa_med.training.checkpoint_file import digest_file, load_checkpoint
from lejepa_med.weights import read_description
from lejepa_med.whole_files import file_digest


def network(seed: int = 0, width: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def test_closed_form() -> None:
    """Weights 1, 2, 3, ... after each step: sum of d^(n-k) (1-d) k, once the decay is no longer limited."""
    module, decay, steps = network(), 0.5, 30
    with torch.no_grad():
        module[0].weight.zero_()
    average = WeightAverage(module, exponential(decay))
    expected = 0.0
    for step in range(steps):
        with torch.no_grad():
            module[0].weight.fill_(float(step + 1))
        average.update(step)
        now = min(decay, (1 + step) / (10 + step))
        expected = now * expected + (1 - now) * (step + 1)
    assert average.state_dict()["0.weight"].unique().item() == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(steps - decay / (1 - decay), rel=1e-4), "it lags by d / (1 - d) steps"
    assert module[0].weight.unique().tolist() == [steps], "the weights that train are left alone"


def test_the_mean_of_the_last_steps_is_plain() -> None:
    """10 steps, the last 2.5 of them rounded up to 3: the mean of the weights after each, whatever came before."""
    config = TrainConfig(steps=10, swa_fraction=0.25)
    chosen = average_of(config)
    assert chosen is not None
    told = {steps: describe_average(config, steps) for steps in (10, 9, 8, 7)}
    assert told == {10: "mean over the last 3 steps", 9: "mean over the last 2 steps", 8: None, 7: None}
    module = network()
    average = WeightAverage(module, chosen)
    weights = [torch.randn(3, 2) for _ in range(10)]
    for step, weight in enumerate(weights):
        with torch.no_grad():
            module[0].weight.copy_(weight)
        average.update(step)
        if step < 7:
            torch.testing.assert_close(average.state_dict()["0.weight"], weight)
    torch.testing.assert_close(average.state_dict()["0.weight"], torch.stack(weights[-3:]).mean(0))


def test_all_steps_or_a_single_one_can_be_averaged() -> None:
    for fraction, first in ((1.0, 0), (1e-6, 9)):
        chosen = average_of(TrainConfig(steps=10, swa_fraction=fraction))
        assert chosen is not None
        assert [chosen(step) for step in range(10)] == [mean_from(first)(step) for step in range(10)]
    assert average_of(TrainConfig()) is None
    with pytest.raises(ValueError, match="two averages of the weights"):
        TrainConfig(ema_decay=0.9, swa_fraction=0.5)


def test_the_first_step_leaves_a_tenth_of_the_first_weights() -> None:
    module = network()
    before = module[0].bias.detach().clone()
    average = WeightAverage(module, exponential(0.999))
    with torch.no_grad():
        module[0].bias.add_(1)
    average.update(0)
    torch.testing.assert_close(average.state_dict()["0.bias"], before + 0.9)


def test_copies_weights_and_buffers() -> None:
    module, other = network(0).double(), network(1)
    module(torch.rand(5, 2).double())
    average = WeightAverage(module, exponential(0.9))
    average.copy_to(other)
    assert torch.equal(other[0].weight, module[0].weight.float())
    assert torch.equal(other[1].running_mean, module[1].running_mean.float())
    assert other[1].num_batches_tracked == 1
    statistics = module[1].running_mean.clone()
    average.copy_to(module)
    assert torch.equal(module[1].running_mean, statistics)
    assert {value.dtype for value in average.state_dict().values()} == {torch.float32}


def test_state_of_another_network_is_refused() -> None:
    average, before = (
        WeightAverage(network(), exponential(0.9)),
        WeightAverage(network(), exponential(0.9)).state_dict(),
    )
    wrong: list[dict[str, Any]] = [
        {},
        {"0.weight": before["0.weight"]},
        WeightAverage(network(0, 4), exponential(0.9)).state_dict(),
    ]
    for state in (*wrong, before | {"0.bias": None}, before | {"more": torch.zeros(1)}):
        with pytest.raises(WeightsError, match="it is of another network"):
            average.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in average.state_dict().items())
    fresh = WeightAverage(network(1), exponential(0.9))
    fresh.load_state_dict(before)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


TRAIN = {"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 9, "ema_decay": 0.6}


def leave_at(run: Path, step: int) -> None:
    (run / "checkpoints" / "latest").write_text(f"step_{step}.pt")
    (run / "DONE").unlink(missing_ok=True)


SWA = TRAIN | {"ema_decay": None, "swa_fraction": 0.5}


@pytest.mark.parametrize(
    ("train", "name"),
    [(TRAIN, "exponential average over steps, decay 0.6"), (SWA, "mean over the last 2 steps")],
    ids=["exponential", "mean"],
)
def test_a_run_leaves_the_average_also_when_resumed(tmp_path: Path, train: dict[str, Any], name: str) -> None:
    run = small_run(tmp_path / "run", train=train).path
    plain = small_run(tmp_path / "plain", train=TRAIN | {"ema_decay": None}).path
    assert (run / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes(), "training is the same"
    left, last = load_file(run / "backbone.safetensors"), load_file(plain / "backbone.safetensors")
    state = load_checkpoint(run / "checkpoints")
    for key, value in state["average"].items():
        assert torch.equal(left[key], value) and not torch.equal(value, last[key])
        assert torch.equal(last[key], state["model"][f"backbone.{key}"])
    assert "norm.running_mean" in left
    described = read_description(run / "backbone.safetensors")["provenance"]
    assert described["weights"] == name
    assert "weights" not in read_description(plain / "backbone.safetensors")["provenance"]
    before = (run / "backbone.safetensors").read_bytes()
    for step in (2, 4):  # 4: nothing is left to train
        leave_at(run, step)
        (run / "backbone.safetensors").unlink()
        assert small_run(run, train=train, resume=True).finished
        assert (run / "backbone.safetensors").read_bytes() == before


def test_a_run_goes_on_from_format_1(tmp_path: Path) -> None:
    settings = TRAIN | {"ema_decay": None}
    run = small_run(tmp_path / "run", train=settings).path
    before = (run / "backbone.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()
    file = run / "checkpoints" / "step_2.pt"
    state = torch.load(file, weights_only=True)
    old = {key: state[key] for key in ("step", "model", "optimizer")} | {"rng": state["rng"][0]["cpu"]}
    torch.save({"format": 1, **old}, file)
    digest_file(file).write_text(file_digest(file))
    leave_at(run, 2)
    (run / "backbone.safetensors").unlink()
    assert small_run(run, train=settings, resume=True).finished
    assert ((run / "backbone.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()) == before


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small_run(tmp_path / "whole", train=TRAIN).path
    flush, run = os.fsync, tmp_path / "run"

    def full(number: int) -> None:
        there = Path(f"/proc/self/fd/{number}").readlink().parent.name == "checkpoints"
        if there and (run / "checkpoints" / "step_2.pt").exists() and (run / "checkpoints" / "latest").exists():
            raise OSError(errno.ENOSPC, "full")
        flush(number)

    with monkeypatch.context() as patched:
        patched.setattr("lejepa_med.whole_files.os.fsync", full)
        sentence = r"at the checkpoint of step 4: the disk is full .* checkpoint is step_2.pt; make room"
        with pytest.raises(UserError, match=sentence):
            small_run(run, train=TRAIN)
    names = {file.name for file in (run / "checkpoints").iterdir()}
    assert names == {"latest", "step_2.pt", "step_2.pt.sha256"}
    assert not (run / "DONE").exists() and not (run / "backbone.safetensors").exists()
    assert small_run(run, train=TRAIN, resume=True).finished
    for name in ("metrics.jsonl", "backbone.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_the_best_by_held_out_loss(tmp_path: Path) -> None:
    """`best` holds the lowest of the losses that were the newest when a checkpoint was saved."""
    settings: dict[str, Any] = {"train": TRAIN | {"checkpoint_every": 1}, "data": {"monitor_fraction": 0.5}}
    folder = small_run(tmp_path / "run", 40, **settings).path / "checkpoints"
    scores = {step: torch.load(folder / f"step_{step}.pt", weights_only=True)["score"] for step in range(1, 5)}
    assert all(score is not None for score in scores.values()) and len(set(scores.values())) == 4
    assert load_checkpoint(folder, "best")["step"] == min(scores, key=lambda step: scores[step])
