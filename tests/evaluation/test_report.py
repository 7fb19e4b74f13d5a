"""A report says what the cells say: the same numbers in every format, honest sentences, nothing from elsewhere."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lejepa_med.backbones import build
from lejepa_med.config import BenchmarkConfig, ModelConfig, validate
from lejepa_med.data.cache import COLUMNS, entry_name, entry_path, file_digest, write_entry, write_settings
from lejepa_med.errors import DataError
from lejepa_med.evaluation.benchmark import run_benchmark
from lejepa_med.evaluation.report import write_report
from lejepa_med.evaluation.report_comparisons import tables
from lejepa_med.evaluation.report_csv import results_csv
from lejepa_med.evaluation.report_data import Benchmark, without_paths
from lejepa_med.evaluation.report_figures import budget_figure, looks_of
from lejepa_med.evaluation.report_formats import as_latex, as_markdown
from lejepa_med.evaluation.report_names import number
from lejepa_med.evaluation.report_neighbours import agreement, chance_agreement, nearest, query_rows
from lejepa_med.evaluation.report_text import comparison_sentences, fewer_labels_sentence, verdict
from lejepa_med.spec import InferenceSpec, PreprocessSpec, Spec
from lejepa_med.viz.lines import key_of, looks
from lejepa_med.weights import save_backbone

CLASSES = ("bright & big", "dark")


def write_cache(folder: Path, patients: int = 40) -> None:
    """Small volumes of two classes that differ in brightness, and their labels."""
    preprocess, generator = PreprocessSpec(spacing_mm=(8, 8, 8)), np.random.default_rng(0)
    write_settings(folder / "cache", preprocess)
    rows, labels = [], []
    for patient in range(patients):
        key, owner = (hashlib.sha256(f"{kind}{patient}".encode()).hexdigest()[:12] for kind in ("series", "patient"))
        level = 150 if patient % 2 == 0 else 110
        array = generator.normal(level, 40, (16, 16, 16)).clip(0, 255).astype(np.uint8)
        entry = entry_name(key, "", preprocess)
        write_entry(folder / "cache", entry, array)
        digest = file_digest(entry_path(folder / "cache", entry))
        rows.append([key, owner, key, "mri", "t1", [16, 16, 16], [8.0, 8.0, 8.0], entry, digest])
        labels.append({"series_key": key, "grade": CLASSES[patient % 2]})
    pd.DataFrame(rows, columns=list(COLUMNS)).to_parquet(folder / "cache" / "manifest.parquet")
    pd.DataFrame(labels).to_csv(folder / "labels.csv", index=False)


def write_run(run: Path) -> None:
    """A run directory as pretraining leaves it, with fresh weights."""
    run.mkdir()
    torch.manual_seed(0)
    model = ModelConfig(name="resnet10_3d", width=0.125)
    spec = Spec(inference=InferenceSpec(window=(16, 16, 16)))
    save_backbone(run / "backbone.safetensors", build(model).eval(), model, spec)
    (run / "config.yaml").write_text("seed: 0\n")
    lines = [
        {"step": s, "total": 1.0, "prediction": 0.8, "sigreg": 1.6, "lr": 1e-3, "grad_norm": 1.0} for s in range(30)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    timing = {"step": 0, "samples_per_s": 12.5, "data_wait": 0.25, "memory": 2**30}
    (run / "timing.jsonl").write_text(json.dumps(timing) + "\n")
    probe = {"step": 0, "task": "grade", "metric": "balanced_accuracy", "linear": 0.6, "knn": 0.5}
    (run / "probes.jsonl").write_text(json.dumps(probe) + "\n" + json.dumps(probe | {"step": 20, "linear": 0.7}) + "\n")
    pd.DataFrame({"series_key": ["a", "b", "c"], "patient_key": ["p", "p", "q"]}).to_csv(run / "pretraining_series.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished benchmark beside the run and cache that it used."""
    folder = tmp_path_factory.mktemp("secretplace")
    write_cache(folder)
    write_run(folder / "run")
    like = str(folder / "run")
    settings: dict[str, Any] = {
        "data": {"cache": str(folder / "cache")},
        "tasks": [{"name": "grade", "labels": str(folder / "labels.csv"), "column": "grade"}],
        "encoders": [
            {"kind": "run", "path": like},
            {"kind": "random", "like": like, "seed": 3},
            {"kind": "scratch", "like": like},
            {"kind": "pixels", "size": [4, 4, 4]},
            {"kind": "timm2d"},
        ],
        "methods": ["linear", "finetune"],
        "budgets": [1, 5],
        "finetune_budgets": [2],
        "finetune": {"epochs": 1, "min_steps": 1},
        "seeds": 2,
        "device": "cpu",
    }
    run_benchmark(validate(BenchmarkConfig, settings, "test"), folder / "benchmark")
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    return write_report(folder / "benchmark", folder / "report")


def csv_lines(folder: Path) -> Iterator[dict[str, str]]:
    with (folder / "report" / "results.csv").open() as stream:
        yield from csv.DictReader(stream)


def test_csv_holds_the_means_of_the_cells(folder: Path, report: Path) -> None:
    cells = [json.loads(file.read_text()) for file in (folder / "benchmark" / "cells").glob("*.json")]
    checked = 0
    for line in csv_lines(folder):
        own = [c for c in cells if all(str(c[name]) == line[name] for name in ("encoder", "method", "budget"))]
        values = [cell["value"] for cell in own if cell["status"] == "ok"]
        assert float(line["seconds"]) == pytest.approx(sum(cell["seconds"] for cell in own), abs=1e-3)
        if values:
            assert float(line["value"]) == pytest.approx(np.mean(values))
            assert float(line["low"]) <= float(line["value"]) <= float(line["high"])
            checked += 1
        else:
            assert (line["encoder"], line["status"], line["value"]) == ("DINOv2", "no_weights", "")
    assert checked == 3 * 3 + 2


def test_csv_differences_are_the_reference_minus_the_encoder(folder: Path, report: Path) -> None:
    value = {(line["encoder"], line["method"], line["budget"]): line["value"] for line in csv_lines(folder)}
    compared = [line for line in csv_lines(folder) if line["difference"]]
    assert len(compared) == 2 * 3 + 1
    for line in compared:
        mine = float(value["LeJEPA", line["method"], line["budget"]])
        assert float(line["difference"]) == pytest.approx(mine - float(line["value"]))


def test_page_is_self_contained_and_names_no_path(folder: Path, report: Path) -> None:
    page = report.read_text()
    assert not re.search(r"<(script|link|iframe|object)\b|@import|url\(", page)
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]{0,40})', page))
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]+)', page))
    before_configs = page.partition("<h2>Configs</h2>")[0]
    assert "secretplace" not in before_configs and "secretplace" in page
    for name in ("results.md", "results.tex", "results.csv"):
        assert "secretplace" not in (report.parent / name).read_text()
    keys = pd.read_csv(folder / "labels.csv")["series_key"]
    assert not any(key in page for key in keys)


def test_page_has_every_section_and_figure(report: Path) -> None:
    page = report.read_text()
    titles = re.findall("<h2>(.+?)</h2>", page)
    expected = "Summary, Results, Errors and calibration, Pretraining, Patch tokens, Nearest neighbours, Data, "
    expected += "Protocol, Costs, Configs"
    assert titles == expected.split(", ")
    figures = {file.name for file in (report.parent / "figures").iterdir()}
    assert {"budgets-grade.png", "budgets-grade.svg", "pretraining.svg", "tokens.png"} <= figures
    assert {"neighbours-grade-lejepa.png", "neighbours-grade-random-init.png"} <= figures
    assert all(f'alt="{panel}"' in page for panel in ("prediction", "ranks", "probe"))
    assert "bright &amp; big" in page and "bright & big" not in page
    assert "3 scans of 2 patients" in page and "median 12.5 samples per second" in page


def test_every_table_says_that_weights_are_missing_and_how_to_give_them(folder: Path, report: Path) -> None:
    found = tables(Benchmark.open(folder / "benchmark"))
    waiting = [table for table in found if dict(table.rows).get("DINOv2") == "no weights given"]
    assert waiting == found and len(found) == 2 + 2 * 3  # areas, their differences; per method three
    assert as_markdown(found).count("no weights given") == as_latex(found).count("no weights given") == len(found)
    assert "encoders.4.weights=/path/to/dinov2" in report.read_text()


def test_figure_has_one_line_per_encoder_and_both_panels(folder: Path) -> None:
    finetuned, frozen = budget_figure(Benchmark.open(folder / "benchmark"), "grade").axes
    lines = {line.get_label(): line for line in frozen.lines if len(line.get_xdata()) > 2}
    assert set(lines) == {"LeJEPA", "random init", "pixels + PCA"}
    assert list(lines["LeJEPA"].get_xdata())[:2] == [1, 5]
    assert frozen.get_xscale() == "log" and finetuned.get_ylim() == frozen.get_ylim()
    assert {line.get_label() for line in finetuned.lines} >= {"LeJEPA", "from scratch"}


def test_ours_rivals_and_controls_look_apart_also_in_grey(folder: Path) -> None:
    found = looks_of(Benchmark.open(folder / "benchmark"))
    assert {name: look.role for name, look in found.items()} == {
        "LeJEPA": "ours",
        "random init": "control",
        "from scratch": "control",
        "pixels + PCA": "control",
        "DINOv2": "rival",
    }
    assert len({look.colour for look in found.values()}) == len({look.marker for look in found.values()}) == 5
    assert {look.dashes for look in found.values() if look.role == "control"} == {"--"}
    many = looks(["ours", *["rival"] * 6, *["control"] * 14])
    assert len({(look.colour, look.marker) for look in many}) == 21
    assert all(key_of(look).startswith("<svg") for look in many)


def difference(low: float | None, value: float, high: float | None, **more: Any) -> dict[str, Any]:
    row = {
        "reference": "LeJEPA",
        "other": "DINOv2",
        "metric": "balanced_accuracy",
        "budget": 5,
        "kind": "classification",
    }
    return row | {"low": low, "difference": value, "high": high} | more


def test_summary_names_the_winner_or_says_that_the_data_cannot_tell() -> None:
    assert comparison_sentences([difference(0.02, 0.05, 0.081)]) == [
        "LeJEPA is ahead of DINOv2 by 5.0 points (2.0 to 8.1)."
    ]
    assert comparison_sentences([difference(-0.08, -0.05, -0.02)]) == [
        "LeJEPA is behind DINOv2 by 5.0 points (2.0 to 8.0)."
    ]
    unclear = [difference(-0.01, 0.05, 0.11), difference(0.0, 0.03, 0.06, other="random init", metric="r2")]
    minus = "\N{MINUS SIGN}"
    assert comparison_sentences(unclear) == [
        f"The data cannot tell LeJEPA from DINOv2 (+5.0 points, {minus}1.0 to 11.0) "
        'and "random init" (+0.03, 0.00 to 0.06).'
    ]
    assert verdict(difference(None, 0.5, None)) == "cannot tell"


def test_summary_of_fewer_labels() -> None:
    rows = [difference(0.1, 0.2, 0.3, budget=1), difference(0.1, 0.2, 0.3, budget=2), difference(-0.1, 0.0, 0.1)]
    said = "With fewer labels per class it is, before correction, ahead of DINOv2 at 1 and 2"
    assert fewer_labels_sentence(rows) == f"{said}; elsewhere the data cannot tell."
    assert fewer_labels_sentence(rows[2:]) == "With fewer labels the data cannot tell it from any of them."


def test_neighbours_are_of_other_patients_and_near() -> None:
    corners = [(1, 1), (1, 1.1), (1.1, 1), (1, -1), (1.1, -1), (-1, 1), (-1, -1)]
    found = nearest(np.array(corners, dtype=np.float32), ["a", "a", "b", "c", "d", "e", "f"], count=2)
    assert found[0, 0] == 2 and 1 not in found[0]
    assert (found[3, 0], found[4, 0]) == (4, 3)
    few = nearest(np.array(corners[:4], dtype=np.float32), ["a", "b", "c", "c"])
    assert few.shape == (4, 2) and all(row not in found for row, found in enumerate(few.tolist()))  # never itself
    labels = ["x", "x", "x", "y", "y", "y"]
    assert agreement(labels, np.array([[1], [0], [0], [4], [3], [0]])) == pytest.approx(5 / 6)
    assert chance_agreement(["x", "x", "y"], ["a", "b", "c"]) == pytest.approx(1 / 3)
    assert agreement([1.0, 3.0], np.array([[1], [0]])) == 2.0


def test_queries_are_nobodys_choice() -> None:
    assert query_rows(["b", "a", "b", "c"]) == [1, 0, 3]
    assert query_rows([float(value) for value in range(20, -1, -1)], queries=3) == [18, 10, 2]


def test_numbers_and_paths_in_words() -> None:
    assert number(0.6123, "balanced_accuracy") == "61.2"
    assert number(-0.0001, "balanced_accuracy") == "0.0"
    assert number(-0.126, "r2", sign=True) == "\N{MINUS SIGN}0.13"
    assert without_paths("weights /home/anna smith/x/w.pth: damaged") == "weights w.pth: damaged"
    assert without_paths("encoders.0.weights=/path/to/w.pth") == "encoders.0.weights=/path/to/w.pth"


def test_report_without_run_and_cache_still_has_its_numbers(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "benchmark"
    (moved / "cells").mkdir(parents=True)
    for file in (folder / "benchmark").rglob("*.json"):
        copy = moved / file.relative_to(folder / "benchmark")
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    config = (folder / "benchmark" / "benchmark.yaml").read_text().replace("secretplace", "gone")
    (moved / "benchmark.yaml").write_text(config)
    page = write_report(moved, tmp_path / "report").read_text()
    assert "there are no curves" in page and "not where the config says" in page
    assert (tmp_path / "report" / "results.csv").read_text() == results_csv(Benchmark.open(folder / "benchmark"))


def test_unfinished_benchmark_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no benchmark\.yaml there; finish it"):
        write_report(tmp_path, tmp_path / "report")
