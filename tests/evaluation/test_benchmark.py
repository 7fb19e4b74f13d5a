"""The grid: every cell once, a failing one alone, no leak, and controls that tell what they can see."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from lejepa_med.cli.main import main
from lejepa_med.config.evaluation import (
    BenchmarkConfig,
    EncoderConfig,
    FinetuneConfig,
    FinetuneRecipe,
    PixelsEncoder,
    ProbeConfig,
    RandomEncoder,
    RunEncoder,
    ScratchEncoder,
    ShapeEncoder,
    Timm2dEncoder,
)
from lejepa_med.config.loading import dump_yaml, load_config
from lejepa_med.data.splits import is_held_out
from lejepa_med.errors import DataError, UserError
from lejepa_med.evaluation import benchmark
from lejepa_med.evaluation.benchmark import plan, run_benchmark
from lejepa_med.evaluation.ct_window import with_ct_windows
from lejepa_med.evaluation.grid import Grid
from lejepa_med.evaluation.single import run_finetune, run_probe

from .conftest import HOLDOUT, Archive

RECIPE = FinetuneRecipe(epochs=2, min_steps=2, batch_size=8)


def config_of(archive: Archive, *encoders: object, **settings: object) -> BenchmarkConfig:
    defaults = {"tasks": (archive.task("bright"),), "holdout": HOLDOUT, "budgets": (1, 5), "seeds": 2, "device": "cpu"}
    defaults |= {"finetune": RECIPE, "finetune_budgets": (5,), "finetune_seeds": 1, "methods": ("linear", "knn")}
    return BenchmarkConfig(data=archive.data, encoders=encoders, **{**defaults, **settings})


def cells_in(out: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted((out / "cells").glob("*.json"))]


def test_whole_grid(archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path) -> None:
    run = make_run()
    encoders = (
        run,
        RandomEncoder(like=run.path),
        ScratchEncoder(like=run.path),
        PixelsEncoder(size=(4, 4, 4), components=8),
        ShapeEncoder(),
        ShapeEncoder(name="box", intensity=False),
        Timm2dEncoder(),
    )
    tasks = (archive.task("bright"), archive.task("radius"))
    config = config_of(archive, *encoders, tasks=tasks, methods=("linear", "knn", "finetune"))
    summary = run_benchmark(config, tmp_path)
    cells = cells_in(tmp_path)
    assert len(cells) == len(plan(config)) == 2 * (6 * 2 * 5 + 3)
    failures = {cell["message"] + cell.get("traceback", "") for cell in cells if cell["status"] == "failed"}
    assert not failures
    assert {cell["status"] for cell in cells} == {"ok", "no_weights"}
    assert {cell["encoder"] for cell in cells if cell["status"] == "no_weights"} == {"DINOv2"}
    message = next(cell["message"] for cell in cells if cell["status"] == "no_weights")
    assert "encoders.6.weights=/path/to/dinov2_vits14_pretrain.pth" in message
    value = {(r["task"], r["encoder"], r["method"], r["budget"]): r["value"] for r in summary.rows}
    assert value["bright", "shape + intensity", "linear", "all"] == 1.0
    assert value["bright", "box", "linear", "all"] == 0.5  # all boxes are alike: chance
    assert value["radius", "shape + intensity", "linear", "all"] > 0.9
    assert value["radius", "box", "linear", "all"] <= 0
    for row in summary.rows:  # an interval is at least as wide as the draws of the labels alone make it
        if row["method"] == "knn" and row["task"] == "radius" and row["budget"] != "all" and row["value"] is not None:
            error = np.std(row["per_seed"], ddof=1) / np.sqrt(len(row["per_seed"]))
            assert len(row["per_seed"]) > 1 and row["value"] - row["low"] > 1.8 * error
    assert load_config(BenchmarkConfig, tmp_path / "benchmark.yaml") == with_ct_windows(config)
    with np.load(tmp_path / "features" / "pixels-pca.npz") as stored:
        assert stored["features"].shape == (len(archive.truth), 8)
        assert stored["series_key"].tolist() == archive.truth["series_key"].tolist()
    stored_summary = json.loads((tmp_path / "summary.json").read_text())
    assert stored_summary["leaks"] == {"LeJEPA": "checked"}
    others = {(d["reference"], d["other"]) for d in stored_summary["differences"] if d["method"] == "finetune"}
    assert others == {("LeJEPA", "from scratch")}
    assert all(
        cell["tuned"] == ({"linear": 6, "knn": 1, "finetune": 2}[cell["method"]] if cell["labels"] > 2 else 1)
        for cell in cells
        if cell["value"] and cell["task"] == "bright"
    )


def test_difference_is_that_of_the_rows(archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path) -> None:
    summary = run_benchmark(config_of(archive, make_run(), ShapeEncoder()), tmp_path)
    value = {(row["encoder"], row["method"], row["budget"]): row["value"] for row in summary.rows}
    assert len(summary.differences) == 2 * 3
    for item in summary.differences:
        expected = (
            value["LeJEPA", item["method"], item["budget"]] - value[item["other"], item["method"], item["budget"]]
        )
        assert item["difference"] == pytest.approx(expected)
        assert item["low"] <= item["difference"] <= item["high"]


def test_predictions_of_a_cell_belong_to_test_patients(archive: Archive, tmp_path: Path) -> None:
    run_benchmark(config_of(archive, ShapeEncoder()), tmp_path)
    patient = archive.truth.set_index("series_key")["patient_key"]
    label = archive.truth.set_index("series_key")["bright"]
    for cell in cells_in(tmp_path):
        found = cell["predictions"]
        assert patient.loc[found["series_key"]].tolist() == found["patient_key"]
        assert is_held_out(found["patient_key"], HOLDOUT.test_fraction, HOLDOUT.seed).all()
        assert [["no", "yes"][number] for number in found["truth"]] == label.loc[found["series_key"]].tolist()
        assert np.asarray(found["score"]).sum(1) == pytest.approx(1, abs=1e-5)


def test_resume_computes_no_cell_twice(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(archive, ShapeEncoder())
    run_benchmark(config, tmp_path)
    first = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cells").iterdir()}
    removed = sorted(first)[0]
    (tmp_path / "cells" / removed).unlink()
    ran = []
    original = benchmark.run_cell
    monkeypatch.setattr(benchmark, "run_cell", lambda cell, *rest: ran.append(cell.key) or original(cell, *rest))
    run_benchmark(config, tmp_path)
    assert [f"{key}.json" for key in ran] == [removed]
    again = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cells").iterdir()}
    assert {name for name in first if again[name] != first[name]} == {removed}


def test_cells_of_another_config_are_set_aside(archive: Archive, tmp_path: Path) -> None:
    run_benchmark(config_of(archive, ShapeEncoder()), tmp_path)
    before = {cell["value"] for cell in cells_in(tmp_path)}
    config = config_of(archive, ShapeEncoder(), budgets=(2,), methods=("knn",))
    run_benchmark(config, tmp_path)
    assert {cell["budget"] for cell in cells_in(tmp_path)} == {2, "all"}
    assert len(list((tmp_path / "superseded").iterdir())) == 10 - 1
    assert before


def test_a_failing_encoder_does_not_stop_the_others(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken on purpose")

    monkeypatch.setattr("lejepa_med.evaluation.frozen.pixel_features", broken)
    summary = run_benchmark(config_of(archive, PixelsEncoder(), ShapeEncoder()), tmp_path / "out")
    assert summary.counts == {"failed": 10, "ok": 10}
    cells = {cell["encoder"]: cell for cell in cells_in(tmp_path / "out")}
    assert re.fullmatch(r"ValueError in test_benchmark:\d+ broken", cells["pixels + PCA"]["message"])
    assert re.search(r"^frozen:\d+ _compute$", cells["pixels + PCA"]["traceback"], re.M)
    assert "broken on purpose" not in json.dumps(cells["pixels + PCA"])  # a message may hold anything
    assert cells["shape + intensity"]["status"] == "ok"


def test_weights_that_do_not_load_are_told_before_any_cell(
    archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path
) -> None:
    nowhere, run = tmp_path / "nowhere", make_run()
    (tmp_path / "cut.pth").write_bytes(b"PK no weights")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pth")
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "fits.pth")
    wrong: list[tuple[EncoderConfig, str]] = [
        (RunEncoder(name="B", path=nowhere), "encoder B: weights .*nowhere: no backbone.safetensors there"),
        (RandomEncoder(name="B", like=nowhere), "encoder B: weights .*nowhere: no backbone.safetensors there"),
        (Timm2dEncoder(name="B", weights=nowhere), "encoder B: weights .*nowhere: no such file"),
        (Timm2dEncoder(name="B", weights=tmp_path / "cut.pth"), "encoder B: weights .*cut.pth: damaged"),
        (
            Timm2dEncoder(name="B", model="test_vit", weights=tmp_path / "other.pth"),
            "encoder B: weights .*other.pth: do not fit the network",
        ),
        (Timm2dEncoder(name="B", model="no_such", weights=tmp_path / "other.pth"), "encoder B: .*no_such"),
        (
            Timm2dEncoder(name="B", model="test_vit", weights=tmp_path / "fits.pth", image_size=150),
            "encoder B: test_vit takes no image of 150 x 150 pixels; change image_size",
        ),
    ]
    for encoder, sentence in wrong:
        config = config_of(archive, run, ShapeEncoder(), encoder)
        for attempt in (plan, lambda config: run_benchmark(config, tmp_path / "out")):
            with pytest.raises(UserError, match=sentence):
                attempt(config)
    with pytest.raises(UserError, match=r"encoder first: weights .*nowhere: no backbone"):
        plan(config_of(archive, RunEncoder(name="first", path=nowhere)))
    assert not (tmp_path / "out").exists()


def test_the_command_says_how_its_cells_ended(
    archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(archive, ShapeEncoder(), Timm2dEncoder())
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    command = ["benchmark", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "cells: ok 10, no_weights 10\n" in capsys.readouterr().out
    (tmp_path / "wrong.pth").write_bytes(b"PK no weights")
    for words in ([*command, "--dry-run"], command):
        assert main([*words, f"encoders.1.weights={tmp_path / 'wrong.pth'}"]) == 2
        out, error = capsys.readouterr()
        assert out == "" and "lejepa-med benchmark: encoder DINOv2: weights" in error and "Traceback" not in error


def test_planted_leak_is_found(archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path) -> None:
    patients = archive.truth["patient_key"].unique()
    held_out = is_held_out(patients, HOLDOUT.test_fraction, HOLDOUT.seed)
    clean = make_run("clean", patients[~held_out].tolist())
    leaky = make_run("leaky", [*patients[~held_out], *patients[held_out][:2]])
    assert run_benchmark(config_of(archive, clean), tmp_path / "clean").leaks == {"clean": "checked"}
    with pytest.raises(DataError, match="leaky: it was pretrained on 2 of the test patients"):
        run_benchmark(config_of(archive, leaky), tmp_path / "leaky")
    assert not (tmp_path / "leaky").exists()
    allowed = run_benchmark(config_of(archive, leaky, transductive=True), tmp_path / "allowed")
    assert allowed.leaks == {"leaky": "transductive: saw 2 test patients"}


def test_a_run_of_another_index_is_not_said_to_be_checked(
    archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path
) -> None:
    """Another index has another salt: the same patients have other keys there, and no leak could be seen."""
    elsewhere = make_run("elsewhere")
    table = pd.read_csv(elsewhere.path / "pretraining_series.csv", dtype=str)
    many = pd.DataFrame([["a" * 16, "b" * 16, *[""] * (len(table.columns) - 2)]], columns=table.columns)
    many["origin"] = table["origin"].iloc[0] if "origin" in table and len(table) else "run"
    many.to_csv(elsewhere.path / "pretraining_series.csv", index=False)
    found = Grid.open(config_of(archive, elsewhere)).leaks()["elsewhere"]
    assert found.startswith("not checked: none of its scans or patients has a key of this cache")


def test_run_without_a_list_of_series_says_so(
    archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path
) -> None:
    run = make_run()
    (run.path / "pretraining_series.csv").unlink()
    summary = run_benchmark(config_of(archive, run, methods=("knn",)), tmp_path)
    assert summary.leaks["LeJEPA"].startswith("not checked")


def test_a_leak_through_the_first_weights_is_found(
    archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path
) -> None:
    patients = archive.truth["patient_key"].unique()
    held_out = is_held_out(patients, HOLDOUT.test_fraction, HOLDOUT.seed)
    record = pd.DataFrame({"series_key": "x", "patient_key": patients[~held_out], "origin": "run"})
    seen = pd.DataFrame({"series_key": "y", "patient_key": patients[held_out][:3], "origin": "ancestor"})
    unknown = pd.DataFrame({"series_key": [""], "patient_key": [""], "origin": ["unknown"]})
    run = make_run()
    for tables, said in (([record, seen], "pretrained on 3 of the"), ([record, unknown], ""), ([record], "")):
        pd.concat(tables).to_csv(run.path / "pretraining_series.csv", index=False)
        grid = Grid.open(config_of(archive, run))
        if said:
            with pytest.raises(DataError, match=said):
                grid.leaks()
        else:
            assert grid.leaks()["LeJEPA"].startswith("checked" if len(tables) == 1 else "not checked: trained on data")
    pd.DataFrame({"series_key": ["item 0"], "patient_key": ["item 0"]}).to_csv(run.path / "pretraining_series.csv")
    assert Grid.open(config_of(archive, run)).leaks()["LeJEPA"].startswith("not checked: trained on data given in")


def test_probe_is_the_benchmark_of_one_row(
    archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path
) -> None:
    run = make_run()
    settings = {"data": archive.data, "model": run.path, "task": archive.task("bright"), "holdout": HOLDOUT}
    result = run_probe(ProbeConfig(**settings, budgets=(5,), seeds=2), tmp_path / "probe")
    rows = run_benchmark(config_of(archive, run, budgets=(5,)), tmp_path / "benchmark").rows
    assert [row["value"] for row in result["results"]] == [row["value"] for row in rows]
    assert result == json.loads((tmp_path / "probe" / "result.json").read_text())
    assert result["counts"]["train_patients"] + result["counts"]["test_patients"] == 48
    tuned = run_finetune(FinetuneConfig(**settings, budgets=(), seeds=1, finetune=RECIPE), tmp_path / "finetune")
    assert [(row["method"], row["budget"], row["status"]) for row in tuned["results"]] == [("finetune", "all", "ok")]
