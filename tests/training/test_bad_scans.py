"""Scans that are odd are trained on as documented; those that cannot be are named, and no other takes their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from small_caches import numbered, write_cache
from test_loop import TINY, Balls, bits, run

import lejepa_med
from lejepa_med.api import Run
from lejepa_med.config import IndexSettings, PrepareConfig, ViewsConfig
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data.cache import Cache, entry_path
from lejepa_med.data.dataset import CacheSource, StepDataset
from lejepa_med.data.index.archive import index
from lejepa_med.data.preparing import prepare
from lejepa_med.data.sampler import StepSampler
from lejepa_med.errors import ConfigError, DataError, UserError
from lejepa_med.training.batch_views import batch_views
from lejepa_med.training.log import read_log
from lejepa_med.views import BatchedMultiCrop

DATA: dict[str, Any] = {"data.holdout.test_fraction": 0.0, "data.monitor_fraction": 0.0}
SMALL: dict[str, Any] = {"base_crop_mm": 20, "min_body": 0.0}


def small(out: Path, cache: Path, resume: bool = False, views: dict[str, Any] | None = None, **changes: Any) -> Run:
    train = {"batch_size": 2, "steps": 3, "checkpoint_every": 1, "diagnostics_every": 100}
    return run(out, cache, resume, views={**SMALL, **(views or {})}, train=train, **DATA, **changes)


def test_a_damaged_entry_stops_training_and_prepare_mends_it(tmp_path: Path) -> None:
    for patient in range(6):
        array = np.random.default_rng(patient).normal(10, 3, (18, 20, 16))
        array[4:14, 5:15, 4:12] += 100
        (tmp_path / "scans" / f"sub-{patient}").mkdir(parents=True)
        image = nibabel.Nifti1Image(array.astype(np.float32), np.diag([-1.0, 1.0, 1.0, 1.0]))
        nibabel.save(image, tmp_path / "scans" / f"sub-{patient}" / "a.nii.gz")
    one = ComputeConfig(workers=1)
    index([tmp_path / "scans"], tmp_path / "index", IndexSettings(modality="mri", compute=one))
    prepare(tmp_path / "index", tmp_path / "cache", PrepareConfig(compute=one))
    table = Cache.open(tmp_path / "cache").table
    sampler = StepSampler(table["patient_key"].tolist(), 2, 0, table["group_key"].tolist())
    damaged = table.iloc[next(item for item in sampler.batch(2) if item != 0)]  # item 0 says how large crops are
    file = entry_path(tmp_path / "cache", damaged["entry"])
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(DataError) as caught:
        small(tmp_path / "run", tmp_path / "cache", **{"data.residency": "disk"})
    assert str(caught.value) == (
        f"training stopped at step 2: cache {tmp_path / 'cache'}: series {damaged['series_key']} is missing or "
        "damaged; run `prepare` again to rebuild it (`lejepa-med prepare INDEX --out CACHE`); the last good "
        "checkpoint is step_2.pt"
    )
    with pytest.raises(DataError, match=f"series {damaged['series_key']} is missing or damaged"):
        small(tmp_path / "held", tmp_path / "cache", **{"data.residency": "host"})
    assert not (tmp_path / "held").exists()

    prepare(tmp_path / "index", tmp_path / "cache", PrepareConfig(compute=one))
    assert file.read_bytes() == content
    assert small(tmp_path / "run", tmp_path / "cache", resume=True).finished
    assert small(tmp_path / "whole", tmp_path / "cache").finished
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_residency_workers_and_prefetch_change_no_bit_and_are_on_record(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", numbered(6, (24, 22, 20), np.uint8))
    heard: list[str] = []
    small(tmp_path / "auto", tmp_path / "cache", warn=heard.append)
    assert [line for line in heard if line.startswith("data: ")] == [heard[0]]
    assert {line["residency"] for line in read_log(tmp_path / "auto", "timing")} == {"host"}
    for where in ("disk", "device"):
        small(tmp_path / where, tmp_path / "cache", **{"data.residency": where, "data.workers": 2, "data.prefetch": 1})
        assert {line["residency"] for line in read_log(tmp_path / where, "timing")} == {where}
        assert bits(tmp_path / where) == bits(tmp_path / "auto")
    (tmp_path / "auto" / "DONE").unlink()
    assert small(tmp_path / "auto", tmp_path / "cache", resume=True, **{"data.residency": "disk"}).finished


def test_crops_per_read_resumes_exactly_in_the_middle_of_a_read(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", numbered(6, (24, 26, 28), np.uint8))
    whole = small(tmp_path / "whole", tmp_path / "cache", **{"data.crops_per_read": 2})
    assert bits(whole.path) != bits(small(tmp_path / "each", tmp_path / "cache").path)
    before = bits(whole.path)
    (whole.path / "checkpoints" / "latest").write_text("step_1.pt")
    (whole.path / "DONE").unlink()
    small(whole.path, tmp_path / "cache", resume=True, **{"data.crops_per_read": 2})
    assert bits(whole.path) == before


@pytest.mark.parametrize("shape", [(12, 14, 1), (1, 30, 30), (3, 3, 3)])
def test_what_is_smaller_than_a_view_is_centred_in_air(tmp_path: Path, shape: tuple[int, ...]) -> None:
    cache = write_cache(tmp_path / "cache", numbered(4, shape, np.uint8))
    assert small(tmp_path / "run", tmp_path / "cache").finished
    source = CacheSource(cache, cache.table)
    images = StepDataset(source, StepSampler(source.patients, 4, 0), (20, 20, 20), 0)[0].images
    inside = tuple(slice((20 - min(20, side)) // 2, (20 - min(20, side)) // 2 + min(20, side)) for side in shape)
    assert bool((images[(slice(None), 0, *inside)] != 0).any())
    images[(slice(None), 0, *inside)] = 0
    assert not bool(images.any())


def test_a_constant_volume_is_trained_on(tmp_path: Path) -> None:
    arrays = numbered(4, (20, 20, 20), np.uint8)
    arrays[2][:] = 0
    arrays[3][:] = 77
    write_cache(tmp_path / "cache", arrays)
    assert small(tmp_path / "run", tmp_path / "cache").finished


def test_views_that_fit_no_crop_name_a_series(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", numbered(4, (20, 20, 20), np.uint8))
    said = r"^series s\d: a base crop of 10 x 10 x 10 voxels is smaller than a view of 16 x 16 x 16"
    with pytest.raises(DataError, match=said):
        small(tmp_path / "run", tmp_path / "cache", views={"base_crop_mm": 10})
    flat = {"views": {**TINY["views"], "global_size": [16, 16], "local_size": [8, 8]}, "data.kind": "images"}
    with pytest.raises(DataError, match=r"^series s0: 3D, but the views are 2D; set views and model$"):
        lejepa_med.pretrain(tmp_path / "cache", "timm/resnet18", tmp_path / "run", **DATA, **flat)
    said = r"^UNet3d: a view of 8 x 8 x 8 voxels; sides must be at least 16 voxels"
    with pytest.raises(ConfigError, match=said):
        lejepa_med.pretrain(tmp_path / "cache", "unet_3d", tmp_path / "run", **DATA, views={**TINY["views"], **SMALL})
    assert not (tmp_path / "run").exists()


class Channels(Balls):
    """Four channels from item `first` on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = super().__getitem__(index)["image"]
        return {"image": image.expand(4, -1, -1, -1) if index >= self.first else image}


def test_channels_that_are_not_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^series item \d+: 4 channels, but 1 expected; set model.in_channels"):
        run(tmp_path / "run", Channels(0))
    with pytest.raises(DataError, match=r"series item \d+: \d channels, but series item \d+ has \d; all scans"):
        run(tmp_path / "run", Channels(6))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_with_step_and_series(tmp_path: Path) -> None:
    said = r"^training stopped: loss or gradient not finite at step \d, batch of series item .*; every checkpoint that"
    with pytest.raises(UserError, match=said):
        run(tmp_path / "run", optim={"lr": 1e38, "warmup_fraction": 0.0}, train={"checkpoint_every": 1})
    assert not (tmp_path / "run" / "DONE").exists()


def test_sequences_reach_the_views(tmp_path: Path) -> None:
    """Flair is made dark: its own gamma, and nothing else, tells the two apart."""
    off = {"gamma_probability": 0, "bias_probability": 0, "contrast_probability": 0, "noise_probability": 0}
    flair = {"gamma": [9.0, 9.0], "gamma_probability": 1.0}
    views = ViewsConfig.model_validate({**TINY["views"], "mri": off, "mri_by_sequence": {"flair": flair}})
    arrays = [np.full((20, 20, 20), 128, np.uint8)] * 2
    cache = write_cache(tmp_path, arrays, sequence=["t1", "flair"])
    source = CacheSource(cache, cache.table)
    batch = StepDataset(source, StepSampler(source.patients, 2, 0), (20, 20, 20), 0)[0]
    means = batch_views(BatchedMultiCrop(views, 1), batch, ("t",))[0].mean(dim=(0, 2, 3, 4, 5))
    for sequence, mean in zip(batch.sequences, means.tolist(), strict=True):
        assert mean == pytest.approx(0.5, abs=0.02) if sequence == "t1" else mean < 0.01
