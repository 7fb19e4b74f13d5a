"""A loss that explodes or rests is found in a run's own record, by a resumed run as by an undisturbed one."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest
from small_runs import small_run
from test_engine import EXPLODES, RESTS, bits

from lejepa_med.config.pretraining import TrainConfig
from lejepa_med.errors import UserError
from lejepa_med.training.log import read_log
from lejepa_med.training.loss_history import FIRST, WINDOW, LossHistory, history_of


def found(losses: list[float | None], **settings: float | None) -> tuple[list[int], LossHistory]:
    """The steps that explode."""
    history = LossHistory(TrainConfig.model_validate(settings))
    verdicts = [history.take(step, loss) for step, loss in enumerate(losses)]
    return [step for step, verdict in enumerate(verdicts) if verdict is not None], history


def falling(steps: int, seed: int = 0) -> list[float]:
    """From 1 to .2, with noise of 30 % and an outlier of three times the loss now and then."""
    draw = random.Random(seed)
    return [
        (0.2 + 0.8 * math.exp(-step / 100)) * math.exp(0.3 * draw.gauss(0, 1)) * (3 if draw.random() < 0.01 else 1)
        for step in range(steps)
    ]


def test_ordinary_noise_is_no_explosion() -> None:
    for seed in range(20):
        assert found(falling(600, seed))[0] == []


def test_a_jump_is_found_at_its_step_and_a_slow_climb_on_its_way() -> None:
    losses = falling(400)
    steps, history = found([*losses, 50.0])
    assert steps == [400] and history.good_until == 399
    climb = [losses[-1] * 1.02**step for step in range(300)]
    steps, history = found([*losses, *climb])
    median = sorted(losses[-WINDOW:])[WINDOW // 2]
    assert 400 + math.log(5) / math.log(1.02) < steps[0] < 400 + math.log(20) / math.log(1.02)
    assert steps == list(range(steps[0], 700)), "not forgotten when the median has followed"
    until = found([*losses, *climb][: steps[0] + 1])[1].good_until
    assert 400 < until < steps[0] and 2 * median < climb[until - 400] < 5 * median


def test_first_steps_a_collapse_and_null() -> None:
    assert found([1.0, *[1e6] * 20])[0] == list(range(FIRST, 21)), "the first loss is what they are measured by"
    collapsed = [1.0, *[10.0**-step for step in range(1, 9)], *[1e-9, 1e-7] * 200]
    assert found(collapsed)[0] == []
    assert found([*falling(50), 1e9], max_loss_ratio=None)[0] == []
    assert found([*falling(50), None, 1e9, None])[0] == [51]
    assert found([*falling(50), None, 1e9, None])[1].skipped == 2


def test_the_record_alone_decides(tmp_path: Path) -> None:
    losses = falling(250)
    lines = [{"step": step, "total": loss} for step, loss in enumerate(losses)]
    lines[30] = {"step": 30, "total": None, "skipped": True}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = TrainConfig(stop_on_plateau=100)
    _, history = found([line["total"] for line in lines[:180]], stop_on_plateau=100)
    assert vars(history_of(tmp_path, 180, config)) == vars(history)
    assert vars(history_of(tmp_path, 0, config)) == vars(LossHistory(config))


def test_an_explosion_stops_and_names_weights_from_before(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        small_run(run, **EXPLODES)
    said = str(caught.value)
    losses = [line["total"] for line in read_log(run, "metrics")]
    exploded = len(losses)
    assert 10 < exploded < 100
    assert said.startswith(f"training stopped: the loss explodes at step {exploded}: ")
    assert (
        "(train.max_loss_ratio 10); start anew with a lower optim.lr or with optim.clip_norm, batch of series" in said
    )
    kept = sorted(int(file.stem.removeprefix("step_")) for file in (run / "checkpoints").glob("step_*.pt"))
    good = int(said.split("the last good checkpoint is step_")[1].split(".pt")[0])
    assert good in kept and losses[good] <= math.sqrt(10) * losses[0]
    after = [step for step in kept if step > good]
    assert len(after) == 0 or max(losses[good + 1 :]) > 2 * losses[0], "later ones are passed over for a reason"

    again = tmp_path / "again"
    shutil.copytree(run, again)
    (again / "checkpoints" / "latest").write_text("step_6.pt")
    with pytest.raises(UserError) as caught:
        small_run(again, resume=True, **EXPLODES)
    assert str(caught.value) == said
    assert (again / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()

    skipping = EXPLODES | {"train": EXPLODES["train"] | {"on_nan": "skip"}}
    with pytest.raises(UserError, match=f"the loss explodes at step {exploded}: "):
        small_run(again, resume=True, **skipping)
    silent = EXPLODES | {"train": EXPLODES["train"] | {"max_loss_ratio": None}}
    assert small_run(again, resume=True, **silent).finished


def test_no_checkpoint_from_before_is_said(tmp_path: Path) -> None:
    few = EXPLODES | {"optim": {"lr": 1e3}, "train": {"steps": 20, "checkpoint_every": 3, "keep_checkpoints": 1}}
    with pytest.raises(UserError, match=r"; every checkpoint that is kept is of a later step than the last good one$"):
        small_run(tmp_path / "run", **few)


@pytest.mark.long
def test_a_run_ends_where_the_loss_rests(tmp_path: Path) -> None:
    rests = RESTS | {"train": RESTS["train"] | {"checkpoint_every": 50, "keep_checkpoints": 9}}
    run = tmp_path / "run"
    assert small_run(run, **rests).finished
    lines = read_log(run, "metrics")
    assert [line["step"] for line in lines] == list(range(len(lines))) and len(lines) in (200, 300, 400)
    assert [line["step"] for line in lines if "ended" in line] == [len(lines) - 1]
    assert (run / "DONE").read_text() == f"ended after step {len(lines)} of 500: plateau (train.stop_on_plateau)\n"
    whole = small_run(tmp_path / "whole", **RESTS | {"train": {"steps": 500}})
    assert whole.finished and (tmp_path / "whole" / "DONE").read_text() == ""
    same = [line for line in read_log(tmp_path / "whole", "metrics") if line["step"] < len(lines)]
    for line in (*lines, *same):
        line.pop("ended", None)
    assert same == lines, "learning rates and losses are those of the whole run"

    before = bits(run)
    assert small_run(run, resume=True, **rests).finished
    assert bits(run) == before, "an ended run stays as it is"
    for place in (150, len(lines) - 50):
        (run / "DONE").unlink()
        (run / "checkpoints" / "latest").write_text(f"step_{place}.pt")
        assert small_run(run, resume=True, **rests).finished
        assert bits(run) == before
