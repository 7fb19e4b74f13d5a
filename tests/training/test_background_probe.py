"""The loop never waits for a probe but the last one; a stop waits for a volume, not for the probe."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from small_runs import Network

from lejepa_med.backbones import Backbone
from lejepa_med.errors import DataError
from lejepa_med.training.background_probe import BackgroundProbe, ProbeStoppedError


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
        assert probe.start(45, state(45.0), wait=True) == [{"step": 30, "task": "a", "linear": 30.0}], "the last waits"
        assert probe.start(45, state(45.0), wait=True) == [{"step": 45, "task": "a", "linear": 45.0}], "once"
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
