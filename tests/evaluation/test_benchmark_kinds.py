"""The grid on several labels, levels and studies; repeats of an arm; and labels that tell nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lejepa_med.config.evaluation import (
    AttentionRecipe,
    BenchmarkConfig,
    PixelsEncoder,
    RunEncoder,
    ShapeEncoder,
    Timm2dEncoder,
)
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.errors import DataError
from lejepa_med.evaluation.arms import Arm
from lejepa_med.evaluation.benchmark import plan, run_benchmark
from lejepa_med.evaluation.bootstrap import Drawn, holm
from lejepa_med.evaluation.comparison import Point, adjusted, best_rivals
from lejepa_med.evaluation.encoders import tuning_start
from lejepa_med.evaluation.grid import Grid, PreparedTask
from lejepa_med.evaluation.report import write_report
from lejepa_med.evaluation.window_store import WindowStore

from .conftest import Archive
from .test_benchmark import config_of


def labels(archive: Archive, folder: Path) -> pd.DataFrame:
    """Bright, large (some unknown), and the third of the radius: what shape + intensity can see."""
    frame = archive.truth.copy()
    frame["is_bright"], frame["is_large"] = (frame["bright"] == "yes").astype(int), (frame["radius"] > 5).astype(float)
    frame.loc[frame.index % 7 == 3, "is_large"] = np.nan
    frame["third"] = pd.cut(frame["radius"], [0, 4.3, 5.6, 8], labels=False)
    frame["coin"] = np.random.default_rng(5).permutation(np.arange(len(frame)) % 2)
    frame.to_csv(folder / "kinds.csv", index=False)
    return frame


def test_kinds_of_tasks(archive: Archive, tmp_path: Path) -> None:
    labels(archive, tmp_path)
    file = {"labels": tmp_path / "kinds.csv"}
    tasks = (
        TaskConfig(name="several", kind="multilabel", columns=("is_bright", "is_large"), **file),
        TaskConfig(name="third", kind="ordinal", column="third", **file),
        TaskConfig(name="study", column="bright", unit="study", **file),
    )
    config = config_of(
        archive, ShapeEncoder(), tasks=tasks, methods=("linear", "knn", "segment_linear"), budgets=(5, 100)
    )
    summary = run_benchmark(config, tmp_path / "out")
    assert summary.counts == {"ok": 3 * 2 * 3}
    value = {(row["task"], row["method"], row["budget"]): row["value"] for row in summary.rows}
    assert value["several", "linear", "all"] > 0.95 and value["third", "linear", "all"] > 0.8
    assert value["study", "linear", "all"] == 1.0
    several = next(row for row in summary.rows if row["task"] == "several")
    assert (several["metric"], set(several["scores"]) >= {"auprc", "ece", "brier"}) == ("auroc", True)
    described = summary.tasks["several"]
    assert described["train_known"][1] < described["train_known"][0] == described["train_rows"]
    assert any(text.startswith("segment_linear: not for tasks of kind multilabel") for text in described["left_out"])
    assert any(text.startswith("frozen budgets 100: the training side has") for text in described["left_out"])
    assert summary.tasks["study"]["test_rows"] == summary.tasks["study"]["test_patients"]
    assert summary.tasks["study"]["series"] == len(archive.truth)
    cell = next(json.loads(f.read_text()) for f in (tmp_path / "out" / "cells").glob("*") if "several" in f.read_text())
    assert None in {value for row in cell["predictions"]["truth"] for value in row}
    page = write_report(tmp_path / "out", tmp_path / "report").read_text()
    assert "A sample is a study: features are averaged over all its" in page
    assert "quadratic weighted kappa" in page and "Not evaluated: segment_linear" in page


def test_encoders_of_one_group_are_one_arm(
    archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path
) -> None:
    runs = [RunEncoder(name=f"seed {seed}", path=make_run(seed=seed).path, group="LeJEPA") for seed in (1, 2, 3)]
    encoders = (*runs, PixelsEncoder(size=(4, 4, 4), components=8), ShapeEncoder(), Timm2dEncoder())
    config = config_of(archive, *encoders, methods=("knn",))
    summary = run_benchmark(config, tmp_path / "out")
    arm = [row for row in summary.rows if row["encoder"] == "LeJEPA"]
    assert {row["repeats"] for row in arm} == {3} and len(arm) == 3
    for row in arm:
        own = [item for item in summary.repeats if item["budget"] == row["budget"]]
        assert [item["encoder"] for item in own] == ["seed 1", "seed 2", "seed 3"]
        assert row["value"] == pytest.approx(np.mean([item["value"] for item in own]))
        assert row["low"] <= row["value"] <= row["high"]
    others = {(row["reference"], row["other"]) for row in summary.differences}
    assert others == {("LeJEPA", "pixels + PCA"), ("LeJEPA", "shape + intensity")}
    value = {(row["encoder"], row["budget"]): row["value"] for row in summary.rows}
    for row in summary.differences:
        assert row["difference"] == pytest.approx(value["LeJEPA", row["budget"]] - value[row["other"], row["budget"]])
        assert row["p"] <= row["p_adjusted"] <= 1
    assert summary.best_rival == []  # DINOv2 has no weights
    check_areas(summary.areas, summary.area_differences, summary.rows)


def check_areas(areas: list[dict], differences: list[dict], rows: list[dict]) -> None:
    found = {row["encoder"]: row["value"] for row in areas}
    for name, value in found.items():
        own = sorted((row["labels"], row["value"]) for row in rows if row["encoder"] == name)
        x, y = np.log([item[0] for item in own]), [item[1] for item in own]
        assert value == pytest.approx(np.trapezoid(y, x) / (x[-1] - x[0]))
    for row in differences:
        assert row["difference"] == pytest.approx(found[row["reference"]] - found[row["other"]])
        assert row["low"] <= row["difference"] <= row["high"]


def test_the_strongest_rival_is_named(archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path) -> None:
    strong = ShapeEncoder(name="strong", role="rival")
    weak = ShapeEncoder(name="weak", intensity=False, role="rival")
    config = config_of(archive, make_run(), weak, strong, ShapeEncoder(name="no rival"))
    summary = run_benchmark(config, tmp_path)
    assert {row["other"] for row in summary.best_rival} == {"strong"}
    assert len(summary.best_rival) == 2 * 3  # methods and budgets
    family = [row for row in summary.best_rival if row["method"] == "knn"]
    again = adjusted([dict(row) for row in family])
    assert [row["p_adjusted"] for row in family] == [row["p_adjusted"] for row in again]
    for other in ("strong", "weak", "no rival"):
        both = [row for row in summary.area_differences if row["other"] == other]
        assert {row["method"] for row in both} == {"linear", "knn"}
        assert [row["p_adjusted_all"] for row in both] == holm([row["p"] for row in both])
        assert [row["p_adjusted"] for row in both] == [row["p"] for row in both]  # one task: nothing to adjust for


def test_the_strongest_rival_has_the_largest_area() -> None:
    """Few budgets lie close together, many far apart: a mean over budgets can name another than the area does."""

    class Fixed(Point):
        def score(self, metric: str, seeds: Iterable[int], members: Iterable[str] | None = None) -> Drawn:
            return Drawn(values[self.arm.name][int(self.budget)], np.empty(0))

    labelled = SimpleNamespace(kind="classification", classes=("a", "b"))
    task = object.__new__(PreparedTask)
    vars(task).update(config=SimpleNamespace(name="task"), labelled=labelled)
    values = {"x": {3: 0.30, 15: 0.42, 30: 0.60, 570: 0.56}, "y": {3: 0.40, 15: 0.44, 30: 0.50, 570: 0.56}}
    values["lost"] = {570: 0.57}  # at the smaller budgets it failed
    points, rows = [], []
    for name, found in values.items():
        for budget in found:
            cells = {name: {0: {"labels": budget}}}
            points.append(Fixed(Arm(name, "timm2d", (name,), True), task, "linear", budget, cells))
            rows.append({"task": "task", "method": "linear", "other": name, "p": 0.5})
    assert {row["other"] for row in best_rivals([p for p in points if p.arm.name != "lost"], rows)} == {"x"}
    assert {row["other"] for row in best_rivals(points, rows)} == {"lost"}  # at the one budget that all have


def test_labels_that_tell_nothing_score_chance(archive: Archive, tmp_path: Path) -> None:
    labels(archive, tmp_path)
    task = TaskConfig(name="coin", column="coin", unit="series", labels=tmp_path / "kinds.csv")
    summary = run_benchmark(config_of(archive, ShapeEncoder(), tasks=(task,), seeds=5), tmp_path / "out")
    assert len(summary.rows) == 6
    for row in summary.rows:
        assert row["low"] <= 0.5 <= row["high"]


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("segment_decoder", "segment_decoder: not for tasks of kind classification and unit study"),
        ("finetune", "none of the encoders can be evaluated by finetune"),
    ],
)
def test_a_grid_without_cells_says_why(archive: Archive, method: str, why: str) -> None:
    task = archive.task("bright", unit="study")
    with pytest.raises(DataError, match=f"no encoder can be evaluated on any task; {why}$"):
        plan(config_of(archive, ShapeEncoder(), tasks=(task,), methods=(method,)))


def test_what_trains_takes_studies_whole(archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path) -> None:
    task = archive.task("bright", unit="study")
    attention = AttentionRecipe(steps=4, batch_size=4)
    config = config_of(
        archive, make_run(), tasks=(task,), methods=("finetune", "lora", "attention"), budgets=(5,), attention=attention
    )
    summary = run_benchmark(config, tmp_path)
    assert set(summary.counts) == {"ok"}
    grid = Grid.open(config)
    prepared = grid.tasks["bright"]
    members = [prepared.labelled.members[row] for row in prepared.split.test]
    assert {len(keys) for keys in members} == {1, 2}
    for file in (tmp_path / "cells").glob("*.json"):
        found = json.loads(file.read_text())["predictions"]
        assert found["series_key"] == [keys[0] for keys in members] and len(found["score"]) == len(members)
    store = WindowStore(grid.cache, tuning_start(config.encoders[0], grid.cache, 0).cut)
    pair = next(keys for keys in members if len(keys) == 2)
    both, counts = store.batch([pair])
    each = [store.batch([(key,)])[0] for key in pair]
    assert counts == [len(both)] and torch.equal(both, torch.cat(each))


def test_test_patients_of_a_study_task_are_fitted_on_by_nothing(archive: Archive) -> None:
    grid = Grid.open(config_of(archive, ShapeEncoder(), tasks=(archive.task("bright", unit="patient"),)))
    task = grid.tasks["bright"]
    tested = {task.labelled.groups[row] for row in task.split.test}
    assert set(grid.table.loc[~grid.fit, "patient_key"]) == tested
    assert isinstance(grid.config, BenchmarkConfig)
