"""A run on ranks is the run on one; stopped or killed at any moment and resumed, it ends in the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_runs
import torch
from safetensors.torch import load_file
from small_runs import NAN_STEPS, SMALLEST, small_run

from lejepa_med.cli.main import main
from lejepa_med.errors import UserError
from lejepa_med.training.log import read_log

FILES = ("metrics.jsonl", "diagnostics.jsonl", "backbone.safetensors")


def execute(folder: Path, *plan: dict[str, Any]) -> dict[str, list[int]]:
    """Exit codes by run."""
    command = [sys.executable, rank_runs.__file__, str(folder), json.dumps(plan)]
    subprocess.run(command, check=True, timeout=1500, cwd=Path(__file__).parent)
    codes: dict[str, list[int]] = json.loads((folder / "codes.json").read_text())
    return codes


def bits(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in FILES}


@pytest.mark.parametrize(
    ("world", "times"),
    [
        (1, 3),
        pytest.param(2, 1, marks=pytest.mark.long),
        pytest.param(1, 10, marks=pytest.mark.long),
        pytest.param(2, 10, marks=pytest.mark.long),
    ],
)
def test_killed_or_stopped_and_resumed_equals_undisturbed(tmp_path: Path, world: int, times: int) -> None:
    steps = rank_runs.STEPS if times <= 3 else 80
    base: dict[str, Any] = {"world": world, "kind": "dropout", "train": {"steps": steps, "ema_decay": 0.9}}
    base |= SMALLEST if times > 3 else {}
    codes = execute(
        tmp_path,
        {"out": "whole", **base},
        {"out": "killed", **base, "by": "SIGKILL", "times": times},
        {"out": "stopped", **base, "by": "SIGTERM", "times": times},
    )
    assert codes["whole"] == [0] * world
    assert codes["stopped"] == [0] * world * times, "a stop is no failure, on no rank"
    expected = bits(tmp_path / "whole")
    assert len(read_log(tmp_path / "whole", "metrics")) == steps
    assert bits(tmp_path / "killed") == expected
    assert bits(tmp_path / "stopped") == expected


EXPLODES: dict[str, Any] = {
    "optim": {"lr": 10.0, "warmup_fraction": 0.99},
    "train": {"steps": 100, "checkpoint_every": 2, "keep_checkpoints": 100},
    **SMALLEST,
}
"""Trains while the learning rate is low, and diverges on its way up."""
RESTS: dict[str, Any] = {"optim": {"lr": 1e-12}, "train": {"steps": 500, "stop_on_plateau": 100}, **SMALLEST}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    folder = tmp_path_factory.mktemp("ranks")
    slow = {"lr": 1e-3}  # AdamW turns rounding of small gradients into steps of this size: at 3e-3 losses drift by 3e-5
    jobs: list[dict[str, Any]] = [
        {"out": f"{norm} on {world}", "world": world, "kind": norm, "optim": slow}
        for norm in ("healthy", "group")
        for world in (1, 2)
    ]
    fsdp = {"world": 2, "optim": slow, "train": {"parallel": "fsdp"}}
    jobs.append({"out": "fsdp", "kind": "healthy", **fsdp})
    jobs.append({"out": "fsdp stopped", "kind": "healthy", **fsdp, "by": "SIGTERM", "times": 1})
    for out, source, world in (("one to two", "healthy on 1", 2), ("fsdp to one", "fsdp", 1)):
        moved = {"out": out, "from": source, "world": world, "kind": "healthy", "optim": slow}
        jobs.append(moved | {"resume": True, "train": {"parallel": "ddp"}})
    for name, parallel in (("ddp nan", "ddp"), ("fsdp nan", "fsdp")):
        train = {"parallel": parallel, "on_nan": "skip", "checkpoint_every": 1, "keep_checkpoints": 30, "steps": 7}
        jobs.append({"out": name, "world": 2, "kind": "nan", "train": train})
    jobs.append({"out": "nan stop", "world": 2, "kind": "nan"})
    jobs += [{"out": f"poison {item}", "world": 2, "poison": item, "train": {"steps": 6}} for item in range(2)]
    jobs.append({"out": "deadly", "world": 2, "deadly": 1, "data": {"workers": 1, "prefetch": 1}})
    jobs.append({"out": "explodes", "world": 2, **EXPLODES})
    jobs.append({"out": "rests", "world": 2, **RESTS})
    jobs.append({"out": "probed", "kind": "healthy", "world": 2, "optim": slow, "probe": 7})
    jobs.append({"out": "probed shards", "kind": "healthy", **fsdp, "probe": 7, "weighed": True})
    jobs.append({"out": "slow probe", "world": 2, "probe": 100, "patience_s": 5, "train": {"steps": 3}})
    jobs.append({"out": "used", "world": 2})
    jobs.append({"out": "averaged shards", "world": 2, "train": {"parallel": "fsdp", "ema_decay": 0.9}})
    jobs.append({"out": "full disk", "world": 2, "full": True})
    (folder / "used").mkdir()
    (folder / "used" / "something").touch()
    return folder, execute(folder, *jobs)


Ranks = tuple[Path, dict[str, list[int]]]


def curves_agree(one: Path, other: Path) -> None:
    """Losses of 20 steps and more to 1e-5."""
    first, second = read_log(one, "metrics"), read_log(other, "metrics")
    assert len(first) == len(second) == rank_runs.STEPS >= 20
    for before, after in zip(first, second, strict=True):
        for key in ("total", "prediction", "sigreg"):
            assert after[key] == pytest.approx(before[key], rel=1e-5, abs=1e-6), (key, before["step"])


@pytest.mark.long
@pytest.mark.parametrize("norm", ["healthy", "group"])
def test_two_ranks_are_one_process(ranks: Ranks, norm: str) -> None:
    """With 5 samples: 2 on one rank, 3 on the other."""
    folder, codes = ranks
    assert codes[f"{norm} on 2"] == [0, 0]
    curves_agree(folder / f"{norm} on 1", folder / f"{norm} on 2")
    one, two = (read_log(folder / f"{norm} on {world}", "diagnostics")[-1] for world in (1, 2))
    assert one.keys() == two.keys()
    for key in {"samples", "n_eff", "batchnorm_batch", "feature_rank", "sigreg_relative", "grad_norm_backbone"} & set(
        one
    ):
        assert one[key] == pytest.approx(two[key], rel=1e-3), key


@pytest.mark.long
@pytest.mark.parametrize(("probed", "plain"), [("probed", "healthy on 2"), ("probed shards", "fsdp")])
def test_a_probe_beside_two_ranks_changes_nothing_and_measures_what_is_left(
    ranks: Ranks, probed: str, plain: str
) -> None:
    folder, codes = ranks
    assert codes[probed] == [0, 0]
    assert bits(folder / probed) == bits(folder / plain)
    first, *_, last = read_log(folder / probed, "probes")
    assert (first["step"], last["step"]) == (0, rank_runs.STEPS)
    left = load_file(folder / probed / "backbone.safetensors")
    assert last["linear"] == pytest.approx(float(left["conv.weight"].sum()), rel=1e-6)
    assert last["knn"] == pytest.approx(float(left["norm.running_var"].sum()), rel=1e-6)
    assert first["linear"] != last["linear"]


@pytest.mark.long
def test_the_last_probe_may_take_longer_than_ranks_wait_for_each_other(ranks: Ranks) -> None:
    folder, codes = ranks
    assert codes["slow probe"] == [0, 0], (folder / "slow probe.rank1").read_text()
    assert [line["step"] for line in read_log(folder / "slow probe", "probes")] == [0, 3]
    assert (folder / "slow probe" / "DONE").exists()


@pytest.mark.long
def test_shards_are_replicas(ranks: Ranks) -> None:
    folder, codes = ranks
    assert codes["fsdp"] == [0, 0]
    curves_agree(folder / "healthy on 2", folder / "fsdp")
    assert bits(folder / "fsdp stopped") == bits(folder / "fsdp")
    one, other = (
        torch.load(folder / run / "checkpoints" / f"step_{rank_runs.STEPS}.pt") for run in ("healthy on 1", "fsdp")
    )
    # A bias before BatchNorm changes nothing but the running mean; AdamW makes steps of the rounding of its gradient.
    free = ("backbone.conv.bias", "backbone.norm.running_mean")
    for key in one["model"].keys() - free:
        value = one["model"][key]
        torch.testing.assert_close(other["model"][key], value, rtol=1e-4, atol=1e-5)
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]


@pytest.mark.long
def test_no_rank_holds_more_than_one_whole_tensor_of_a_model_in_shards(ranks: Ranks) -> None:
    """While saving; the first one alone gets the backbone for a probe and at the end, in its host memory."""
    folder, _ = ranks
    first, other = (json.loads((folder / f"probed shards.gathered{rank}").read_text()) for rank in range(2))
    state = torch.load(folder / "probed shards" / "checkpoints" / f"step_{rank_runs.STEPS}.pt")["model"]
    largest = max(value.nbytes for value in state.values())
    backbone = sum(value.nbytes for key, value in state.items() if key.startswith("backbone."))
    assert largest < backbone
    assert first["saving"] == other["saving"] == other["any time"] == largest
    assert largest < first["any time"] <= backbone


@pytest.mark.long
@pytest.mark.parametrize("moved", ["one to two", "fsdp to one"])
def test_a_run_moves_to_another_number_of_ranks(ranks: Ranks, moved: str) -> None:
    folder, codes = ranks
    assert set(codes[moved]) == {0}
    curves_agree(folder / "healthy on 1", folder / moved)
    assert (folder / moved / "DONE").exists()


def states(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights, running statistics and moments of the optimizer after so many steps."""
    state = torch.load(run / "checkpoints" / f"step_{step}.pt", weights_only=True)
    moments = state["optimizer"]["state"]
    return state["model"] | {f"{number} {key}": value for number in moments for key, value in moments[number].items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def check_skips(run: Path) -> None:
    lines = read_log(run, "metrics")
    assert [line["step"] for line in lines if line.get("skipped")] == list(NAN_STEPS)
    assert ["total" in line for line in lines] == [step not in NAN_STEPS for step in range(7)]
    for step in range(1, 7):
        assert same(states(run, step), states(run, step + 1)) == (step in NAN_STEPS), step
    assert all(bool(value.isfinite().all()) for value in states(run, 7).values())


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_skipped_step_changes_nothing_on_ranks(ranks: Ranks, parallel: str) -> None:
    folder, codes = ranks
    assert codes[f"{parallel} nan"] == [0, 0], (folder / f"{parallel} nan.rank0").read_text()
    check_skips(folder / f"{parallel} nan")


@pytest.mark.long
def test_an_error_of_ranks_is_said_once(ranks: Ranks) -> None:
    folder, codes = ranks
    for run, words in (
        ("nan stop", "training stopped: loss or gradient not finite at step 3"),
        ("explodes", "training stopped: the loss explodes at step "),
        ("deadly", ": loader process 1 of 1 was killed, as the system does when memory runs out; lower data.workers"),
        ("used", "not empty"),
        ("averaged shards", "train.ema_decay: weights in shards are not averaged"),
        ("full disk", "at the checkpoint of step 6: the disk is full"),
    ):
        assert codes[run] == [2, 2]
        assert words in (folder / f"{run}.rank0").read_text()
        assert (folder / f"{run}.rank1").read_text() == ""
    assert [path.name for path in (folder / "used").iterdir()] == ["something"]
    assert not (folder / "averaged shards").exists()
    assert "; the last good checkpoint is step_3.pt; " in (folder / "full disk.rank0").read_text()


@pytest.mark.long
def test_ranks_end_at_the_same_plateau(ranks: Ranks) -> None:
    folder, codes = ranks
    assert codes["rests"] == [0, 0]
    lines = read_log(folder / "rests", "metrics")
    assert lines[-1]["ended"] == "plateau" and (folder / "rests" / "DONE").read_text().startswith("ended after step ")
    assert [line["step"] for line in lines] == list(range(len(lines))) and len(lines) in (200, 300, 400)


@pytest.mark.parametrize("place", [0, 1])
def test_a_mistake_before_ranks_join_is_said_once_per_machine(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", str(place)), ("LOCAL_RANK", str(place))):
        monkeypatch.setenv(name, value)
    command = ["pretrain", str(tmp_path / "no.yaml"), "--out", str(tmp_path / "run")]
    if place == 0:
        assert main(command) == 2
    else:
        with pytest.raises(SystemExit, match="2"):
            main(command)
    assert capsys.readouterr().err.count("no.yaml") == 1 - place


def test_a_killed_loader_process_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        small_run(tmp_path / "run", deadly=1, data={"workers": 2, "prefetch": 1}, train={"checkpoint_every": 1})
    lines = read_log(tmp_path / "run", "metrics")
    said = str(caught.value)
    assert said.startswith(f"training stopped at step {len(lines)}: loader process ")
    assert (
        " of 2 was killed, as the system does when memory runs out; lower data.workers or data.prefetch (now 1)" in said
    )
    good = f"the last good checkpoint is step_{len(lines)}.pt" if lines else "there is no checkpoint yet"
    assert said.endswith(f"go on with --resume; {good}")


@pytest.mark.long
def test_a_scan_that_one_rank_cannot_use_ends_all(ranks: Ranks) -> None:
    """Whichever rank meets it, at the start or on the way: no hang, and one sentence."""
    folder, codes = ranks
    for item in range(2):
        assert codes[f"poison {item}"] == [2, 2]
        said = (folder / f"poison {item}.rank0").read_text()
        assert f"series item {item}: NaN or infinite values" in said and said.count("\n") == 1
        assert (folder / f"poison {item}.rank1").read_text() == ""
        if (folder / f"poison {item}").exists():
            lines = read_log(folder / f"poison {item}", "metrics")
            assert said.startswith(f"training stopped at step {len(lines)}: ") and len(lines) > 0


def test_a_skipped_step_changes_nothing(tmp_path: Path) -> None:
    train = {"on_nan": "skip", "checkpoint_every": 1, "keep_checkpoints": 30, "steps": 7}
    assert small_run(tmp_path / "run", kind="nan", train=train).finished
    check_skips(tmp_path / "run")
    with pytest.raises(UserError, match=r"not finite at step 5, one more than train\.max_skips 1, batch of"):
        small_run(tmp_path / "few", kind="nan", train=train | {"max_skips": 1})
    assert [line["step"] for line in read_log(tmp_path / "few", "metrics")] == list(range(5))


def test_what_is_not_finite_stops_the_run_and_spoils_no_checkpoint(tmp_path: Path) -> None:
    train = {"checkpoint_every": 1, "keep_checkpoints": 30, "steps": 7}
    with pytest.raises(UserError) as caught:
        small_run(tmp_path / "run", kind="nan", train=train)
    text = str(caught.value)
    assert text.startswith("training stopped: loss or gradient not finite at step 3, batch of series item ")
    assert text.endswith("; the last good checkpoint is step_3.pt")
    assert [line["step"] for line in read_log(tmp_path / "run", "metrics")] == [0, 1, 2]
    assert all(bool(value.isfinite().all()) for value in states(tmp_path / "run", 3).values())
