"""Runs are scored by one protocol, a bad run costs only itself, and probe results are read from where they lie."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import lejepa_med
from lejepa_med.config import SelectConfig, load_config
from lejepa_med.data import splits
from lejepa_med.data.cache import Cache
from lejepa_med.errors import DataError
from lejepa_med.evaluation.selection import RunScore, Selection, rank, select_runs
from lejepa_med.evaluation.selection_pages import as_json, plain_text, settings, write_selection
from lejepa_med.evaluation.selection_results import Outcome, read_results
from lejepa_med.evaluation.selection_runs import distinct_names, first_line, held_out_source, open_candidates, rebuild
from lejepa_med.evaluation.selection_scoring import use_batch_statistics
from lejepa_med.training.log import read_log

from .conftest import HOLDOUT, MODEL, Archive

FAST = SelectConfig(draws=2, num_slices=32)
VIEWS: dict[str, Any] = {
    "num_local": 1,
    "global_size": [16, 16, 16],
    "local_size": [8, 8, 8],
    "base_crop_mm": 32,
    "global_pitch_mm": None,
    "local_pitch_mm": None,
}


def pretrain(archive: Archive, out: Path, steps: int = 2, **changes: Any) -> Path:
    sections: dict[str, Any] = {
        "projector": {"hidden": 16, "dim": 8},
        "objective": {"num_slices": 16, "lam": 0.05},
        "views": VIEWS,
        "train": {"steps": steps, "batch_size": 4, "precision": "float32"},
    }
    sections = {name: {**section, **changes.pop(name, {})} for name, section in sections.items()}
    data = {"data.holdout": HOLDOUT.model_dump(), "data.monitor_fraction": 0.5}
    lejepa_med.pretrain(archive.cache.folder, MODEL, out, **sections, **data, **changes)
    return out


@pytest.fixture(scope="module")
def runs(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of two lengths, lambdas and projectors."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        pretrain(archive, folder / "a"),
        pretrain(archive, folder / "b", steps=3, objective={"lam": 0.3}, seed=1),
        pretrain(archive, folder / "c", projector={"hidden": 24, "dim": 4}, seed=2),
    ]


@pytest.fixture
def copied(runs: list[Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of the first run with other settings in its config.yaml, its weights as they were."""

    def copy(name: str = "copy", **changes: Any) -> Path:
        target = tmp_path / name
        shutil.copytree(runs[0], target)
        config = yaml.safe_load((target / "config.yaml").read_text())
        for key, value in changes.items():
            section, _, field = key.partition("__")
            config[section][field] = value
        (target / "config.yaml").write_text(yaml.safe_dump(config))
        return target

    return copy


@pytest.fixture(scope="module")
def selection(runs: list[Path]) -> Selection:
    return select_runs(runs, FAST)


def numbers(selection: Selection) -> dict[str, tuple[float, float, float]]:
    return {item.row.name: (item.row.prediction, item.row.sigreg, item.score) for item in selection.ranked}


def test_the_order_is_that_of_total_over_lam_to_alpha(selection: Selection) -> None:
    assert {item.row.name for item in selection.ranked} == {"a", "b", "c"}
    scores = [item.score for item in selection.ranked]
    assert scores == sorted(scores) and {item.alpha for item in selection.ranked} == {0.4}
    for item in selection.ranked:
        row = item.row
        assert row.lam == (0.3 if row.name == "b" else 0.05)
        assert row.steps == (3 if row.name == "b" else 2)
        assert row.total == pytest.approx((1 - row.lam) * row.prediction + row.lam * row.sigreg, rel=1e-5)
        assert item.score == pytest.approx(row.total / row.lam**0.4)
        assert row.total_sd > 0 and np.isfinite(row.train_total)
    assert selection.samples == selection.held_out_patients >= 8
    assert not selection.not_scored


def test_training_augmentation_does_not_matter(selection: Selection, copied: Callable[..., Path]) -> None:
    """Neither intensities nor a batch size that leaves lambda alone change the score of the same weights."""
    loud = copied("loud", views__mri={"gamma": [0.1, 9.0], "noise_std": [0.3, 0.5]}, train__batch_size=2)
    other = select_runs([loud], FAST)
    assert other.views == selection.views
    assert numbers(other)["loud"] == numbers(selection)["a"]


def test_the_order_of_runs_does_not_matter_by_an_explicit_protocol(
    runs: list[Path], copied: Callable[..., Path]
) -> None:
    wide = copied("wide", views__local_fraction=[0.2, 0.3])
    by_first = [numbers(select_runs(paths, FAST))["b"] for paths in ([runs[0], runs[1]], [wide, runs[1]])]
    assert by_first[0] != by_first[1], "the derived protocol is that of the first run"
    explicit = settings(select_runs([runs[0]], FAST))
    forth, back = (select_runs(paths, explicit) for paths in ([wide, *runs], [*runs[::-1], wide]))
    assert numbers(forth) == numbers(back)
    assert [item.row.name for item in forth.ranked] == [item.row.name for item in back.ranked]
    assert numbers(forth)["wide"] == numbers(forth)["a"]


def test_draws_and_patients_are_those_asked_for(runs: list[Path]) -> None:
    capped = select_runs([runs[0]], FAST.model_copy(update={"patients": 5, "draws": 3}))
    assert capped.samples == 5 and len(capped.ranked[0].row.totals) == 3
    assert len(set(capped.ranked[0].row.totals)) == 3


def test_moments_are_those_of_the_batch_and_running_ones_stay(runs: list[Path]) -> None:
    _, (candidate,) = open_candidates([runs[0]], FAST)
    model = rebuild(candidate, held_out_source(candidate.config))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    use_batch_statistics(model)
    views = [torch.rand(2, 6, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        together, fewer = model(views)[1], model([views[0][:, :3]])[1]
        after = {key: value.clone() for key, value in model.state_dict().items()}
        in_training = model.train()(views)[1]
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert torch.equal(together, in_training)
    assert not torch.allclose(together[:, :3], fewer), "moments are those of the batch"


def test_a_bad_run_costs_only_itself(runs: list[Path], copied: Callable[..., Path]) -> None:
    bad = {name: copied(name) for name in ("damaged", "unfinished", "seen", "foreign", "bare", "cut")}
    checkpoint = next((bad["damaged"] / "checkpoints").glob("*.pt"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    (bad["unfinished"] / "DONE").unlink()
    everyone = pd.DataFrame({"series_key": "x", "patient_key": [f"patient{number:03d}" for number in range(48)]})
    everyone.to_csv(bad["seen"] / "pretraining_series.csv", index=False)
    shutil.rmtree(bad["bare"] / "checkpoints")
    (bad["cut"] / "metrics.jsonl").write_text('{"step": 0, "tot')
    config = yaml.safe_load((bad["foreign"] / "config.yaml").read_text())
    config["projector"]["dim"] = 5
    (bad["foreign"] / "config.yaml").write_text(yaml.safe_dump(config))
    bad["zero"] = copied("zero", objective__lam=0.0)
    found = select_runs([runs[1], *bad.values()], FAST)
    assert [item.row.name for item in found.ranked] == ["b"]
    problems = {row.name: row.problem for row in found.not_scored}
    expected = {
        "damaged": "checkpoint damaged/checkpoints/step_2.pt: damaged",
        "unfinished": "not finished",
        "seen": "it was trained on",
        "foreign": "not of the network in its config.yaml",
        "bare": "it has no checkpoint",
        "zero": "its lam is 0",
        "cut": "its metrics.jsonl is damaged",
    }
    assert set(problems) == set(expected)
    for name, start in expected.items():
        assert start in problems[name] and "\n" not in problems[name]
        assert str(bad[name].parent) not in problems[name]
    assert f"not scored: zero: {problems['zero']}" in plain_text(found)
    with pytest.raises(DataError, match=r"no run can be scored: zero: its lam is 0.*"):
        select_runs([bad["zero"]], FAST)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data__monitor_fraction": 0.4}, r"run other: data.monitor_fraction is 0.4, but 0.5 in a;"),
        ({"data__holdout": {"test_fraction": 0.4, "seed": 4}}, r"run other: data.holdout is .*seed=4.* in a;"),
        ({"data__cache": "elsewhere"}, r"run other: data.cache is elsewhere, but "),
        ({"model__in_channels": 2}, r"run other: model.in_channels is 2, but 1 in a;"),
    ],
)
def test_runs_that_do_not_compare_are_refused(
    runs: list[Path], copied: Callable[..., Path], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        select_runs([runs[0], copied("other", **change)], FAST)


def test_a_moved_cache_is_named_once(
    selection: Selection, archive: Archive, copied: Callable[..., Path], tmp_path: Path
) -> None:
    moved = copied("moved", data__cache=str(tmp_path / "gone"))
    found = select_runs([moved], FAST.model_copy(update={"cache": archive.cache.folder}))
    assert numbers(found)["moved"] == numbers(selection)["a"]


def test_runs_from_before_a_cache_grew(
    archive: Archive, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patients of then are aside or released; only one that kept nobody aside has seen those of now."""
    monkeypatch.setattr(splits, "MAX_MONITORED", 10)
    cache = tmp_path / "cache"
    shutil.copytree(archive.cache.folder, cache)
    whole = pd.read_parquet(cache / "manifest.parquet")
    found = {}
    for name, patients in (("tiny", 20), ("half", 38), ("new", 48)):
        whole[whole["patient_key"] < f"patient{patients:03d}"].to_parquet(cache / "manifest.parquet")
        found[name] = pretrain(replace(archive, cache=Cache.open(cache)), tmp_path / name)
    assert not {"held_out_total"} & set(read_log(found["tiny"], "diagnostics")[-1])
    selection = select_runs(list(found.values()), FAST)
    assert {item.row.name for item in selection.ranked} == {"half", "new"}
    (row,) = selection.not_scored
    assert re.fullmatch(
        r"it was trained on \d of the \d+ held-out patients: when it started, too few were there to keep any aside, "
        r"or its version did not; pretrain it anew on the cache as it is now",
        row.problem,
    )


def test_what_the_first_weights_saw_is_seen(
    archive: Archive, runs: list[Path], copied: Callable[..., Path], tmp_path: Path
) -> None:
    """By a run that keeps patients aside, from one that did not, and from weights that tell nothing."""
    everyone = copied("everyone")
    whole = pd.DataFrame({"series_key": archive.truth["series_key"], "patient_key": archive.truth["patient_key"]})
    whole.to_csv(everyone / "pretraining_series.csv", index=False)
    shutil.copy(runs[0] / "backbone.safetensors", tmp_path / "bare.safetensors")
    starts = {"fair": runs[0], "leaky": everyone, "bare": tmp_path / "bare.safetensors"}
    found = select_runs([pretrain(archive, tmp_path / name, init_from=str(at)) for name, at in starts.items()], FAST)
    assert [item.row.name for item in found.ranked] == ["fair"]
    problems = {row.name: row.problem for row in found.not_scored}
    number = found.held_out_patients
    assert problems == {
        "leaky": f"it started from weights (init_from) that were trained on {number} of the {number} held-out patients",
        "bare": "it started from weights (init_from) without a record of whom they were trained on",
    }


def test_nobody_kept_aside_is_one_sentence(copied: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"data.monitor_fraction 0.0 of \d+ patients keeps fewer than 8 aside"):
        select_runs([copied("all", data__monitor_fraction=0.0)], FAST)


def result(run: Path, values: dict[str, float], **changes: Any) -> str:
    rows = [
        {"task": "grade", "method": method, "budget": budget, "status": "ok", "metric": "r2", "value": value}
        for method, value in values.items()
        for budget in ("all", 5)
    ]
    counts = {"column": "grade", "train_rows": 20, "test_rows": 9, **changes}
    return json.dumps({"encoder": str(run), "counts": counts, "results": rows, "config": {"holdout": {"seed": 3}}})


def test_results_are_found_in_runs_files_and_tables(copied: Callable[..., Path], tmp_path: Path) -> None:
    paths = [copied(f"run{number}", objective__lam=0.05 * (number + 1)) for number in range(4)]
    for number, path in enumerate(paths[:3]):
        (path / "probe").mkdir()
        (path / "probe" / "result.json").write_text(result(path, {"linear": 0.1 * number, "knn": 0.2}))
    apart = tmp_path / "apart.json"
    apart.write_text(result(paths[3] / "backbone.safetensors", {"linear": 0.7}))
    table = tmp_path / "radiologist.csv"
    table.write_text(f"run,score\nrun0,1\n{paths[1]},2\nelsewhere,3\nrun2,\n{tmp_path}/away/old,4\n")
    one = FAST.model_copy(update={"draws": 1})
    found = select_runs(paths, one, [apart, table])
    outcomes = {agreement.outcome.title: agreement.outcome.values for agreement in found.agreements}
    assert outcomes["grade (linear, R², all labels)"] == pytest.approx(
        {"run0": 0, "run1": 0.1, "run2": 0.2, "run3": 0.7}
    )
    assert outcomes["grade (knn, R², all labels)"] == {"run0": 0.2, "run1": 0.2, "run2": 0.2}
    assert outcomes["radiologist (score)"] == {"run0": 1.0, "run1": 2.0}
    assert len(outcomes) == 3
    text = plain_text(found)
    assert "4 runs are too few to stand for others (6 are needed)" in text
    assert "\n\nresults radiologist.csv: 2 rows are of no run given here: elsewhere, old\n\n" in text
    assert str(tmp_path) not in json.dumps(as_json(found)) and found.notes == as_json(found)["notes"]

    (paths[0] / "probe" / "result.json").write_text(result(paths[0], {"linear": 0.0}, test_rows=10))
    with pytest.raises(DataError, match=r"test_rows is 9, but 10 for run0; probe all runs with one config"):
        select_runs(paths, one)
    for content, said in (
        ("run;score\n", "expected columns `run, score`"),
        ("run,score\nrun0,good\n", "line 2: score"),
        ("run,score\nrun0,inf\n", "line 2: score"),
        ("", "cannot be read as CSV"),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=said):
            select_runs(paths[1:], one, [table])
    with pytest.raises(DataError, match="no result there is of a run given here"):
        select_runs(paths[1:3], one, [apart])


def test_another_encoder_probed_in_a_runs_folder_is_not_the_run(tmp_path: Path) -> None:
    """DINOv2 beside the run, for comparison; a run that was moved with its results is still itself."""
    run = tmp_path / "here" / "run0"
    for name, encoder in (("probe", Path("/there/run0/backbone.safetensors")), ("probe_dino", Path("/dino/vits14"))):
        (run / name).mkdir(parents=True)
        (run / name / "result.json").write_text(result(encoder, {"linear": 0.3 if name == "probe" else 0.9}))
    (outcome,), notes = read_results([RunScore(run, "run0")], [], SelectConfig())
    assert outcome.values == {"run0": 0.3}
    (note,) = notes
    assert note.startswith("results run0/probe_dino: of encoder vits14, not of this run, so left out")


def ranked_rows() -> list[RunScore]:
    """Eight runs with total = quality * lam^.9: at the paper's .4 lambda decides on the order, at .9 quality does."""
    qualities = [1.0, 0.93, 1.04, 0.98, 0.95, 1.02, 0.96, 1.01]
    lams = [(0.02, 0.1, 0.3)[number % 3] for number in range(8)]
    rows = zip(qualities, lams, strict=True)
    return [RunScore(Path(f"r{n}"), f"r{n}", lam=lam, totals=[q * lam**0.9]) for n, (q, lam) in enumerate(rows)]


def test_auto_is_the_alpha_that_all_results_choose() -> None:
    """One alpha for all runs, also for one without a result."""
    rows = ranked_rows()
    outcome = Outcome("t", "linear", "r2", "all", {row.name: -row.total / row.lam**0.9 for row in rows[:-1]})
    ranked = rank(rows, [outcome], SelectConfig())
    (alpha,) = {item.alpha for item in ranked}
    assert alpha == pytest.approx(0.9, abs=0.06)
    assert [item.row.name for item in ranked] == ["r1", "r4", "r6", "r3", "r0", "r7", "r5", "r2"]
    fixed = rank(rows, [outcome], SelectConfig(alpha=0.0))
    assert [item.row.name for item in fixed] == [row.name for row in sorted(rows, key=lambda row: row.total)]
    assert {item.alpha for item in rank(rows, [], SelectConfig())} == {0.4}
    few = Outcome("t", "linear", "r2", "all", {"r0": 1.0, "r1": 2.0})
    assert {item.alpha for item in rank(rows, [few], SelectConfig())} == {0.4}


def test_a_lower_loss_with_equal_or_larger_lambda_is_never_behind() -> None:
    """Whatever the results say."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        lams, totals = draw.choice([0.02, 0.1, 0.3], 9), draw.uniform(1, 3, 9)
        rows = [RunScore(Path(f"r{n}"), f"r{n}", lam=lams[n], totals=[totals[n]]) for n in range(9)]
        outcome = Outcome("t", "linear", "r2", "all", {row.name: draw.normal() for row in rows})
        places = {item.row.name: place for place, item in enumerate(rank(rows, [outcome], SelectConfig()))}
        for one in rows:
            for other in rows:
                if one.total < other.total and one.lam >= other.lam:
                    assert places[one.name] < places[other.name]


def test_a_table_names_runs_by_numbers_with_zeros(tmp_path: Path) -> None:
    rows = [RunScore(tmp_path / name, name) for name in ("001", "002")]
    table = tmp_path / "scores.csv"
    table.write_text("run,score\n001,1\n002,2\n")
    (outcome,), _ = read_results(rows, [table], SelectConfig())
    assert outcome.values == {"001": 1.0, "002": 2.0}


def test_a_message_names_the_run_and_keeps_its_dots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    row = RunScore(Path(), tmp_path.name)
    assert first_line(DataError(f"checkpoint {tmp_path}/a.pt: damaged"), row) == (
        f"checkpoint {tmp_path.name}/a.pt: damaged"
    )


def test_names_tell_folders_apart_without_their_parents() -> None:
    paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/y/run (2)"), Path("/z/other"), Path("/z/c/run")]
    assert distinct_names(paths) == ["run", "run (3)", "run (2)", "other", "run (4)"]


def test_a_table_must_tell_runs_of_one_name_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    rows = [RunScore(path, name) for path, name in zip(paths, distinct_names(paths), strict=True)]
    table = tmp_path / "scores.csv"
    table.write_text(f"run,score\n{paths[1]},1\n{paths[0]},2\n")
    (outcome,), _ = read_results(rows, [table], SelectConfig())
    assert outcome.values == {"run": 2.0, "run (2)": 1.0}
    table.write_text("run,score\nrun,1\n")
    with pytest.raises(DataError, match="line 2: several runs are called `run`; give its path"):
        read_results(rows, [table], SelectConfig())


def test_files_name_no_path_and_repeat_the_protocol(
    selection: Selection, runs: list[Path], archive: Archive, tmp_path: Path
) -> None:
    write_selection(selection, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {f"selection.{kind}" for kind in ("csv", "json", "md", "png", "svg")} | {"select.yaml"}
    patients = [key.encode() for key in archive.truth["patient_key"]]
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        assert str(runs[0].parent).encode() not in content and not [key for key in patients if key in content]
    table = pd.read_csv(tmp_path / "out" / "selection.csv")
    assert table["run"].tolist() == [item.row.name for item in selection.ranked]
    assert table["score"].tolist() == pytest.approx([item.score for item in selection.ranked])
    again = select_runs(runs[::-1], load_config(SelectConfig, tmp_path / "out" / "select.yaml"))
    assert numbers(again) == numbers(selection)
    content = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert content["protocol"]["held_out_patients"] == selection.held_out_patients
    assert content["runs"][0]["rank"] == 1 and content["agreements"] == []
