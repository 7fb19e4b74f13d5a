"""A scan that lies in an archive twice is found; patients who merely look alike are not called copies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lejepa_med.config.evaluation import BenchmarkConfig, EvaluationDataConfig, ShapeEncoder
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.cache import Cache, entry_name, entry_path, file_digest, write_entry, write_settings
from lejepa_med.data.splits import is_held_out
from lejepa_med.errors import DataError
from lejepa_med.evaluation.benchmark import run_benchmark
from lejepa_med.evaluation.duplicates import NEAR, Thumbnails, find_duplicates, standardised
from lejepa_med.evaluation.grid import Grid
from lejepa_med.evaluation.report_text import duplicate_sentence
from lejepa_med.resampling import resize
from lejepa_med.spec import PreprocessSpec

from .conftest import HOLDOUT

PATIENTS, SIDE = 40, 40
FOLDER = os.environ.get("LEJEPA_MED_REAL_DATA", "")


def organ(generator: np.random.Generator) -> np.ndarray:
    """A smooth random volume: blobs of many sizes."""
    coarse = generator.normal(size=(4, 4, 4))
    grid = np.stack(np.meshgrid(*[np.linspace(0, 3, SIDE)] * 3, indexing="ij"))
    low = np.floor(grid).astype(int).clip(0, 2)
    part = grid - low
    image = np.zeros((SIDE,) * 3)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod([p if c else 1 - p for p, c in zip(part, corner, strict=True)], axis=0)
        image += weight * coarse[tuple(axis + c for axis, c in zip(low, corner, strict=True))]
    return (120 + 40 * image).clip(0, 255)


def changed(image: np.ndarray, how: str) -> np.ndarray:
    match how:
        case "shifted":
            return np.roll(image, 1, axis=0)
        case "noised":
            return image + np.random.default_rng(1).normal(0, 8, image.shape)
        case "rescaled":
            return 0.7 * image + 20
        case "cut":
            return image[1:, :-1, :]
        case "flipped":
            return image[::-1]
    return image


@pytest.fixture
def planted(tmp_path: Path) -> Callable[[str], BenchmarkConfig]:
    """An archive in which the first test patient's scan is a changed copy of the first training patient's."""

    def make(how: str) -> BenchmarkConfig:
        folder, generator = tmp_path / how, np.random.default_rng(0)
        write_settings(folder / "cache", PreprocessSpec())
        keys = [f"p{number:02d}" for number in range(PATIENTS)]
        held_out = is_held_out(keys, HOLDOUT.test_fraction, HOLDOUT.seed)
        images = [organ(generator) for _ in keys]
        images[int(held_out.argmax())] = changed(images[int((~held_out).argmax())], how)
        rows = []
        for key, image in zip(keys, images, strict=True):
            array = np.ascontiguousarray(image.clip(0, 255)).astype(np.uint8)
            entry = entry_name(key, "planted", PreprocessSpec())
            write_entry(folder / "cache", entry, array)
            row = {"series_key": key.replace("p", "s"), "patient_key": key, "study_key": key, "modality": "mri"}
            row |= {"sequence": "t1", "shape": list(array.shape), "spacing_mm": [1.0, 1.0, 1.0], "entry": entry}
            rows.append(row | {"sha256": file_digest(entry_path(folder / "cache", entry))})
        table = pd.DataFrame(rows)
        table.to_parquet(folder / "cache" / "manifest.parquet")
        table[["series_key"]].assign(y=np.arange(PATIENTS) % 2).to_csv(folder / "labels.csv", index=False)
        task = TaskConfig(name="y", labels=folder / "labels.csv", column="y")
        data = EvaluationDataConfig(cache=folder / "cache")
        return BenchmarkConfig(data=data, tasks=(task,), encoders=(ShapeEncoder(),), holdout=HOLDOUT, device="cpu")

    return make


@pytest.mark.parametrize("how", ["shifted", "noised", "rescaled", "cut", "flipped"])
def test_a_planted_copy_is_found(planted: Callable[[str], BenchmarkConfig], how: str, tmp_path: Path) -> None:
    config = planted(how)
    found = find_duplicates(Grid.open(config), tmp_path / "out")["tasks"]["y"]
    assert found["exact"] == 0
    if how == "flipped":  # another anatomy
        assert (found["near"], found["worst"]) == (0, [])
        return
    assert found["near"] == 1 and len(found["worst"]) == 1
    tested, seen, r = found["worst"][0]
    keys = [f"p{number:02d}" for number in range(PATIENTS)]
    held_out = is_held_out(keys, HOLDOUT.test_fraction, HOLDOUT.seed)
    assert (tested, seen) == (f"s{int(held_out.argmax()):02d}", f"s{int((~held_out).argmax()):02d}")
    assert r >= NEAR
    assert "1 of" in duplicate_sentence({"tasks": {"y": found}, "pretraining": {}})


def test_exact_copies_are_refused_unless_allowed(planted: Callable[[str], BenchmarkConfig], tmp_path: Path) -> None:
    config = planted("same")
    with pytest.raises(DataError, match=r"task y: 1 test series have the same pixels as training series.*\(s\d+ = s\d"):
        run_benchmark(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    allowed = config.model_copy(update={"allow_duplicates": True, "methods": ("knn",), "budgets": (5,), "seeds": 1})
    found = run_benchmark(allowed, tmp_path / "out").duplicates["tasks"]["y"]
    assert (found["exact"], found["near"]) == (1, 1)


def test_thumbnails_are_made_once(planted: Callable[[str], BenchmarkConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    config = planted("noised")
    grid, out = Grid.open(config), config.data.cache.parent / "out"
    first = find_duplicates(grid, out)
    read: list[str] = []
    original = Cache.read
    monkeypatch.setattr(Cache, "read", lambda cache, key: read.append(key) or original(cache, key))
    assert find_duplicates(grid, out) == first and not read
    with np.load(out / "thumbnails.npz") as stored:
        kept = {name: stored[name] for name in stored.files}
    kept["sha256_3d"][3] = "another entry"
    np.savez(out / "thumbnails.npz", **kept)
    assert find_duplicates(grid, out) == first and len(read) == 1


def test_constant_images_are_like_nothing() -> None:
    assert not standardised(np.full((4, 4), 7.0)).any()
    assert Thumbnails({2: ({"a": 0, "b": 1}, np.zeros((2, 1024), dtype=np.float16))}).pairs(["a"], ["b"]) == []


@pytest.mark.long
@pytest.mark.skipif(not FOLDER, reason="needs LEJEPA_MED_REAL_DATA to name the folder of real scans")
def test_threshold_on_real_slices() -> None:
    """Neighbouring slices of one patient are often like copies, slices of strangers hardly ever."""
    folder = Path(FOLDER) / "brain_tumour_cheng"
    table = pd.read_csv(folder / "labels.csv").sort_values("original_index")
    rows = []
    for name in table["file"]:
        with Image.open(folder / "images" / name) as opened:
            image = np.asarray(opened.convert("L"), dtype=np.float32)
        rows.append(standardised(resize(torch.from_numpy(image)[None], (32, 32)).numpy()))
    values = np.stack(rows).astype(np.float32)
    gap = np.abs(np.subtract.outer(table["original_index"].to_numpy(), table["original_index"].to_numpy()))
    like = values @ values.T >= NEAR
    assert like[gap == 1].mean() > 0.2
    assert like[gap > 100].mean() < 1e-4
