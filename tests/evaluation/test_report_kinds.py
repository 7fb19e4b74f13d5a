"""What a report says of every kind of task, of failed and missing arms, and whether its sentences are its numbers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lejepa_med.config.evaluation import RunEncoder
from lejepa_med.evaluation.metrics import ece, limits
from lejepa_med.evaluation.report import write_report
from lejepa_med.evaluation.report_answers import confusion, reliability
from lejepa_med.evaluation.report_comparisons import rival_table, tables
from lejepa_med.evaluation.report_costs import costs
from lejepa_med.evaluation.report_data import Benchmark
from lejepa_med.evaluation.report_figures import budget_figure
from lejepa_med.evaluation.report_formats import as_html, as_latex, as_markdown
from lejepa_med.evaluation.report_names import METHODS, MINUS, method_title
from lejepa_med.evaluation.report_protocol import protocol_paragraphs
from lejepa_med.evaluation.report_summary import cautions, contest_items, rival_paragraph, single_budgets
from lejepa_med.evaluation.report_tables import metrics_table
from lejepa_med.evaluation.report_text import duplicate_sentence

from .report_showcase import showcase_config, write_showcase, write_showcase_cache

KINDS = ("classification", "regression", "ordinal", "multilabel", "segmentation")
SMALL: dict[str, Any] = {
    "methods": ["linear", "attention", "finetune", "segment_linear", "segment_finetune"],
    "budgets": [2, 5],
    "finetune_budgets": [5],
    "seeds": 1,
}
DUPLICATES: dict[str, Any] = {
    "tasks": {"age": {"tested": 24, "seen": 36, "exact": 1, "near": 2, "threshold": 0.97, "worst": []}},
    "pretraining": {"LeJEPA 1": {"tested": 24, "seen": 36, "exact": 0, "near": 0, "threshold": 0.97, "worst": []}},
}
LEAKS = {"LeJEPA 2": "transductive: saw 3 test patients"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("showcase")
    write_showcase_cache(folder, patients=60)
    (folder / "run").mkdir()
    (folder / "run" / "backbone.safetensors").write_bytes(b"never loaded here")
    return folder


@pytest.fixture(scope="module")
def showcase(place: Path) -> Benchmark:
    """Every kind of task, some arms failed or without weights."""
    config = showcase_config(place, place / "run", KINDS, **SMALL)
    return Benchmark.open(write_showcase(config, place / "all", leaks=LEAKS, duplicates=DUPLICATES))


@pytest.mark.parametrize(
    ("task", "heads"),
    [
        ("tumour grade", ["balanced accuracy (%) ↑", "AUROC ↑", "AUPRC ↑", "macro F1 ↑", "ECE ↓"]),
        ("age", ["R² ↑", "MAE (unit of the label) ↓"]),
        ("stage", ["kappa ↑", "MAE (levels) ↓", "balanced accuracy (%) ↑", "AUROC ↑"]),
        ("findings", ["AUROC ↑", "AUPRC ↑", "balanced accuracy (%) ↑", "ECE ↓"]),
        ("core", ["Dice ↑", "HD95 (mm) ↓", "Dice, core ↑"]),
    ],
)
def test_every_kind_has_its_metrics_with_unit_and_direction(showcase: Benchmark, task: str, heads: list[str]) -> None:
    method = "segment_linear" if task == "core" else "linear"
    table = metrics_table(showcase, task, method)
    assert table is not None and set(heads) <= set(table.columns)
    assert table.columns[0] == heads[0]
    best = {}
    for number, name in enumerate(table.columns):
        values = {arm: float(e[number].value.replace(MINUS, "-")) for arm, e in table.rows if not isinstance(e, str)}
        best[name] = [arm for arm, e in table.rows if not isinstance(e, str) and e[number].style == "best"]
        wanted = (min if name.endswith("↓") else max)(values.values())
        assert len(best[name]) == 1 and values[best[name][0]] == wanted


def test_figures_have_a_panel_for_every_method_fine_tuning_left_and_linear_right(showcase: Benchmark) -> None:
    panels = [axes.get_title(loc="left") for axes in budget_figure(showcase, "tumour grade").axes]
    assert panels == [method_title(method) for method in ("finetune", "linear", "attention")]
    assert set(METHODS) >= set(showcase.config.methods)
    tuned, linear, attention = budget_figure(showcase, "tumour grade").axes
    assert [label.get_text() for label in linear.get_xticklabels()] == ["2", "5", "all"]
    labels = next(row["labels"] for row in showcase.summary["rows"] if row["budget"] == "all")
    assert linear.get_xlabel() == f"labels per class (log scale; all: {labels})"
    assert [label.get_text() for label in tuned.get_xticklabels()] == ["5"]  # one budget: points with their intervals
    assert len(tuned.containers) == len([line for line in tuned.lines if line.get_label() in showcase.roles]) - 1
    drawn = {line.get_label() for line in attention.lines if len(line.get_xdata())}
    assert "VICReg" not in drawn and "LeJEPA" in drawn
    assert [axes.get_title(loc="left") for axes in budget_figure(showcase, "core").axes] == [
        "Segmentation, full fine-tuning",
        "Segmentation, frozen, linear head",
    ]


def test_failed_and_missing_arms_have_rows_that_say_so(showcase: Benchmark) -> None:
    rows = {table.title: dict(table.rows) for table in tables(showcase)}
    assert rows["age: Frozen, attention pooling"]["VICReg"] == "failed"
    assert rows["age: Frozen, attention pooling"]["DINOv3"] == "no weights given"
    assert rows["age: area under the budget curve"]["DINOv3"] == "no weights given"
    assert not isinstance(rows["age: area under the budget curve"]["VICReg"], str)
    assert rows["core: Segmentation, frozen, linear head"]["DINOv3"] == "no weights given"
    assert "pixels + PCA" not in rows["core: Segmentation, frozen, linear head"]
    failed = {(line["encoder"], line["method"]): line["failed"] for line in costs(showcase)}
    assert failed["VICReg", "attention"] > 0 and failed["VICReg", "linear"] == 0


def test_verdict_against_the_strongest_rival_is_that_of_the_areas(showcase: Benchmark) -> None:
    """One budget: that of the score. Ahead or behind only where both the interval and Holm's p say so."""
    outcome, chosen = {"ahead": 0, "behind": 0, "unclear": 0}, 0
    methods = dict.fromkeys(("tumour grade", "age", "stage", "findings"), ("linear", "attention", "finetune"))
    methods["core"] = ("segment_linear", "segment_finetune")
    for task, of_task in methods.items():
        for method in of_task:
            other = showcase.rival(task, method)
            found = [r for r in showcase.summary["rows"] if (r["task"], r["method"]) == (task, method)]
            means = {
                name: np.mean([r["value"] for r in found if r["encoder"] == name]) for name in ("DINOv2", "DINOv2, 32")
            }
            areas = {name: showcase.area_of.get((task, method, name)) for name in means}
            if all(areas.values()):
                means = {name: row["value"] for name, row in areas.items()}
            assert other == max(means, key=lambda name: means[name])
            row = showcase.area_difference_of.get((task, method, other))
            assert (row is None) == (method in ("finetune", *methods["core"])), "one budget"
            row = row or next(r for r in showcase.summary["best_rival"] if (r["task"], r["method"]) == (task, method))
            sure = row["p_adjusted"] <= 0.05
            name = "ahead" if sure and row["low"] > 0 else "behind" if sure and row["high"] < 0 else "unclear"
            outcome[name] += 1
            chosen += 1
    said = rival_paragraph(showcase)
    assert f"ahead in {outcome['ahead']} of {chosen} comparisons and behind in {outcome['behind']}" in said
    assert f"in {outcome['unclear']} the data cannot tell" in said and outcome["ahead"] > 0
    items = contest_items(showcase)
    assert sum(item.count("p = ") for item in items) == chosen and "DINOv3" not in "".join(items)
    assert f"of {len(showcase.summary['best_rival'])} comparisons" in single_budgets(showcase)


def test_a_rival_that_wins_is_said_to_win(showcase: Benchmark) -> None:
    turned = dict(showcase.summary)
    for name in ("differences", "best_rival", "area_differences"):
        turned[name] = [
            row | {"difference": -row["difference"], "low": -row["high"], "high": -row["low"]} for row in turned[name]
        ]
    other = dataclasses.replace(showcase, summary=turned)
    counts = [re.findall(r"ahead in (\d+) of \d+ comparisons and behind in (\d+)", rival_paragraph(showcase))]
    counts.append(re.findall(r"ahead in (\d+) of \d+ comparisons and behind in (\d+)", rival_paragraph(other)))
    assert counts[0][0] == counts[1][0][::-1] and counts[0][0][0] != "0"
    assert any(": behind with " in item for item in contest_items(other))
    assert not any(": ahead" in item for item in contest_items(other))


def test_a_task_without_a_rival_claims_nothing(showcase: Benchmark) -> None:
    left = {
        name: [row for row in showcase.summary[name] if row["task"] != "core"]
        for name in ("differences", "best_rival", "area_differences")
    }
    items = contest_items(dataclasses.replace(showcase, summary={**showcase.summary, **left}))
    assert items[-1] == "core: no rival has a result, so nothing is claimed against one."


def test_cautions_name_what_a_reader_has_to_know(showcase: Benchmark) -> None:
    said = " ".join(cautions(showcase))
    assert "DINOv3: no weights given" in said and "/path/to/" in said
    assert "Of VICReg there is one pretraining run" in said and "Of LeJEPA" not in said
    assert 'of "random init" one draw of weights: intervals speak about other test patients' in said
    assert "findings: bleeding (4) stands on few test patients" in said
    assert "LeJEPA 2: transductive: saw 3 test patients" in said and "LeJEPA 1: " not in said
    assert "2 of 24 have a near duplicate (1 an exact copy) among the training scans of task age;" in said
    assert "none are near duplicates" in duplicate_sentence({"tasks": {}, "pretraining": DUPLICATES["pretraining"]})
    uneven = next(text for text in protocol_paragraphs(showcase) if text.startswith("Encoders did not"))
    assert "frozen, linear probe, 5 to 20" in uneven


def test_few_draws_of_the_labels_are_a_caution(showcase: Benchmark) -> None:
    def said(seeds: int, finetune_seeds: int) -> str:
        update = {"seeds": seeds, "finetune_seeds": finetune_seeds}
        return " ".join(cautions(dataclasses.replace(showcase, config=showcase.config.model_copy(update=update))))

    both = said(1, 3)
    assert "there is one draw for `linear` and `attention`: intervals and p hold it fixed" in both
    assert "there are 3 draws for `finetune`" in both and "raise finetune_seeds" in both
    assert "Of the labels" not in said(5, 5)


def test_the_pages_of_the_run_are_of_the_reference(showcase: Benchmark, tmp_path: Path) -> None:
    """Not of whatever run stands first, such as a rival trained further."""
    (tmp_path / "rival").mkdir()
    rival = RunEncoder(name="DINOv2, continued", path=tmp_path / "rival", role="rival")
    config = showcase.config.model_copy(update={"encoders": (rival, *showcase.config.encoders)})
    found = dataclasses.replace(showcase, config=config).run
    assert found is not None and found == showcase.run and found != tmp_path / "rival"


def test_scans_without_a_patient_are_counted_on_both_sides(showcase: Benchmark, tmp_path: Path) -> None:
    assert showcase.cache is not None
    keys, tested = showcase.cache.table["series_key"].tolist(), showcase.test_series("age")
    trained = [key for key in keys if all(key not in showcase.test_series(task) for task in showcase.summary["tasks"])]
    flags = {tested[0]: "patient_unknown", trained[0]: "modality_unknown;patient_unknown", trained[1]: ""}
    table = pd.DataFrame({"series_key": list(flags), "flags": list(flags.values())})
    table.to_parquet(tmp_path / "series.parquet")
    data = showcase.config.data.model_copy(update={"index": tmp_path})
    known = dataclasses.replace(showcase, config=showcase.config.model_copy(update={"data": data}))
    assert (known.unknown_patients("age"), known.unknown_elsewhere()) == (1, 1)
    assert "Of 1 scan that no task tests no patient id is known" in " ".join(cautions(known))
    assert showcase.unknown_elsewhere() == 0
    assert set(known.test_patients("age")) == set(tested)


def test_intervals_stay_where_a_metric_can_be(showcase: Benchmark) -> None:
    touched = 0
    for row in showcase.summary["rows"]:
        for metric, found in row["scores"].items():
            low, high = limits(metric.split()[0])
            assert low <= found["low"] <= found["high"] <= high
            touched += found["high"] == high
    assert touched > 0


def test_confusion_and_calibration_count_what_the_cells_hold(showcase: Benchmark) -> None:
    cell = showcase.cells_of("DINOv2", "linear", "tumour grade", 5)[0]
    truth, answer = np.array(cell["predictions"]["truth"]), np.array(cell["predictions"]["score"]).argmax(1)
    counts = confusion(cell, "classification", 3)
    assert counts.sum() == len(truth) and counts[1, 2] == ((truth == 1) & (answer == 2)).sum()
    found = reliability([cell], "classification")
    score = np.array(cell["predictions"]["score"])
    gap = np.nansum(found.count * np.abs(found.right - found.confidence)) / found.count.sum()
    assert gap == pytest.approx(ece(score.max(1), answer == truth, np.ones((1, len(truth))))[0])
    assert gap == pytest.approx(cell["scores"]["ece"])
    ordinal = showcase.cells_of("DINOv2", "linear", "stage", "all")[0]
    assert confusion(ordinal, "ordinal", 4).sum() == len(ordinal["predictions"]["truth"])
    several = showcase.cells_of("DINOv2", "linear", "findings", "all")[0]
    assert reliability([several], "multilabel").count.sum() == np.isfinite(several["predictions"]["truth"]).sum()


def test_tables_agree_in_every_format(showcase: Benchmark) -> None:
    table = rival_table(showcase, "stage")
    assert table is not None
    rendered = [as_html(table, "caption"), as_markdown([table]), as_latex([table])]
    for _, entries in table.rows:
        assert not isinstance(entries, str)
        value, interval = entries[0].value, entries[0].interval
        assert all(value in text and interval in text for text in rendered)


@pytest.mark.parametrize(
    "kinds",
    [
        ("segmentation",),
        pytest.param(("regression", "ordinal"), marks=pytest.mark.long),
        pytest.param(("multilabel",), marks=pytest.mark.long),
    ],
)
def test_page_of_other_kinds_and_without_rival_weights(place: Path, tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """No claim is made against a rival that has no weights; one budget has no area."""
    settings = SMALL | {"budgets": [5], "finetune_budgets": [5]}
    config = showcase_config(place, place / "run", kinds, **settings)
    kept = [one for one in config.encoders if one.kind != "timm2d" or one.name == "DINOv3"]
    one_rival = config.model_copy(update={"encoders": tuple(kept)})
    page = write_report(write_showcase(one_rival, tmp_path / "benchmark"), tmp_path / "report").read_text()
    assert "For DINOv3 no weights were given: this report makes no claim against it." in page
    assert "strongest rival" not in page and "ahead of DINOv3" not in page
    assert ("Errors and calibration" in page) == (kinds != ("segmentation",))
    assert ("Area under the budget curve" in page) == (kinds != ("segmentation",))  # `all` is a second budget
    names = re.findall("<h3>(.+?)</h3>", page.partition("<h2>Results</h2>")[2].partition("<h2>Pretraining")[0])
    assert len(names) >= len(kinds)
    series = {key for cell in Benchmark.open(tmp_path / "benchmark").cells for key in _keys(cell)}
    assert series and not any(key in page for key in series)


def _keys(cell: dict[str, Any]) -> set[str]:
    return set(cell["predictions"]["series_key"]) if cell["predictions"] else set()
