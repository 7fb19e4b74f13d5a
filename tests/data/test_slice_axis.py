"""The axis along which a scan was acquired goes from the index through the cache to the batch."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from lejepa_med.config import IndexSettings, PrepareConfig
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data.cache import Cache
from lejepa_med.data.dataset import CacheSource, StepDataset
from lejepa_med.data.index.archive import index
from lejepa_med.data.preparing import prepare
from lejepa_med.data.preparing_series import slice_axis
from lejepa_med.data.sampler import StepSampler

ONE = ComputeConfig(workers=1)
STEPS = {
    "thick along A": (np.diag([1.0, 4, 1]), 1),
    "thick along S, stored last to first": (np.array([[0.0, -1, 0], [0, 0, 1], [-5, 0, 0]]), 2),
    "thick along R, stored second": (np.array([[0.0, 3, 0], [1, 0, 0], [0, 0, 1]]), 0),
    "nearly cubes": (np.diag([1.0, 1, 1.2]), -1),
    "two long sides": (np.diag([1.0, 3, 3]), -1),
}


@pytest.mark.parametrize("name", STEPS)
def test_from_a_file_to_a_batch(tmp_path: Path, name: str) -> None:
    steps, expected = STEPS[name]
    affine = np.eye(4)
    affine[:3, :3] = steps
    values = np.random.default_rng(0).normal(100, 20, (14, 15, 16)).astype(np.float32)
    (tmp_path / "scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "scans" / "a.nii.gz")
    index([tmp_path / "scans"], tmp_path / "index", IndexSettings(modality="mri", compute=ONE))
    config = PrepareConfig(compute=ONE)
    for _ in range(2):  # made, and found there
        prepare(tmp_path / "index", tmp_path / "cache", config)
        cache = Cache.open(tmp_path / "cache")
        assert cache.table["slice_axis"].tolist() == [expected]
    source = CacheSource(cache, cache.table)
    batch = StepDataset(source, StepSampler(source.patients, 2, 0), (8, 8, 8), 0)[0]
    assert batch.slice_axis.tolist() == [expected] * 2


def test_pictures_and_slices_have_none() -> None:
    assert slice_axis({"spacing_mm": "", "orientation": ""}) == -1
    assert slice_axis({"spacing_mm": "1;1;5", "orientation": "LPI"}) == 2
