"""TensorBoard and the others get the numbers of the log, each step once, and nothing that says whose they are."""

from __future__ import annotations

import json
import socket
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_runs import settings, small_run
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from lejepa_med.config import PretrainConfig
from lejepa_med.config.tasks import OnlineProbeConfig
from lejepa_med.errors import ConfigError
from lejepa_med.training import trackers
from lejepa_med.training.log import RunLog, last_line


def tracked(**logging: Any) -> PretrainConfig:
    return settings(logging=logging)


def points(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all event files, read as TensorBoard reads them."""
    found = []
    for file in sorted(folder.glob("*tfevents*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def write(run: Path, start: int, stop: int, config: PretrainConfig) -> None:
    with RunLog(run, start, config) as log:
        for step in range(start, stop):
            log.write("metrics", step=step, total=step / 4, sigreg=float("nan"))
            log.write("timing", step=step, samples_per_s=2.0, residency="disk")


def test_event_files_hold_the_scalars_of_the_log(tmp_path: Path) -> None:
    write(tmp_path, 0, 3, tracked())
    expected = [(step, name, value) for step in range(3)
                for name, value in (("metrics/total", step / 4), ("timing/samples_per_s", 2.0))]  # fmt: skip
    assert points(tmp_path / "tensorboard") == expected
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert socket.gethostname() not in file.name
    assert socket.gethostname().encode() not in file.read_bytes() and str(tmp_path).encode() not in file.read_bytes()


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    """Killed at step 6 within a record, resumed from step 3, and once more from step 4."""
    write(tmp_path, 0, 6, tracked())
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    write(tmp_path, 3, 5, tracked())
    write(tmp_path, 4, 7, tracked())
    names = Counter((step, name) for step, name, _ in points(tmp_path / "tensorboard"))
    assert names == {(step, name): 1 for step in range(7) for name in ("metrics/total", "timing/samples_per_s")}
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_run_writes_them_by_default_and_its_record_is_the_same_without(tmp_path: Path) -> None:
    small_run(tmp_path / "with")
    small_run(tmp_path / "without", logging={"tensorboard": False})
    assert not (tmp_path / "without" / "tensorboard").exists()
    record = (tmp_path / "with" / "metrics.jsonl").read_text()
    assert record == (tmp_path / "without" / "metrics.jsonl").read_text()
    drawn = {step: value for step, name, value in points(tmp_path / "with" / "tensorboard") if name == "metrics/total"}
    logged = [json.loads(line) for line in record.splitlines()]
    assert drawn == {line["step"]: pytest.approx(line["total"], rel=1e-6) for line in logged}


def test_what_is_not_installed_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_is_installed", lambda name: False)
    assert not trackers.writes_tensorboard(tracked().logging)
    for given in ({"tensorboard": True}, {"wandb": "heads"}, {"mlflow": "file:m"}):
        (name,) = given
        with pytest.raises(ConfigError, match=rf'logging\.{name}: .* pip install "lejepa-med\[{name}\]"'):
            RunLog(tmp_path, 0, tracked(**given))


class FakeRun:
    """What a run of wandb is asked for."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None: ...

    def log(self, values: dict[str, float]) -> None:
        if len(self.logged) == 2:
            raise ConnectionError("host secret")
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], FakeRun]]:
    """Takes the place of the package; each call of `init` with the run that it gave."""
    calls: list[tuple[dict[str, Any], FakeRun]] = []

    def init(**given: Any) -> FakeRun:
        calls.append((given, FakeRun()))
        return calls[-1][1]

    package = types.ModuleType("wandb")
    package.init, package.Settings = init, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(trackers, "_is_installed", lambda name: name == "wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return calls


def test_wandb_is_offline_gets_no_path_and_goes_on_as_the_same_run(
    tmp_path: Path, wandb: list[tuple[dict[str, Any], FakeRun]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(logging={"wandb": "heads"}, data={"cache": "/hospital/doe", "monitor_fraction": 0.0})
    task = {"name": "grade", "labels": "/hospital/doe/labels.csv", "column": "grade"}
    config = config.model_copy(update={"online_probe": OnlineProbeConfig(tasks=[task])})
    with RunLog(tmp_path, 0, config) as log:
        log.write("metrics", step=0, total=1.5)
    monkeypatch.setenv("WANDB_MODE", "online")
    RunLog(tmp_path, 1, config).__exit__()
    (first, run), (second, _) = wandb
    assert (first["mode"], second["mode"], first["project"]) == ("offline", "online", "heads")
    assert first["id"] == second["id"] and run.logged == [{"step": 0, "metrics/total": 1.5}] and run.finished
    assert "doe" not in repr(first["config"]) and first["config"]["optim.lr"] == config.optim.lr


def test_a_tracker_that_fails_does_not_stop_the_record(
    tmp_path: Path, wandb: list[tuple[dict[str, Any], FakeRun]]
) -> None:
    with RunLog(tmp_path, 0, tracked(wandb="heads")) as log:
        for step in range(2):
            log.write("metrics", step=step, total=1.0)
        with pytest.warns(UserWarning, match=r"^Wandb takes no more numbers from step 2 on \(ConnectionError\)$"):
            log.write("metrics", step=2, total=1.0)
        log.write("metrics", step=3, total=1.0)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_the_last_whole_line_of_a_growing_log(tmp_path: Path) -> None:
    assert last_line(tmp_path, "metrics") == {}
    lines = [json.dumps({"step": step, "total": 0.5, "lr": None}) for step in range(3000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 3000, "to')
    assert last_line(tmp_path, "metrics") == {"step": 2999, "total": 0.5}


class FakeClient:
    """What of MlflowClient is used; a server that is down raises."""

    down = False

    def __init__(self, tracking_uri: str) -> None:
        self.uri, self.sent, self.ended = tracking_uri, [], 0
        FAKE.append(self)

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return "1"

    def create_run(self, owner: str, tags: dict[str, str]) -> Any:
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run"))

    def log_batch(self, run: str, params: Any = (), metrics: Any = ()) -> None:
        if self.down and metrics:
            raise ConnectionError("host")
        assert run == "run" and len(params) <= 100 and len(metrics) <= 1000
        self.sent.append([(point.step, point.key, point.value) for point in metrics])

    def set_terminated(self, run: str) -> None:
        self.ended += 1


FAKE: list[FakeClient] = []


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[FakeClient]:
    entities = types.ModuleType("mlflow.entities")
    point = lambda key, value, *rest: types.SimpleNamespace(key=key, value=value, step=rest[-1] if rest else None)  # noqa: E731
    entities.Param, entities.Metric = point, point
    package = types.ModuleType("mlflow")
    package.MlflowClient, package.entities = FakeClient, entities
    for module in (package, entities):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(trackers, "_is_installed", lambda name: name == "mlflow")
    monkeypatch.setattr(FakeClient, "down", False)
    FAKE.clear()
    return FAKE


def test_mlflow_is_called_now_and_then_and_gets_all(
    tmp_path: Path, mlflow: list[FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(trackers.time, "monotonic", lambda: next(clock) / 2)
    with RunLog(tmp_path, 0, tracked(mlflow="sqlite:///m.db")) as log:
        for step in range(700):
            log.write("metrics", step=step, total=float(step), lr=0.5)
    (client,) = mlflow
    batches = [batch for batch in client.sent if batch]
    got = [(step, value) for batch in batches for step, key, value in batch if key == "metrics/total"]
    assert got == [(step, float(step)) for step in range(700)] and client.ended == 1
    assert 20 < len(batches) < 100, "not at every step"


def test_a_server_that_is_down_at_the_end_is_told(tmp_path: Path, mlflow: list[FakeClient]) -> None:
    warned = pytest.warns(UserWarning, match=r"^Mlflow may lack the last numbers \(ConnectionError\)$")
    with warned, RunLog(tmp_path, 0, tracked(mlflow="http://server")) as log:
        log.write("metrics", step=0, total=1.0)
        FakeClient.down = True
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "total": 1.0}\n'


def test_a_tracker_that_is_missing_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_is_installed", lambda name: False)
    with pytest.raises(ConfigError, match="mlflow is not installed"):
        small_run(tmp_path / "run", logging={"mlflow": "sqlite:///m.db"})
    assert not (tmp_path / "run").exists()
