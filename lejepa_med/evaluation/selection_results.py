"""Probe results of runs: what `probe` and `benchmark` wrote, or a CSV of one's own.

RUN/probe*/result.json        found by itself, if its encoder is a folder of that run's name
--results FOLDER              of `probe`, `finetune` or `benchmark`; encoders of the kind `run` name their runs
--results FILE.json           a result.json
--results FILE.csv            columns `run, score`; higher is better
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lejepa_med.config import BenchmarkConfig, SelectConfig, load_config
from lejepa_med.errors import DataError
from lejepa_med.evaluation.report_names import METRICS
from lejepa_med.evaluation.selection_runs import RunScore


@dataclass
class Outcome:
    """One number per run, higher is better: `values` by the run's name."""

    task: str
    method: str
    metric: str
    budget: str
    values: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        labels = {"": "", "all": "all labels"}.get(self.budget, f"{self.budget} labels per class")
        parts = [self.method, METRICS.get(self.metric, self.metric), labels]
        inner = ", ".join(part for part in parts if part)
        return f"{self.task} ({inner})" if inner else self.task


@dataclass(frozen=True)
class _Found:
    """One result, and the settings that must agree between runs for it to be comparable."""

    run: Path
    key: tuple[str, str, str, str]
    value: float
    settings: dict[str, Any]


def read_results(
    rows: Sequence[RunScore], extra: Sequence[Path], select: SelectConfig
) -> tuple[list[Outcome], list[str]]:
    """Outcomes by task, method, metric and budget, each with the runs that have it; and what was left out, and why.

    Raises:
        DataError: a file is no result, names no run of these, contradicts another, or was probed in another way.
    """
    by_path = {row.path.resolve(): row.name for row in rows}
    outcomes: dict[tuple[str, ...], Outcome] = {}
    notes = []
    for row in rows:
        for file in sorted(row.path.glob("probe*/result.json")):
            of_run, others = _of_own_folder(file, row, select)
            for found in of_run:
                _add(outcomes, row.name, found)
            notes += others
    for path in extra:
        matched, unknown = False, []
        for found in _read(path, rows, select):
            name = by_path.get(found.run)
            if name is not None:
                _add(outcomes, name, found)
                matched = True
            else:
                unknown.append(found.run.name)
        if not matched:
            raise DataError(
                f"results {path}: no result there is of a run given here, at the label budgets asked for; "
                f"runs: {', '.join(row.name for row in rows)}; budgets: {', '.join(map(str, select.budgets))}"
            )
        if unknown and path.suffix == ".csv":  # a benchmark has other encoders; who writes a table means these runs
            notes.append(f"results {path.name}: {len(unknown)} rows are of no run given here: {', '.join(unknown)}")
    return [outcomes[key] for key in sorted(outcomes)], notes


def _of_own_folder(file: Path, row: RunScore, select: SelectConfig) -> tuple[list[_Found], list[str]]:
    """What a file inside a run's folder says about this run: other encoders are probed there for comparison.

    Runs are moved, with their results: the name of the folder must be that of the encoder, not its place.
    """
    found = list(_of_result(file, select))
    encoders = {result.run.name for result in found if result.run.name != row.path.resolve().name}
    if not encoders:
        return found, []
    (encoder,) = encoders
    return [], [
        f"results {row.name}/{file.parent.name}: of encoder {encoder}, not of this run, so left out; if the run was "
        f"renamed, give its results as a CSV"
    ]


def _add(outcomes: dict[tuple[str, ...], Outcome], name: str, found: _Found) -> None:
    outcome = outcomes.setdefault(found.key, Outcome(*found.key, settings=found.settings))
    for setting, value in found.settings.items():
        if outcome.settings[setting] != value:
            raise DataError(
                f"results of run {name}, {outcome.title}: {setting} is {value}, but {outcome.settings[setting]} for "
                f"{next(iter(outcome.values))}; probe all runs with one config"
            )
    if outcome.values.setdefault(name, found.value) != found.value:
        raise DataError(
            f"results of run {name}, {outcome.title}: two values, {outcome.values[name]:.4g} and {found.value:.4g}; "
            "remove or rename one"
        )


def _read(path: Path, rows: Sequence[RunScore], select: SelectConfig) -> Iterator[_Found]:
    if path.is_dir() and (path / "result.json").exists():
        return _of_result(path / "result.json", select)
    if path.is_dir() and (path / "summary.json").exists():
        return _of_benchmark(path, select)
    if path.is_file() and path.suffix == ".json":
        return _of_result(path, select)
    if path.is_file() and path.suffix == ".csv":
        return _of_table(path, rows)
    raise DataError(
        f"results {path}: expected a folder of `probe` or `benchmark`, a result.json, or a CSV with `run, score`"
    )


def _of_result(file: Path, select: SelectConfig) -> Iterator[_Found]:
    content = _json(file)
    try:
        run, counts, config = _run_folder(content["encoder"]), content["counts"], content["config"]
        settings = {name: counts[name] for name in ("column", "train_rows", "test_rows")}
        settings["holdout"] = config["holdout"]
        for row in content["results"]:
            yield from _of_row(row, run, settings, select)
    except (KeyError, TypeError):
        raise DataError(f"results {file}: not a result that `lejepa-med probe` wrote") from None


def _of_benchmark(folder: Path, select: SelectConfig) -> Iterator[_Found]:
    config, content = load_config(BenchmarkConfig, folder / "benchmark.yaml"), _json(folder / "summary.json")
    runs = {encoder.name: _run_folder(encoder.path) for encoder in config.encoders if encoder.kind == "run"}
    try:
        for row in content["rows"]:
            if row["encoder"] in runs:
                counts = content["tasks"][row["task"]]
                settings = {name: counts[name] for name in ("column", "train_rows", "test_rows")}
                settings["holdout"] = config.holdout.model_dump()
                yield from _of_row(row, runs[row["encoder"]], settings, select)
    except (KeyError, TypeError):
        raise DataError(f"results {folder}: summary.json is none that `lejepa-med benchmark` wrote") from None


def _of_row(row: dict[str, Any], run: Path, settings: dict[str, Any], select: SelectConfig) -> Iterator[_Found]:
    """The headline metric of one row (balanced accuracy or R2) at the budgets asked for."""
    if row["status"] == "ok" and row["value"] is not None and row["budget"] in select.budgets:
        key = (row["task"], row["method"], row["metric"], str(row["budget"]))
        yield _Found(run, key, float(row["value"]), settings)


def _of_table(file: Path, rows: Sequence[RunScore]) -> Iterator[_Found]:
    try:
        table = pd.read_csv(file, dtype={"run": str})  # else a run called 001 is 1
    except (OSError, ValueError):
        raise DataError(f"results {file}: cannot be read as CSV") from None
    if not {"run", "score"} <= set(table.columns):
        raise DataError(f"results {file}: expected columns `run, score`, got {', '.join(map(str, table.columns))}")
    by_name = {row.name: row.path.resolve() for row in rows}
    folders = [path.name for path in by_name.values()]
    for number, (name, score) in enumerate(zip(table["run"].astype(str), table["score"], strict=True), start=2):
        try:
            value = float(score)
        except ValueError:
            raise DataError(f"results {file}: line {number}: score `{score}` is no number") from None
        if folders.count(name) > 1:
            raise DataError(f"results {file}: line {number}: several runs are called `{name}`; give its path")
        if math.isinf(value):
            raise DataError(f"results {file}: line {number}: score `{score}` is no number")
        if not math.isnan(value):
            yield _Found(by_name.get(name, Path(name).resolve()), (file.stem, "", "score", ""), value, {})


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        raise DataError(f"results {file}: cannot be read as JSON") from None
    if not isinstance(content, dict):
        raise DataError(f"results {file}: expected a JSON object")
    return content


def _run_folder(path: str | Path) -> Path:
    """The run that an encoder's path names: the folder, or the one that holds the weight file."""
    resolved = Path(path).resolve()
    return resolved.parent if resolved.suffix == ".safetensors" else resolved
