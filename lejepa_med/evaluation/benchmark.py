"""The grid, computed cell by cell; a stopped benchmark goes on where it was.

OUT/benchmark.yaml           the config
OUT/cells/<key>.json         one result each, see `run_cell`
OUT/superseded/              cells of an earlier config in the same folder
OUT/features/<encoder>.npz   frozen features, see `encoders`
OUT/summary.json             means, intervals and paired differences, see `summary`
"""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lejepa_med.config.evaluation import BenchmarkConfig, EncoderConfig
from lejepa_med.config.loading import dump_yaml
from lejepa_med.data.cache import write_atomically
from lejepa_med.errors import UserError
from lejepa_med.evaluation.device import pick_device
from lejepa_med.evaluation.encoders import (
    NoWeightsError,
    frozen_features,
    inference_of,
    require_weights,
    trainable_backbone,
    window_store,
)
from lejepa_med.evaluation.finetune import FinetuneTask, finetune
from lejepa_med.evaluation.grid import Cell, Grid, PreparedTask, plan
from lejepa_med.evaluation.metrics import Array, headline, scores
from lejepa_med.evaluation.probes import ProbeTask, knn_probe, linear_probe, standardise
from lejepa_med.evaluation.splits import strata_of
from lejepa_med.evaluation.summary import BenchmarkSummary, summarise
from lejepa_med.evaluation.window_store import WindowStore

__all__ = ["BenchmarkSummary", "Cell", "plan", "run_benchmark"]
Progress = Callable[[str, int, int], None]


def run_benchmark(config: BenchmarkConfig, out: Path, progress: Progress | None = None) -> BenchmarkSummary:
    """Computes the cells that are not there yet, and the summary of all.

    `progress(what, done, total)` is called after every cell, and while features are computed.

    Raises:
        DataError: labels or cache cannot be used, or a run was pretrained on test patients.
    """
    grid = Grid.open(config)
    leaks = grid.leaks()
    cells = grid.cells()
    (out / "cells").mkdir(parents=True, exist_ok=True)
    write_atomically(out / "benchmark.yaml", dump_yaml(config).encode())
    _set_aside(out, cells)
    todo = [cell for cell in cells if not _is_done(out, cell)]
    done = len(cells) - len(todo)
    stores: dict[str, WindowStore] = {}
    for position, encoder in enumerate(config.encoders):
        source = _Source(grid, encoder, position, out, stores, progress)
        for cell in [cell for cell in todo if cell.encoder == encoder.name]:
            result = run_cell(cell, grid.tasks[cell.task], source)
            write_atomically(cell_file(out, cell), json.dumps(result, allow_nan=False).encode())
            done += 1
            if progress is not None:
                progress(f"{cell.encoder}, {cell.method}", done, len(cells))
    summary = summarise(grid, [json.loads(cell_file(out, cell).read_text()) for cell in cells], leaks)
    write_atomically(out / "summary.json", json.dumps(summary.as_json(), indent=1, allow_nan=False).encode())
    return summary


def cell_file(out: Path, cell: Cell) -> Path:
    """Where a cell's result lies."""
    return out / "cells" / f"{cell.key}.json"


def run_cell(cell: Cell, task: PreparedTask, source: _Source) -> dict[str, Any]:
    """The result of one cell: its settings, status, message, headline metric, all scores and the test predictions."""
    started = time.perf_counter()
    result: dict[str, Any] = {
        **dataclasses.asdict(cell),
        "status": "ok",
        "message": "",
        "metric": headline(task.labelled.kind),
    }
    result |= {"value": None, "scores": {}, "predictions": None}
    try:
        prediction, penalty = source.predict(cell, task)
    except NoWeightsError as error:
        result |= {"status": "no_weights", "message": str(error)}
    except UserError as error:
        result |= {"status": "failed", "message": str(error)}
    except Exception as error:  # a defect in one cell must not cost the others; its traceback is kept
        result |= {
            "status": "failed",
            "message": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }
    else:
        test = task.split.test
        truth = task.labelled.target[test]
        found = {name: _plain(value) for name, value in scores(task.labelled.kind, truth, prediction).items()}
        result |= {"value": found[result["metric"]], "scores": found, "penalty": penalty}
        result["predictions"] = {
            "series_key": task.labelled.table["series_key"].iloc[test].tolist(),
            "patient_key": list(task.test_groups),
            "truth": truth.tolist(),
            "score": np.round(prediction, 6).tolist(),
        }
    result["seconds"] = round(time.perf_counter() - started, 4)
    return result


class _Source:
    """Predictions of one encoder; its features are computed once, and a failure to do so is remembered."""

    def __init__(
        self,
        grid: Grid,
        encoder: EncoderConfig,
        position: int,
        out: Path,
        stores: dict[str, WindowStore],
        progress: Progress | None,
    ) -> None:
        self.grid, self.encoder, self.position, self.out = grid, encoder, position, out
        self.stores, self.progress = stores, progress
        self.device = pick_device(grid.config.device)
        self._features: NDArray[np.float32] | Exception | None = None
        self._standardised: tuple[str, Array] | None = None

    def predict(self, cell: Cell, task: PreparedTask) -> tuple[Array, float | None]:
        """Scores of the task's test rows and, for the linear probe, the inverse penalty."""
        require_weights(self.encoder, self.position)
        rows = task.subset(cell.budget, cell.seed)
        if cell.method == "finetune":
            return self._finetune(cell, task, rows), None
        labelled, config = task.labelled, self.grid.config
        groups = tuple(labelled.groups[row] for row in rows)
        probe = ProbeTask(labelled.target[rows], strata_of(labelled, rows), groups, len(labelled.classes))
        features = self._standard(task)
        with threadpool_limits(limits=1, user_api="blas"):  # fits this small only wait for each other
            if cell.method == "knn":
                return knn_probe(features[rows], features[task.split.test], probe, config.probe), None
            return linear_probe(features[rows], features[task.split.test], probe, config.probe)

    def _standard(self, task: PreparedTask) -> Array:
        if self._standardised is None or self._standardised[0] != task.config.name:
            standard = standardise(self._frozen()[task.rows], task.split.train)
            self._standardised = (task.config.name, standard)
        return self._standardised[1]

    def _frozen(self) -> NDArray[np.float32]:
        if self._features is None:
            try:
                self._features = self._computed()
            except Exception as error:
                self._features = error
        if isinstance(self._features, Exception):
            raise self._features
        return self._features

    def _computed(self) -> NDArray[np.float32]:
        grid, total = self.grid, len(self.grid.table)

        def report(done: int) -> None:
            if self.progress is not None:
                self.progress(f"{self.encoder.name}, features", done, total)

        folder = self.out / "features"
        return frozen_features(self.encoder, grid.cache, grid.table, grid.fit, folder, self.device, report)

    def _finetune(self, cell: Cell, task: PreparedTask, rows: NDArray[np.int64]) -> Array:
        backbone = trainable_backbone(self.encoder, cell.seed)
        geometry = inference_of(backbone).model_dump_json()
        if geometry not in self.stores:
            self.stores.clear()  # one geometry at a time in memory
            self.stores[geometry] = window_store(self.grid.cache, backbone)
        series = task.labelled.table["series_key"].tolist()
        labelled = FinetuneTask(
            tuple(series[row] for row in rows), task.labelled.target[rows], len(task.labelled.classes), cell.seed
        )
        test = [series[row] for row in task.split.test]
        return finetune(backbone, self.stores[geometry], labelled, test, self.grid.config.finetune, self.device)


def _is_done(out: Path, cell: Cell) -> bool:
    file = cell_file(out, cell)
    return file.exists() and json.loads(file.read_text())["status"] == "ok"


def _set_aside(out: Path, cells: list[Cell]) -> None:
    """Results that this config does not ask for leave `cells`, so that no table mixes two configs."""
    wanted = {cell.key for cell in cells}
    for file in (out / "cells").glob("*.json"):
        if file.stem not in wanted:
            (out / "superseded").mkdir(exist_ok=True)
            file.replace(out / "superseded" / file.name)


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
