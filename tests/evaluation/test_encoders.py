"""Features of every encoder: computed once, fitted on training rows only, and never without the weights they claim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from lejepa_med.config.evaluation import PixelsEncoder, RandomEncoder, RunEncoder, ShapeEncoder, Timm2dEncoder
from lejepa_med.errors import UserError, WeightsError
from lejepa_med.evaluation import encoders
from lejepa_med.evaluation.encoders import NoWeightsError, fresh_backbone, frozen_features, require_weights
from lejepa_med.evaluation.features import extract_features
from lejepa_med.evaluation.slices import plane_slices
from lejepa_med.weights import load_backbone

from .conftest import SPEC, Archive

CPU = torch.device("cpu")


def features(archive: Archive, encoder: object, folder: Path, fit: np.ndarray | None = None) -> np.ndarray:
    table = archive.cache.table
    fit = np.ones(len(table), dtype=bool) if fit is None else fit
    return frozen_features(encoder, archive.cache, table, fit, folder, CPU)


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
    original = encoders._compute
    monkeypatch.setattr(encoders, "_compute", lambda *given: computed.append(1) or original(*given))
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


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Timm2dEncoder:
    """A small network whose weights lie in a file."""
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    file = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(network.state_dict(), file)
    return Timm2dEncoder(model="vit_tiny_patch16_224", weights=file, image_size=32, slices=2)


def test_2d_network_with_weights(archive: Archive, vit: Timm2dEncoder, tmp_path: Path) -> None:
    cache = archive.cache
    fit = np.ones(3, dtype=bool)
    found = frozen_features(vit, cache, cache.table.iloc[:3], fit, tmp_path, CPU)
    assert found.shape == (3, 3 * 2 * 2 * 2 * 192)  # planes, mean and max, layers, class token and mean patch
    mean, most = found.reshape(3, 3, 2, -1)[:, :, 0], found.reshape(3, 3, 2, -1)[:, :, 1]
    assert (most >= mean).all() and (most > mean).any()
    other = vit.model_copy(update={"model": "vit_small_patch16_224"})
    with pytest.raises(WeightsError, match="do not fit the network"):
        frozen_features(other, cache, cache.table.iloc[:3], fit, tmp_path, CPU)


def test_slices_are_non_empty_and_square(archive: Archive) -> None:
    volume = archive.cache.read("series0000")
    stacks = plane_slices(volume, Timm2dEncoder(image_size=28, slices=5))
    assert [tuple(stack.shape) for stack in stacks] == [(5, 1, 28, 28)] * 3
    assert len(plane_slices(volume, Timm2dEncoder(image_size=28, slices=None, planes=("coronal",)))[0]) == 16


def test_scratch_has_no_frozen_features(archive: Archive, make_run: Callable[..., RunEncoder], tmp_path: Path) -> None:
    from lejepa_med.config.evaluation import ScratchEncoder

    with pytest.raises(UserError, match="fresh weights have no frozen features"):
        features(archive, ScratchEncoder(like=make_run().path), tmp_path)
