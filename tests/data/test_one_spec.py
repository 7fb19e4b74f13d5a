"""`prepare` and `embed` on a new scan are one function of one spec: the same array, bit for bit."""

from __future__ import annotations

from pathlib import Path

import dicom_factory as factory
import nibabel
import numpy as np
import pytest

from lejepa_med.config import IndexSettings, PrepareConfig
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data.cache import Cache
from lejepa_med.data.index.archive import index
from lejepa_med.data.preparing import prepare
from lejepa_med.evaluation.embedding import _prepare_items
from lejepa_med.spec import PreprocessSpec

SPEC = PreprocessSpec(spacing_mm=(1.0, 1.2, 2.0), foreground_margin_mm=1.0)


def tilted(folder: Path) -> Path:
    """Axial slices turned by 15 degrees but stacked along the table, with a hole."""
    slices = [
        factory.image((-3.0, 4.0, -10.0 + 2.5 * number), number + 1, orientation=factory.turned(15.0))
        for number in range(12)
        if number != 5
    ]
    factory.write(folder / "scans" / "tilted", slices)
    return folder / "scans" / "tilted"


def nifti(folder: Path) -> Path:
    array = np.random.default_rng(0).normal(100, 30, (20, 21, 22)).astype(np.float32)
    affine = np.array([[0, 0, -1.5, 3], [0.9, 0.1, 0, -8], [-0.1, 0.9, 0, 4], [0, 0, 0, 1]])
    (folder / "scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(array, affine), folder / "scans" / "a.nii.gz")
    return folder / "scans" / "a.nii.gz"


@pytest.mark.parametrize("scan", [tilted, nifti])
def test_the_cache_holds_what_embed_makes_of_the_file(tmp_path: Path, scan) -> None:  # type: ignore[no-untyped-def]
    path, one = scan(tmp_path), ComputeConfig(workers=1)
    index([tmp_path / "scans"], tmp_path / "index", IndexSettings(modality="mri", min_slices=3, compute=one))
    prepare(tmp_path / "index", tmp_path / "cache", PrepareConfig(preprocess=SPEC, compute=one))
    cache = Cache.open(tmp_path / "cache")
    assert len(cache) == 1 and cache.preprocess == SPEC
    cached = cache.read(cache.table["series_key"][0])
    (made,) = _prepare_items([path], "mri", cache.preprocess)
    assert (cached.array.dtype, cached.spacing_mm, cached.modality) == (
        made.array.dtype,
        made.spacing_mm,
        made.modality,
    )
    np.testing.assert_array_equal(cached.array, made.array)
    assert np.unique(cached.array).size > 50
