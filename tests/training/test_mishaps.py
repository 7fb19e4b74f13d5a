"""What disks, kills and moved files do to a run costs steps, never the run, and never its truth."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Network, small_run

from lejepa_med.errors import DataError, UserError
from lejepa_med.evaluation.selection_runs import read_log as read_selected
from lejepa_med.training import log as log_module
from lejepa_med.training.log import RunLog, read_log
from lejepa_med.training.loss_history import LossHistory
from lejepa_med.training.stopping import StopFlag
from lejepa_med.viz.curves import loss_curves

TRAIN = {"steps": 6, "checkpoint_every": 2, "keep_checkpoints": 9}


def go_back(run: Path, step: int) -> None:
    (run / "checkpoints" / "latest").write_text(f"step_{step}.pt")
    (run / "DONE").unlink(missing_ok=True)


def test_scans_that_are_prepared_otherwise_are_refused(tmp_path: Path) -> None:
    """Weights of two preparations would be labelled as of the second."""
    run = small_run(tmp_path / "run", train=TRAIN).path
    go_back(run, 2)
    spec = (run / "spec.yaml").read_text()
    changed = spec.replace("window:\n  - 8", "window:\n  - 16", 1)
    assert changed != spec
    (run / "spec.yaml").write_text(changed)
    with pytest.raises(DataError, match=r"prepared otherwise \(inference\.window differ\)"):
        small_run(run, train=TRAIN, resume=True)
    assert (run / "spec.yaml").read_text() == changed, "nothing is written before it fits"


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    undisturbed = small_run(tmp_path / "whole", train=TRAIN).path
    run = small_run(tmp_path / "run", train=TRAIN).path
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    (run / "DONE").unlink()
    assert small_run(run, train=TRAIN, resume=True).finished
    for name in ("metrics.jsonl", "backbone.safetensors"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes()


def test_first_weights_may_be_gone_when_a_run_goes_on(tmp_path: Path) -> None:
    first = small_run(tmp_path / "first", train=TRAIN).path
    init = {"init_from": str(first)}
    run = small_run(tmp_path / "run", train=TRAIN, **init).path
    before = (run / "backbone.safetensors").read_bytes()
    assert before != (first / "backbone.safetensors").read_bytes()
    first.rename(tmp_path / "moved")
    go_back(run, 4)
    small_run(run, train=TRAIN, resume=True, **init)
    assert (run / "backbone.safetensors").read_bytes() == before


class Full:
    """A stream on a disk that takes so many more lines."""

    def __init__(self, stream: Any, lines: int) -> None:
        self._stream, self._left = stream, lines

    def write(self, text: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device: /hospital/doe")
        self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_a_disk_that_fills_between_checkpoints_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the run goes on from its last checkpoint, to the bit, once there is room."""
    undisturbed = small_run(tmp_path / "whole", train=TRAIN).path

    class SmallDisk(RunLog):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self._streams["metrics"] = Full(self._streams["metrics"], 3)  # type: ignore[assignment]

    monkeypatch.setattr("lejepa_med.training.observer.RunLog", SmallDisk)
    with pytest.raises(UserError, match=r"^training stopped at step \d: the disk is full") as caught:
        small_run(tmp_path / "run", train=TRAIN)
    assert "make room, then go on with --resume; the last good checkpoint is step_2.pt" in str(caught.value)
    assert "doe" not in str(caught.value)
    monkeypatch.undo()
    small_run(tmp_path / "run", train=TRAIN, resume=True)
    for name in ("metrics.jsonl", "backbone.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_lines_are_on_the_disk_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a loss of power a checkpoint finds all lines of its steps."""
    flushed: list[int] = []
    flush = os.fsync

    def remember(number: int) -> None:
        if Path(f"/proc/self/fd/{number}").readlink().name == "metrics.jsonl":
            flushed.append((tmp_path / "run" / "metrics.jsonl").read_text().count("\n"))
        flush(number)

    monkeypatch.setattr(log_module.os, "fsync", remember)
    small_run(tmp_path / "run", train=TRAIN)
    assert flushed == [2, 4, 6]


def test_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0, "total": 1.0}\n{"step": 1, "tot')
    assert read_log(tmp_path, "metrics") == [{"step": 0, "total": 1.0}]
    file.write_text('{"step": 0, "total": 1.0}\n{"step": 1, "total": 2.0}')  # only its end is missing
    with RunLog(tmp_path, 2) as log:
        log.write("metrics", step=2, total=3.0)
    assert [line["step"] for line in read_log(tmp_path, "metrics")] == [0, 1, 2]


def test_what_a_resume_rewrites_is_whole_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(tmp_path / "run", train=TRAIN).path
    go_back(run, 4)
    texts = {name: (run / name).read_text() for name in ("config.yaml", "spec.yaml", "metrics.jsonl")}
    replace = Path.replace
    seen: list[str] = []

    def killed(self: Path, target: Path) -> Path:
        if target.name in texts:
            assert target.read_text() == texts[target.name], "still the old one"
            seen.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    small_run(run, train=TRAIN, resume=True)
    assert seen[:3] == ["config.yaml", "spec.yaml", "metrics.jsonl"]


def test_weights_that_an_update_spoiled_are_not_called_good(tmp_path: Path) -> None:
    """The update of step 2 makes them infinite; the checkpoint behind it is the newest."""

    class Spoiled(Network):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training and torch.is_grad_enabled():
                self.trained_passes += 1
            if self.trained_passes == 2 * 3 + 1:  # two passes a step
                with torch.no_grad():
                    self.conv.weight.fill_(torch.inf)
            return super().forward(images)

    with pytest.raises(UserError, match="loss or gradient not finite at step 3") as caught:
        small_run(tmp_path / "run", train=TRAIN | {"checkpoint_every": 1}, network=Spoiled())
    assert "the last good checkpoint is step_2.pt" in str(caught.value)


def test_a_batch_that_is_bad_does_not_make_weights_bad(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite at step 3") as caught:
        small_run(tmp_path / "run", kind="nan", train=TRAIN | {"checkpoint_every": 1})
    assert "the last good checkpoint is step_3.pt" in str(caught.value)


def test_a_skipped_step_damages_no_record(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", kind="nan", train=TRAIN | {"on_nan": "skip"}).path
    lines = read_selected(run, "metrics")
    assert [line["step"] for line in lines if line.get("skipped")] == [3, 5]
    scales = {axes.get_title(loc="left"): axes.get_yscale() for axes in loss_curves(run).axes}
    assert set(scales) >= {"Total loss", "SIGReg"}


def test_the_last_step_is_no_plateau() -> None:
    from lejepa_med.config.pretraining import TrainConfig

    for steps, ended in ((300, False), (301, True)):
        history = LossHistory(TrainConfig(steps=steps, stop_on_plateau=150))
        for step in range(300):
            history.take(step, 1.0)
        assert history.has_ended == ended


def test_a_second_interrupt_does_not_wait(capfd: pytest.CaptureFixture[str]) -> None:
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.stopped
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("stopping: this step is finished and saved first; Ctrl-C now ends it") == 1


def test_a_signal_before_the_first_step_leaves_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While volumes are read into memory, say."""
    from lejepa_med.training import run as run_module

    placed = run_module.placed_source

    def slowly(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return placed(*given)

    monkeypatch.setattr(run_module, "placed_source", slowly)
    run = small_run(tmp_path / "run", train=TRAIN)
    assert not run.finished and (run.path / "STOPPED").exists()
    assert read_log(run.path, "metrics") == []
    monkeypatch.undo()
    assert small_run(run.path, train=TRAIN, resume=True).finished
    assert not (run.path / "STOPPED").exists()
    assert json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 5
