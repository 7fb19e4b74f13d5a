"""The grid on a segmentation task: which cells there are, what they hold, and that they are `segment`'s numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from lejepa_med.config.evaluation import (
    BenchmarkConfig,
    EvaluationDataConfig,
    FinetuneConfig,
    ProbeConfig,
    RandomEncoder,
    RunEncoder,
    ScratchEncoder,
    ShapeEncoder,
    Timm2dEncoder,
)
from lejepa_med.config.pretraining import HoldoutConfig
from lejepa_med.config.segmentation import SegmentationRecipe
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.cache import Cache
from lejepa_med.evaluation.benchmark import plan, run_benchmark
from lejepa_med.evaluation.grey_slices import load_grey_slices
from lejepa_med.evaluation.grid import Grid
from lejepa_med.evaluation.report import write_report
from lejepa_med.evaluation.segmentation import segment
from lejepa_med.evaluation.single import run_finetune, run_probe
from lejepa_med.weights import load_backbone, save_backbone

from .conftest import MODEL, SPEC, tiny_backbone
from .test_segmentation import write_masked

RECIPE = SegmentationRecipe(steps=3, batch_size=2, precision="float32", overlap=0.0)
HOLDOUT = HoldoutConfig(test_fraction=0.4, seed=1)
TASK = TaskConfig(name="organs", kind="segmentation")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    sides = np.random.default_rng(1).integers(13, 20, (10, 3))
    return write_masked(tmp_path_factory.mktemp("masked"), [tuple(map(int, row)) for row in sides])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunEncoder:
    folder = tmp_path_factory.mktemp("run")
    save_backbone(folder / "backbone.safetensors", tiny_backbone(), MODEL, SPEC)
    (folder / "pretraining_series.csv").write_text("series_key,patient_key\n")
    return RunEncoder(name="LeJEPA", path=folder)


def config_of(cache: Cache, *encoders: object, **settings: object) -> BenchmarkConfig:
    defaults = {"tasks": (TASK,), "holdout": HOLDOUT, "budgets": (2,), "finetune_budgets": (2,), "seeds": 1}
    defaults |= {"finetune_seeds": 1, "segmentation": RECIPE, "device": "cpu"}
    data = EvaluationDataConfig(cache=cache.folder)
    return BenchmarkConfig(data=data, encoders=encoders, **{**defaults, **settings})


def test_cells_are_the_numbers_of_segment(cache: Cache, run: RunEncoder, tmp_path: Path) -> None:
    encoders = (run, RandomEncoder(like=run.path), ScratchEncoder(like=run.path), ShapeEncoder())
    methods = ("linear", "segment_linear", "segment_finetune")
    config = config_of(cache, *encoders, methods=methods)
    summary = run_benchmark(config, tmp_path / "out")
    found = [json.loads(file.read_text()) for file in (tmp_path / "out" / "cells").glob("*.json")]
    assert {(cell["encoder_kind"], cell["method"]) for cell in found} == {
        ("run", "segment_linear"),
        ("run", "segment_finetune"),
        ("random", "segment_linear"),
        ("scratch", "segment_finetune"),
    }
    assert {cell["status"] for cell in found} == {"ok"} and summary.counts == {"ok": 4}
    left_out = summary.tasks["organs"]["left_out"]
    assert "linear: not for tasks of kind segmentation and unit series" in left_out

    task = Grid.open(config).tasks["organs"]
    cell = next(cell for cell in found if (cell["encoder"], cell["method"]) == ("LeJEPA", "segment_linear"))
    keys = [members[0] for members in task.labelled.members]
    train, test = [keys[row] for row in task.subset(2, 0)], [keys[row] for row in task.split.test]
    backbone = load_backbone(run.path)
    expected = segment(backbone, cache, train, test, RECIPE, torch.device("cpu"), 0, "linear")
    score = np.array(cell["predictions"]["score"], dtype=float)
    np.testing.assert_allclose(score, expected, atol=1e-6)
    assert cell["value"] == pytest.approx(np.nanmean(expected[:, :2], axis=0).mean(), abs=1e-6)
    assert cell["metric"] == "dice" and cell["labels"] == 2 and cell["predictions"]["series_key"] == test
    by_method = {(row["encoder"], row["method"]): row["value"] for row in summary.rows}
    assert by_method["LeJEPA", "segment_linear"] == pytest.approx(cell["value"])

    page = write_report(tmp_path / "out", tmp_path / "report").read_text()
    assert "Dice" in page and "HD95" in page


def test_a_colour_network_segments_the_slices_of_volumes(cache: Cache, tmp_path: Path) -> None:
    """DINOv2's place: frozen and trained, from weights by path; without weights its cells say so."""
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "net.pth")
    given = Timm2dEncoder(name="2D", model="test_vit", weights=tmp_path / "net.pth", image_size=32)
    methods = ("segment_linear", "segment_decoder", "segment_finetune")
    config = config_of(cache, given, Timm2dEncoder(), methods=methods)
    run_benchmark(config, tmp_path / "out")
    cells = [json.loads(file.read_text()) for file in (tmp_path / "out" / "cells").glob("*.json")]
    told = {(cell["encoder"], cell["method"]): cell["status"] for cell in cells}
    assert told == {(one, m): status for one, status in (("2D", "ok"), ("DINOv2", "no_weights")) for m in methods}
    backbone = load_grey_slices(given)
    grey = torch.rand(2, 1, 32, 32)
    mean, std = (torch.tensor(backbone.network.net.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(backbone(grey), backbone.network((grey.repeat(1, 3, 1, 1) - mean) / std))


def test_probe_and_finetune_of_masks(cache: Cache, run: RunEncoder, tmp_path: Path) -> None:
    settings = {"data": EvaluationDataConfig(cache=cache.folder), "task": TASK, "model": run.path, "holdout": HOLDOUT}
    settings |= {"budgets": (2,), "seeds": 1, "segmentation": RECIPE, "device": "cpu"}
    probed = run_probe(ProbeConfig(**settings), tmp_path / "probe")
    tuned = run_finetune(FinetuneConfig(**settings), tmp_path / "finetune")
    assert {row["method"] for row in probed["results"]} == {"segment_linear", "segment_decoder"}
    assert [row["method"] for row in tuned["results"]] == ["segment_finetune"]
    assert (probed["status"], tuned["status"]) == ("ok", "ok")
    assert json.loads((tmp_path / "finetune" / "result.json").read_text())["results"] == tuned["results"]


def test_masks_that_change_are_other_cells(cache: Cache, run: RunEncoder) -> None:
    """A cell's name depends on the masks that the cache names and on the recipe."""
    config = config_of(cache, run, methods=("segment_linear",))
    before = {cell.key for cell in plan(config)}
    assert before == {cell.key for cell in plan(config)}
    longer = config.model_copy(update={"segmentation": RECIPE.model_copy(update={"steps": 4})})
    assert not before & {cell.key for cell in plan(longer)}
