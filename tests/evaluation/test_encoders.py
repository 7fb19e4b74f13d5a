"""Features of every encoder: computed once, fitted on training rows only, and never without the weights they claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lejepa_med.config.evaluation import (
    BenchmarkConfig,
    PixelsEncoder,
    RandomEncoder,
    RunEncoder,
    ShapeEncoder,
    Timm2dEncoder,
)
from lejepa_med.errors import UserError
from lejepa_med.evaluation import frozen
from lejepa_med.evaluation.controls import header_features
from lejepa_med.evaluation.ct_window import with_ct_windows
from lejepa_med.evaluation.encoders import NoWeightsError, fresh_backbone, require_weights
from lejepa_med.evaluation.features import extract_features
from lejepa_med.evaluation.frozen import FeatureSource, frozen_features
from lejepa_med.spec import InferenceSpec
from lejepa_med.weights import load_backbone, save_backbone

from .conftest import MODEL, SPEC, Archive, tiny_backbone

CPU = torch.device("cpu")


def features(archive: Archive, encoder: object, folder: Path, fit: np.ndarray | None = None) -> np.ndarray:
    table = archive.cache.table
    fit = np.ones(len(table), dtype=bool) if fit is None else fit
    source = FeatureSource(archive.cache, table, fit, folder, folder / "store", CPU)
    return next(iter(frozen_features(encoder, source).values()))


def test_run_features_are_those_of_embedding(
    archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path
) -> None:
    run = make_run()
    volumes = [archive.cache.read(key) for key in archive.cache.table["series_key"]]
    expected = extract_features(load_backbone(run.path), volumes, SPEC.inference)
    assert np.array_equal(features(archive, run, tmp_path), expected)


def test_features_are_kept_until_something_changes(
    archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    original = frozen._compute
    monkeypatch.setattr(frozen, "_compute", lambda *given: computed.append(1) or original(*given))
    first = features(archive, make_run(seed=0), tmp_path)
    assert np.array_equal(features(archive, make_run(seed=0), tmp_path), first)
    assert len(computed) == 1
    assert not np.array_equal(features(archive, make_run(seed=1), tmp_path), first)
    assert len(computed) == 2


def test_fresh_weights_are_seeded_and_normalised_on_training_rows(
    archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path
) -> None:
    run = make_run(seed=7)
    fit = np.arange(len(archive.truth)) < 20
    first = features(archive, RandomEncoder(like=run.path), tmp_path / "a", fit)
    assert np.array_equal(first, features(archive, RandomEncoder(like=run.path), tmp_path / "b", fit))
    assert not np.array_equal(first, features(archive, RandomEncoder(like=run.path, seed=1), tmp_path / "c", fit))
    assert not np.array_equal(first, features(archive, RandomEncoder(like=run.path), tmp_path / "d", ~fit))
    weights = [
        backbone.state_dict()["net.conv1.weight"] for backbone in (fresh_backbone(run.path, 0), load_backbone(run.path))
    ]
    assert not torch.equal(*weights)


def test_principal_components_do_not_depend_on_test_rows(archive: Archive, tmp_path: Path) -> None:
    fit = np.arange(len(archive.truth)) < 30
    found = features(archive, PixelsEncoder(size=(4, 4, 4), components=6), tmp_path, fit)
    assert found.shape == (len(fit), 6)
    assert found[fit].mean(0) == pytest.approx(np.zeros(6), abs=1e-4)  # centred on the rows it was fitted on
    assert np.abs(found[~fit].mean(0)).max() > 1e-3
    assert np.cov(found[fit].T) == pytest.approx(np.diag(found[fit].var(0, ddof=1)), abs=1e-4)


def test_shape_features_are_millimetres(archive: Archive, tmp_path: Path) -> None:
    found = features(archive, ShapeEncoder(intensity=False), tmp_path)
    assert (found == [32, 32, 32, 2, 2, 2]).all()


def test_dinov2_without_weights_says_how_to_give_them() -> None:
    with pytest.raises(NoWeightsError, match=r"no weights given; .*encoders\.2\.weights=/path/to/dinov2"):
        require_weights(Timm2dEncoder(), 2)
    require_weights(Timm2dEncoder(weights=Path("anything")), 2)


def test_scratch_has_no_frozen_features(archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path) -> None:
    from lejepa_med.config.evaluation import ScratchEncoder

    with pytest.raises(UserError, match="fresh weights have no frozen features"):
        features(archive, ScratchEncoder(like=make_run().path), tmp_path)


def test_header_features_tell_what_differs_between_series() -> None:
    table = pd.DataFrame({"modality": ["mri", "mri", "ct"], "sequence": ["t1", "t1", "t1"]})
    assert header_features(table).tolist() == [[0, 1], [0, 1], [1, 0]]  # one sequence tells nothing
    table = table.assign(filled_slices=[30, -1, 40], slice_axis=[2, 2, 1])
    assert header_features(table).tolist() == [[30, 0, 1, 0, 1], [-1, 0, 1, 0, 1], [40, 1, 0, 1, 0]]


def test_ct_is_seen_through_the_window_of_the_first_run(tmp_path: Path) -> None:
    wide = SPEC.model_copy(update={"inference": SPEC.inference.model_copy(update={"ct_window_hu": (-1000.0, 400.0)})})
    save_backbone(tmp_path / "backbone.safetensors", tiny_backbone(), MODEL, wide)
    rival = RunEncoder(name="rival", path=tmp_path / "nowhere", role="rival")
    ours, own = RunEncoder(path=tmp_path), PixelsEncoder(ct_window_hu=(0.0, 80.0))
    encoders = (ShapeEncoder(), rival, ours, own, Timm2dEncoder())
    settings = {"data": {"cache": "c"}, "tasks": [{"name": "t", "kind": "segmentation"}]}
    config = BenchmarkConfig.model_validate({**settings, "encoders": encoders})
    shape, _, run, pixels, network = with_ct_windows(config).encoders
    assert (shape.ct_window_hu, network.ct_window_hu) == ((-1000.0, 400.0), (-1000.0, 400.0))
    assert pixels.ct_window_hu == (0.0, 80.0) and run == ours
    without = BenchmarkConfig.model_validate({**settings, "encoders": [ShapeEncoder()]})
    assert with_ct_windows(without).encoders[0].ct_window_hu == InferenceSpec().ct_window_hu


@pytest.mark.parametrize("kind", [PixelsEncoder, ShapeEncoder])
def test_controls_see_ct_through_their_window_and_cache_by_it(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[PixelsEncoder | ShapeEncoder]
) -> None:
    read = type(archive.cache).read
    as_ct = lambda self, key: replace(read(self, key), modality="ct")  # noqa: E731
    monkeypatch.setattr(type(archive.cache), "read", as_ct)
    narrow, wide = kind(ct_window_hu=(0.0, 100.0)), kind(ct_window_hu=(0.0, 400.0))
    first = features(archive, narrow, tmp_path)
    assert not np.allclose(features(archive, wide, tmp_path), first)
    assert np.array_equal(features(archive, narrow, tmp_path), first)
