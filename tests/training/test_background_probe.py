"""The loop never waits for a probe but the last one; a stop waits for a volume, not for the probe."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Network, Patterns, settings

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.data.dataset import DatasetSource
from lejepa_med.errors import DataError
from lejepa_med.spec import InferenceSpec
from lejepa_med.training.background_probe import BackgroundProbe, ProbeStoppedError
from lejepa_med.training.log import read_log
from lejepa_med.training.run import Hooks, execute, inference_batches


class Slow:
    """Measures when it is told to, or looks whether it is still wanted."""

    def __init__(self) -> None:
        self.go, self.begun, self.stopped = threading.Event(), threading.Event(), False
        self.bias: list[float] = []

    def __call__(self, backbone: Backbone, check: Callable[[], None]) -> list[dict[str, Any]]:
        assert not backbone.training
        self.begun.set()
        while not self.go.wait(0.01):
            try:
                check()
            except ProbeStoppedError:
                self.stopped = True
                raise
        assert isinstance(backbone, Network)
        return [{"task": "a", "linear": float(backbone.conv.bias.detach()[0])}]


def state(value: float) -> dict[str, Any]:
    network = Network()
    network.conv.bias.data.fill_(value)
    return network.state_dict()


def test_one_at_a_time_and_what_is_left_out_is_said_once() -> None:
    slow, heard = Slow(), []
    with BackgroundProbe(Network(), slow, every=10, warn=heard.append) as probe:
        assert [done for done in range(46) if probe.due(done)] == [0, 10, 20, 30, 40]
        assert probe.start(0, state(0.0)) == []
        for done in (10, 20):
            assert probe.start(done, state(float(done))) == [] and probe.finished() == []
        assert len(heard) == 1 and heard[0].startswith("step 10: the online probe of step 0 still runs")
        slow.go.set()
        assert probe.finished(wait=True) == [{"step": 0, "task": "a", "linear": 0.0}]
        assert probe.finished(wait=True) == []
        slow.go.clear()
        probe.start(30, state(30.0))
        threading.Timer(0.2, slow.go.set).start()
        assert probe.is_running(wait_s=0.0)
        while probe.is_running(wait_s=0.1):
            pass
        assert probe.start(45, state(45.0)) == [{"step": 30, "task": "a", "linear": 30.0}], "the last waits"
        assert not probe.is_running(wait_s=10.0)
        assert probe.start(45, state(45.0)) == [{"step": 45, "task": "a", "linear": 45.0}], "once"
        assert probe.finished(wait=True) == []
    assert len(heard) == 1


def test_the_weights_are_those_of_the_moment() -> None:
    slow = Slow()
    network = Network()
    with BackgroundProbe(Network(), slow, every=1) as probe:
        network.conv.bias.data.fill_(1.0)
        probe.start(1, network.state_dict())
        network.conv.bias.data.fill_(2.0)  # the training goes on
        slow.go.set()
        assert probe.finished(wait=True)[0]["linear"] == 1.0


def test_a_stop_ends_what_runs() -> None:
    slow = Slow()
    with BackgroundProbe(Network(), slow, every=10) as probe:
        probe.start(0, state(0.0))
        assert slow.begun.wait(10)
    assert slow.stopped and probe.finished(wait=True) == []


def signal_at(number: int) -> Callable[[str, int, int], None]:
    return lambda stage, done, total: os.kill(os.getpid(), signal.SIGTERM) if done == number else None


@pytest.mark.parametrize("how", ["stop", "error"])
def test_what_has_ended_or_failed_is_not_lost_when_the_run_stops(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that ends only once the loop no longer looks: between the last step and the stop."""
    leaves, heard = threading.Event(), list[str]()
    stop = BackgroundProbe.stop

    def late_stop(probe: BackgroundProbe) -> Any:
        leaves.set()
        probe.is_running(wait_s=10.0)
        return stop(probe)

    monkeypatch.setattr(BackgroundProbe, "stop", late_stop)

    def measure(backbone: Backbone, check: Callable[[], None]) -> list[dict[str, Any]]:
        assert leaves.wait(10)
        if how == "stop":
            return [{"task": "a", "linear": 0.5}]
        raise DataError("volume abc: damaged")

    task = {"name": "a", "labels": "none.csv", "column": "none"}
    config = settings(online_probe={"tasks": [task], "every": 100}, train={"steps": 6})
    source = DatasetSource(Patterns(list("abcdefgh")), list("abcdefgh"))
    hooks = Hooks(progress=signal_at(3), probe=measure, warn=heard.append)
    assert not execute(config, source, None, tmp_path / "run", own=Network(), hooks=hooks).finished
    lines = read_log(tmp_path / "run", "probes")
    assert lines == ([{"step": 0, "task": "a", "linear": 0.5}] if how == "stop" else [])
    told = "the online probe of step 0 failed and is switched off: volume abc: damaged"
    assert (told in heard) == (how == "error")


def test_windows_for_batchnorm_are_not_read_on_after_a_stop() -> None:
    names = list("abcdefgh")
    source = DatasetSource(Patterns(names), names)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise ProbeStoppedError

    spec = InferenceSpec(window=(8, 8, 8), pitch_mm=1.0)
    assert len(torch.cat(list(inference_batches(source, spec, torch.device("cpu"))))) == 8 * 2**3, "all windows"
    with pytest.raises(ProbeStoppedError):
        list(inference_batches(source, spec, torch.device("cpu"), check=check))
    assert calls == 4
    reestimate_batchnorm(Network("no norm"), inference_batches(source, spec, torch.device("cpu"), check=check))
    assert calls == 4, "a backbone without BatchNorm has no use for them: nothing is read"


@pytest.mark.parametrize(
    ("error", "told"), [(DataError("volume abc: damaged"), "volume abc: damaged"), (OSError("/home/doe"), "OSError")]
)
def test_a_failure_is_told_once_without_foreign_text(error: Exception, told: str) -> None:
    def fail(backbone: Backbone, check: Callable[[], None]) -> list[dict[str, Any]]:
        raise error

    heard: list[str] = []
    with BackgroundProbe(Network(), fail, every=1, warn=heard.append) as probe:
        probe.start(0, state(0.0))
        assert probe.finished(wait=True) == []
        for done in range(1, 10):
            assert probe.start(done, state(0.0)) == []
    assert heard == [f"the online probe of step 0 failed and is switched off: {told}"]


def test_other_ranks_know_when_and_do_nothing() -> None:
    with BackgroundProbe(None, None, every=3) as probe:
        assert probe.due(3) and probe.start(3, {}) == [] and probe.finished(wait=True) == []
