"""The grid, computed cell by cell, in several processes if asked for; a stopped benchmark goes on where it was.

OUT/benchmark.yaml           the config, with the CT windows that were used
OUT/cells/<key>.json         one result each, see `cells`
OUT/superseded/              cells of an earlier config in the same folder
OUT/features/<encoder>.npz   frozen features, see `frozen`
OUT/features/<encoder>.json  what they cost: volumes per second, parameters, memory
OUT/thumbnails.npz           what the check for duplicates looks at, see `duplicates`
OUT/summary.json             means, intervals and paired differences, see `summary`
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from joblib import Parallel, delayed

from lejepa_med.config.evaluation import BenchmarkConfig, EncoderConfig, slug
from lejepa_med.config.loading import dump_yaml
from lejepa_med.data.cache import write_atomically
from lejepa_med.evaluation.cells import cell_file, is_done, run_cell, write_cell
from lejepa_med.evaluation.costs import Meter
from lejepa_med.evaluation.ct_window import with_ct_windows
from lejepa_med.evaluation.device import pick_device
from lejepa_med.evaluation.duplicates import find_duplicates
from lejepa_med.evaluation.encoders import TRAINING, num_parameters
from lejepa_med.evaluation.grid import Cell, Grid
from lejepa_med.evaluation.loadable import require_loadable
from lejepa_med.evaluation.predictions import EncoderPredictions, WindowStores
from lejepa_med.evaluation.summary import BenchmarkSummary, summarise

__all__ = ["BenchmarkSummary", "Cell", "plan", "run_benchmark"]
Progress = Callable[[str, int, int], None]


def plan(config: BenchmarkConfig) -> list[Cell]:
    """The cells that `run_benchmark` would compute; reads labels, the cache's manifest and weights, no volume."""
    return _open(config).cells()


def run_benchmark(config: BenchmarkConfig, out: Path, progress: Progress | None = None) -> BenchmarkSummary:
    """Computes the cells that are not there yet, and the summary of all.

    `progress(what, done, total)` is called after every cell, and while features are computed.

    Raises:
        DataError: labels or cache cannot be used, or a run was pretrained on test patients.
        WeightsError: a run, or weights that are given, cannot be loaded.
    """
    grid = _open(config)
    leaks = grid.leaks()
    duplicates = find_duplicates(grid, out, progress)
    cells = grid.cells()
    (out / "cells").mkdir(parents=True, exist_ok=True)
    write_atomically(out / "benchmark.yaml", dump_yaml(grid.config).encode())
    _set_aside(out, cells)
    todo = [cell for cell in cells if not is_done(out, cell)]
    done = len(cells) - len(todo)
    finished = _several if config.workers > 1 else _one_by_one
    for cell in finished(grid, out, todo, progress):
        done += 1
        if progress is not None:
            progress(f"{cell.encoder}, {cell.method}", done, len(cells))
    summary = summarise(grid, [json.loads(cell_file(out, cell).read_text()) for cell in cells], leaks, duplicates)
    write_atomically(out / "summary.json", json.dumps(summary.as_json(), indent=1, allow_nan=False).encode())
    return summary


def _open(config: BenchmarkConfig) -> Grid:
    """The grid, with the CT window of every encoder, once all of their weights have loaded."""
    grid = Grid.open(with_ct_windows(config))
    require_loadable(grid.config.encoders)
    return grid


def _one_by_one(grid: Grid, out: Path, todo: Sequence[Cell], progress: Progress | None) -> Iterator[Cell]:
    """Encoder by encoder: features, then its cells."""
    stores = WindowStores()
    for encoder in grid.config.encoders:
        mine = [cell for cell in todo if cell.encoder == encoder.name]
        predictions = EncoderPredictions(grid, encoder, out, stores)
        _prepare(predictions, mine, progress)
        for cell in mine:
            write_cell(out, cell, run_cell(cell, grid.tasks[cell.task], predictions))
            yield cell


def _several(grid: Grid, out: Path, todo: Sequence[Cell], progress: Progress | None) -> Iterator[Cell]:
    """All features first, then cells in several processes. What needs the GPU stays in this process, one by one."""
    for encoder in grid.config.encoders:
        mine = [cell for cell in todo if cell.encoder == encoder.name]
        _prepare(EncoderPredictions(grid, encoder, out), mine, progress)
    on_gpu = pick_device(grid.config.device).type == "cuda"
    here = [cell for cell in todo if on_gpu and cell.method in ("attention", *TRAINING)]
    there = [cell for cell in todo if cell not in here]
    config = grid.config.model_dump_json()
    threads = max(1, torch.get_num_threads() // grid.config.workers)
    jobs = (delayed(_run_elsewhere)(config, str(out), cell, threads) for cell in there)
    yield from Parallel(grid.config.workers, backend="loky", return_as="generator_unordered")(jobs)
    yield from _one_by_one(grid, out, here, progress)


def _run_elsewhere(config: str, out: str, cell: Cell, threads: int) -> Cell:
    """One cell in a process of its own, which keeps the grid and the features of the encoder for the next."""
    torch.set_num_threads(threads)
    grid = _grid_of(config)
    predictions = _predictions_of(config, out, cell.encoder)
    write_cell(Path(out), cell, run_cell(cell, grid.tasks[cell.task], predictions))
    return cell


@lru_cache(1)
def _grid_of(config: str) -> Grid:
    return Grid.open(BenchmarkConfig.model_validate_json(config))


@lru_cache(1)
def _predictions_of(config: str, out: str, encoder: str) -> EncoderPredictions:
    grid = _grid_of(config)
    return EncoderPredictions(grid, next(one for one in grid.config.encoders if one.name == encoder), Path(out))


def _prepare(predictions: EncoderPredictions, cells: Sequence[Cell], progress: Progress | None) -> None:
    """Frozen features of an encoder whose cells need them. What goes wrong is told by the cells."""
    if all(cell.method in TRAINING for cell in cells):
        return
    encoder, total = predictions.encoder, len(predictions.grid.table)
    began, first = time.perf_counter(), -1
    computed = 0

    def report(done: int) -> None:
        nonlocal first, computed
        first = done - 1 if first < 0 else first
        computed = done - first
        if progress is not None:
            rate = computed / max(time.perf_counter() - began, 1e-9)
            progress(f"{encoder.name}, features, {rate:.3g} volumes/s", done, total)

    predictions.progress = report
    with Meter(predictions.device) as meter:
        try:
            predictions.require_weights()
            predictions.features()
        except Exception:
            return
    if computed:
        _write_costs(predictions.out, encoder, computed, meter)


def _write_costs(out: Path, encoder: EncoderConfig, computed: int, meter: Meter) -> None:
    costs: dict[str, float | int | None] = {"volumes": computed, "parameters": num_parameters(encoder), **meter.numbers}
    costs["volumes_per_s"] = round(computed / max(meter.numbers["seconds"], 1e-9), 4)
    file = out / "features" / f"{slug(encoder.name)}.json"
    write_atomically(file, json.dumps({"encoder": encoder.name, **costs}, indent=1).encode())


def _set_aside(out: Path, cells: list[Cell]) -> None:
    """Results that this config does not ask for leave `cells`, so that no table mixes two configs."""
    wanted = {cell.key for cell in cells}
    for file in (out / "cells").glob("*.json"):
        if file.stem not in wanted:
            (out / "superseded").mkdir(exist_ok=True)
            file.replace(out / "superseded" / file.name)
