"""The numbers of a run's log, handed on to TensorBoard, Weights & Biases and MLflow. JSON lines stay the record.

RUN/tensorboard/events.out.tfevents.N   written here, not by TensorBoard's own writer, which puts the host into the name
What leaves this module: numbers by name, and the settings without their paths. Nothing is sent over a network unless
the user says so: WANDB_MODE=online, or an MLflow URI that names a server. After a resume no step is there twice.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lejepa_med.config import PretrainConfig
from lejepa_med.config.tracking import LoggingConfig
from lejepa_med.errors import ConfigError

_ID = "tracking_id.txt"
_SEND_EVERY_S = 5.0
_MOST_AT_ONCE = 1000  # metrics: MLflow's limit


@runtime_checkable
class Tracker(Protocol):
    """Takes scalars of a step, in the order of the steps."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def build_trackers(run: Path, start: int, config: PretrainConfig) -> list[Tracker]:
    """Those that the config asks for, ready to go on at step `start`. Raises ConfigError where one is not installed.

    What was opened before another one fails is closed.
    """
    chosen, settings = config.logging, _settings(config)
    with ExitStack() as opened:
        trackers: list[Tracker] = []

        def add(tracker: Tracker) -> None:
            trackers.append(tracker)
            opened.callback(tracker.close)

        if writes_tensorboard(chosen):
            add(TensorBoard(run / "tensorboard", start))
        if chosen.wandb is not None:
            add(Wandb(run, start, chosen.wandb, settings))
        if chosen.mlflow is not None:
            add(Mlflow(run, start, chosen.mlflow, settings))
        opened.pop_all()
    return trackers


def require_trackers(config: LoggingConfig) -> None:
    """Raises ConfigError where a tracker that is asked for is not installed: before a run begins."""
    for name in ("wandb", "mlflow"):
        if getattr(config, name) is not None:
            _require(name, f"logging.{name}")
    writes_tensorboard(config)


def writes_tensorboard(config: LoggingConfig) -> bool:
    """Whether event files are written. Raises ConfigError where they are asked for and cannot be."""
    if config.tensorboard is True:
        _require("tensorboard", "logging.tensorboard")
    return config.tensorboard is True or (config.tensorboard == "auto" and _is_installed("tensorboard"))


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _require(name: str, key: str) -> Any:
    if not _is_installed(name):
        raise ConfigError(f'{key}: {name} is not installed; pip install "lejepa-med[{name}]"')
    return importlib.import_module(name)


def _settings(config: PretrainConfig) -> dict[str, Any]:
    """Dotted settings without the paths of a hospital's disk."""
    settings = config.model_dump(exclude={"online_probe": {"tasks"}})  # which name files of labels
    return {key: value for key, value in _flat(settings) if not isinstance(value, Path)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if prefix == "" and key == "logging":
            continue  # an MLflow URI may be a path, or hold a password
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class TensorBoard:
    """Event files of one run. A resumed run writes the steps that are kept into a new file, and removes the old ones:
    a browser that is open on them sees the new one."""

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        before = sorted(folder.glob("events.out.tfevents.*"))
        numbers = [int(found[0]) for file in before if (found := re.findall(r"\.(\d+)$", file.name))]
        self._file = folder / f"events.out.tfevents.{max(numbers, default=-1) + 1:06d}"
        self._stream = self._file.open("wb")
        self._records = RecordWriter(self._stream)
        self._write(file_version="brain.Event:2")
        for file in before:
            for event in _events(file, start):
                self._records.write(event.SerializeToString())
        self._records.flush()
        for file in before:
            file.unlink()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=points))
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())


def _events(file: Path, start: int) -> Iterator[Any]:
    """Those of the steps before `start`; a record that a kill cut short ends the file."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    yield from (
        event for event in LegacyEventFileLoader(str(file)).Load() if event.HasField("summary") and event.step < start
    )


class Wandb:
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync` sends RUN/wandb/offline-*."""

    def __init__(self, run: Path, start: int, project: str, settings: dict[str, Any]) -> None:
        wandb = _require("wandb", "logging.wandb")
        self._start = start
        self._run = wandb.init(
            project=project,
            dir=str(run),
            id=_identity(run, start),
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=settings,
            settings=wandb.Settings(
                disable_git=True, disable_code=True, save_code=False, console="off", host="", x_disable_meta=True,
                x_disable_stats=True, silent=True,
            ),
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """A run of MLflow at a tracking URI. Numbers are sent every few seconds, not at every step: each call waits for the
    server."""

    def __init__(self, run: Path, start: int, uri: str, settings: dict[str, Any]) -> None:
        from_mlflow = _require("mlflow", "logging.mlflow")
        self._client = from_mlflow.MlflowClient(tracking_uri=uri)
        self._point = importlib.import_module("mlflow.entities")
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        kept = run / "mlflow_run.txt"
        if start and kept.exists():
            self._id = kept.read_text().strip()
        else:
            experiment = self._client.get_experiment_by_name("lejepa-med")
            owner = experiment.experiment_id if experiment else self._client.create_experiment("lejepa-med")
            self._id = self._client.create_run(owner, tags={"mlflow.user": ""}).info.run_id
            kept.write_text(self._id)
            parameters = [self._point.Param(key, str(value)[:250]) for key, value in settings.items()]
            for first in range(0, len(parameters), 100):
                self._client.log_batch(self._id, params=parameters[first : first + 100])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [self._point.Metric(name, value, now, step) for name, value in values.items()]
        if time.monotonic() - self._sent > _SEND_EVERY_S:
            self._send()

    def close(self) -> None:
        self._send()
        self._client.set_terminated(self._id)

    def _send(self) -> None:
        for first in range(0, len(self._waiting), _MOST_AT_ONCE):
            self._client.log_batch(self._id, metrics=self._waiting[first : first + _MOST_AT_ONCE])
        self._waiting, self._sent = [], time.monotonic()


def _identity(run: Path, start: int) -> str:
    """A name that says nothing, kept for the case that the run is resumed."""
    file = run / _ID
    if not (start and file.exists()):
        file.write_text(os.urandom(8).hex())
    return file.read_text().strip()
