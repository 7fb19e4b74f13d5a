"""A small cache with labels: bright and dark balls in noise, of many sizes, one or two series per patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_limits

from lejepa_med.backbones import Backbone, build
from lejepa_med.config.evaluation import EvaluationDataConfig, RunEncoder
from lejepa_med.config.pretraining import HoldoutConfig, ModelConfig
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.cache import Cache, entry_name, entry_path, file_digest, write_entry, write_settings
from lejepa_med.spec import InferenceSpec, PreprocessSpec, Spec
from lejepa_med.weights import save_backbone

PATIENTS = 48
SIDE = 16
HOLDOUT = HoldoutConfig(test_fraction=0.4, seed=3)


@dataclass(frozen=True)
class Archive:
    """`truth` has one row per series: series_key, patient_key, study_key, bright (text), radius, site."""

    folder: Path
    cache: Cache
    truth: pd.DataFrame

    def task(self, column: str, **settings: object) -> TaskConfig:
        file = self.folder / "labels.csv"
        return TaskConfig.model_validate({"name": column, "labels": file, "column": column, **settings})

    @property
    def data(self) -> EvaluationDataConfig:
        return EvaluationDataConfig(cache=self.folder / "cache")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        yield


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("archive")
    cache, preprocess = folder / "cache", PreprocessSpec(spacing_mm=(2.0, 2.0, 2.0))
    write_settings(cache, preprocess)
    generator = np.random.default_rng(0)
    rows, truth = [], []
    for patient in range(PATIENTS):
        bright, radius = patient % 2 == 0, float(generator.uniform(3, 7))
        for series in range(1 + (patient % 4 == 1)):
            key = f"series{patient:03d}{series}"
            array = ball(generator, 200 if bright else 110, radius)
            entry = entry_name(key, "synthetic", preprocess)
            write_entry(cache, entry, array)
            row = {"series_key": key, "patient_key": f"patient{patient:03d}", "study_key": f"study{patient:03d}"}
            truth.append({**row, "bright": "yes" if bright else "no", "radius": radius, "site": patient % 3})
            row |= {"modality": "mri", "sequence": "t1", "shape": list(array.shape), "spacing_mm": [2.0, 2.0, 2.0]}
            rows.append(row | {"entry": entry, "sha256": file_digest(entry_path(cache, entry))})
    pd.DataFrame(rows).to_parquet(cache / "manifest.parquet")
    table = pd.DataFrame(truth)
    table.to_csv(folder / "labels.csv", index=False)
    return Archive(folder, Cache.open(cache), table)


def ball(generator: np.random.Generator, value: float, radius: float) -> np.ndarray:
    grid = np.indices((SIDE, SIDE, SIDE)) - (SIDE - 1) / 2
    inside = np.sqrt((grid**2).sum(0)) <= radius
    return np.clip(inside * value + generator.normal(20, 8, inside.shape), 0, 255).astype(np.uint8)


MODEL = ModelConfig(name="resnet10_3d", width=0.125, stem_pool=False)
SPEC = Spec(inference=InferenceSpec(window=(SIDE, SIDE, SIDE)))


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory, archive: Archive) -> Callable[..., RunEncoder]:
    """Writes a run with random weights and the list of the patients that "pretraining" saw."""

    def make(name: str = "LeJEPA", patients: list[str] | None = None, seed: int = 0) -> RunEncoder:
        folder = tmp_path_factory.mktemp("run")
        save_backbone(folder / "backbone.safetensors", tiny_backbone(seed), MODEL, SPEC)
        seen = archive.truth[archive.truth["patient_key"].isin(patients or [])]
        seen[["series_key", "patient_key"]].to_csv(folder / "pretraining_series.csv", index=False)
        return RunEncoder(name=name, path=folder)

    return make


def tiny_backbone(seed: int = 0) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = build(MODEL)
    backbone.spec = SPEC
    return backbone.eval()
