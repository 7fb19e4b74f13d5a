"""What the online probe says is what one finds by hand, of patients that test nothing; it leaves the run as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.neighbors import KNeighborsClassifier
from torch.utils.data import TensorDataset

from lejepa_med.api import Run, open_source, pretrain, run_pretraining
from lejepa_med.config import PretrainConfig
from lejepa_med.data.splits import is_held_out
from lejepa_med.errors import ConfigError, DataError
from lejepa_med.evaluation import online_probe
from lejepa_med.evaluation.features import extract_features
from lejepa_med.evaluation.online_probe import OnlineProbe
from lejepa_med.evaluation.probes import patient_folds
from lejepa_med.training.log import read_log

from .conftest import HOLDOUT, SIDE, Archive, tiny_backbone

TASKS = ("bright", "radius")


def config_of(archive: Archive, **changes: Any) -> PretrainConfig:
    tasks = [archive.task(name).model_dump() for name in changes.pop("tasks", TASKS)]
    settings = {
        "data": {"cache": archive.folder / "cache", "holdout": HOLDOUT.model_dump()},
        "model": {"name": "resnet10_3d", "width": 0.125, "stem_pool": False},
        "projector": {"hidden": 16, "dim": 4, "layers": 2},
        "objective": {"num_slices": 16},
        "views": {
            "global_size": [12, 12, 12], "local_size": [8, 8, 8], "num_local": 2, "base_crop_mm": 32.0,
            "global_pitch_mm": None, "local_pitch_mm": None, "min_body": 0.0,
        },
        "train": {"steps": 5, "batch_size": 8, "precision": "float32", "device": "cpu", "checkpoint_every": 3},
        "inference": {"window": [SIDE] * 3, "pitch_mm": 2.0},
        "logging": {"tensorboard": False},
        "online_probe": {"tasks": tasks, "every": 2},
    }  # fmt: skip
    return PretrainConfig.model_validate({key: {**value, **changes.get(key, {})} for key, value in settings.items()})


def train(config: PretrainConfig, out: Path, **settings: Any) -> Run:
    source, preprocess = open_source(None, config)
    return run_pretraining(config, source, preprocess, out, **settings)


def test_scores_are_those_of_scikit_learn(archive: Archive) -> None:
    """Five folds of patients, features standardised by the others, by the formulas of the benchmark."""
    backbone = tiny_backbone()
    assert backbone.spec is not None
    bright, radius = OnlineProbe(config_of(archive))(backbone)
    truth = archive.truth
    table = truth[~is_held_out(truth["patient_key"], HOLDOUT.test_fraction, HOLDOUT.seed)].reset_index(drop=True)
    assert 0 < len(table) < len(truth)
    x = extract_features(backbone, (archive.cache.read(key) for key in table["series_key"]), backbone.spec.inference)
    y, patients = (table["bright"] == "yes").to_numpy().astype(np.int64), tuple(table["patient_key"])
    folds = patient_folds(y, patients)
    linear, nearest = np.zeros(len(y)), np.zeros(len(y))
    for fold in range(5):
        held = folds == fold
        assert not {*table["patient_key"][held]} & {*table["patient_key"][~held]}
        mean, std = x[~held].astype(np.float64).mean(0), x[~held].astype(np.float64).std(0)
        z = (x - mean) / np.where(std > 1e-8, std, np.inf)
        model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=5000, tol=1e-6).fit(z[~held], y[~held])
        linear[held] = model.predict(z[held])
        nearest[held] = KNeighborsClassifier(5, metric="cosine").fit(z[~held], y[~held]).predict(z[held])
    assert bright["linear"] == pytest.approx(balanced_accuracy_score(y, linear), abs=1e-6)
    assert bright["knn"] == pytest.approx(balanced_accuracy_score(y, nearest), abs=1e-6)
    assert bright | {"seconds": 0} == bright | {
        "task": "bright", "metric": "balanced_accuracy", "chance": 0.5, "series": len(table),
        "patients": table["patient_key"].nunique(), "seconds": 0,
    }  # fmt: skip
    assert bright["linear"] > 0.9, "these balls are told apart by any network"
    assert radius["metric"] == "r2" and radius["chance"] == 0.0
    values = table["radius"].to_numpy()
    strata = np.searchsorted(np.quantile(values, [0.2, 0.4, 0.6, 0.8]), values)
    folds, guess = patient_folds(strata, patients), np.zeros(len(y))
    for fold in range(5):
        held = folds == fold
        mean, std = x[~held].astype(np.float64).mean(0), x[~held].astype(np.float64).std(0)
        z = (x - mean) / np.where(std > 1e-8, std, np.inf)
        guess[held] = Ridge(alpha=z[~held].var(0).sum()).fit(z[~held], values[~held]).predict(z[held])
    assert radius["linear"] == pytest.approx(r2_score(values, guess), abs=1e-6)


def test_labels_that_mean_nothing_give_chance(archive: Archive, tmp_path: Path) -> None:
    backbone, found = tiny_backbone(), []
    for seed in range(6):
        table = archive.truth.drop_duplicates("patient_key")[["patient_key"]].copy()
        table["y"] = np.random.default_rng(seed).permutation(np.arange(len(table)) % 2)
        table.to_csv(tmp_path / "labels.csv", index=False)
        task = {"name": "noise", "labels": tmp_path / "labels.csv", "column": "y"}
        probe = OnlineProbe(config_of(archive, online_probe={"tasks": [task]}))
        found += [line[name] for line in probe(backbone) for name in ("linear", "knn")]
    assert 0.35 < np.mean(found) < 0.65, found


def test_a_run_with_probes_is_the_run_without(archive: Archive, tmp_path: Path) -> None:
    """Also resumed; and the last line is what the saved weights give."""
    config, plain = config_of(archive), config_of(archive, online_probe={"tasks": []})
    run = train(config, tmp_path / "run")
    without = train(plain, tmp_path / "plain")
    for name in ("metrics.jsonl", "backbone.safetensors"):
        assert (run.path / name).read_bytes() == (without.path / name).read_bytes(), name
    assert not (without.path / "probes.jsonl").exists()
    lines = read_log(run.path, "probes")
    probed = [line["step"] for line in lines if line["task"] == "bright"]
    assert {0, 5} <= set(probed) <= {0, 2, 4, 5} and probed == sorted(probed)
    measured = OnlineProbe(config)(run.backbone())
    last = [line for line in lines if line["step"] == 5]
    timeless = {"seconds": 0.0, "step": 5}
    assert [line | timeless for line in last] == [line | timeless for line in measured]
    first = [line for line in lines if line["step"] == 0]
    assert [line["linear"] for line in first] != [line["linear"] for line in last]

    (run.path / "checkpoints" / "latest").write_text("step_3.pt")
    for name in ("DONE", "backbone.safetensors"):
        (run.path / name).unlink()
    config = config_of(archive, online_probe={"every": 4})
    train(config, run.path, resume=True)
    assert (run.path / "backbone.safetensors").read_bytes() == (without.path / "backbone.safetensors").read_bytes()
    again = read_log(run.path, "probes")
    assert [line | timeless for line in again if line["step"] == 5] == [line | timeless for line in last]
    assert [line["step"] for line in again] == sorted(line["step"] for line in again)
    assert len({(line["step"], line["task"]) for line in again}) == len(again)


def test_averaged_weights_are_probed_where_the_run_leaves_them(archive: Archive, tmp_path: Path) -> None:
    config = config_of(archive, train={"swa_fraction": 1.0, "steps": 3}, optim={"lr": 1e-2})
    run = train(config, tmp_path / "run")
    last = [line["linear"] for line in read_log(run.path, "probes") if line["step"] == 3]
    assert last == [line["linear"] for line in OnlineProbe(config)(run.backbone())]


def test_a_probe_that_fails_ends_nothing(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("patient Jane Doe")

    monkeypatch.setattr(online_probe, "extract_features", fail)
    heard: list[str] = []
    config = config_of(archive, online_probe={"every": 100})  # none is due, and left out, while that of step 0 runs
    run = train(config, tmp_path / "run", warn=heard.append)
    assert run.finished and not (run.path / "probes.jsonl").exists()
    assert [text for text in heard if "probe" in text] == [
        "the online probe of step 0 failed and is switched off: ValueError"
    ]


def test_labels_and_data_are_checked_before_anything_is_written(archive: Archive, tmp_path: Path) -> None:
    kept = archive.truth[~is_held_out(archive.truth["patient_key"], HOLDOUT.test_fraction, HOLDOUT.seed)]
    few = kept.drop_duplicates("patient_key").head(6)
    few.to_csv(tmp_path / "few.csv", index=False)
    for labels, column, message in (
        (tmp_path / "few.csv", "bright", r"task t has labels of \d patients that are not kept for testing; 10 are"),
        (archive.folder / "labels.csv", "brigth", "no column `brigth`; did you mean `bright`"),
        (tmp_path / "none.csv", "bright", "its label file does not exist"),
    ):
        task = {"name": "t", "labels": labels, "column": column}
        with pytest.raises(DataError, match=message):
            train(config_of(archive, online_probe={"tasks": [task]}), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    task = archive.task("bright").model_dump()
    with pytest.raises(ConfigError, match=r"online_probe: probes scans of a cache"):
        pretrain(TensorDataset(torch.zeros(9, 1, 24, 24, 24)), out=tmp_path / "run", online_probe={"tasks": [task]})
    with pytest.raises(ValueError, match="two tasks have the same name"):
        config_of(archive, online_probe={"tasks": [task, task]})


def test_most_series_are_a_bound(archive: Archive) -> None:
    (line,) = OnlineProbe(config_of(archive, tasks=["bright"], online_probe={"tasks": [
        archive.task("bright").model_dump()], "max_series": 12}))(tiny_backbone())  # fmt: skip
    assert line["series"] == 12
