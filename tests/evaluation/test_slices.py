"""2D networks on volumes: pooling against a loop, Raptor by its definition, tokens against timm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from lejepa_med.backbones import build
from lejepa_med.backbones.timm2d import Timm2d
from lejepa_med.config.evaluation import Timm2dEncoder
from lejepa_med.config.pretraining import ModelConfig
from lejepa_med.data.cache import CachedVolume
from lejepa_med.errors import DataError, WeightsError
from lejepa_med.evaluation.frozen import FeatureSource, frozen_features, frozen_tokens
from lejepa_med.evaluation.slices import (
    aggregated,
    load_timm2d,
    plane_slices,
    raptor_projection,
    slice_features,
)

from .conftest import Archive

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Timm2dEncoder:
    """A small network whose weights lie in a file."""
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    file = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(network.state_dict(), file)
    return Timm2dEncoder(model="vit_tiny_patch16_224", weights=file, image_size=32, random_dim=5)


def source_of(archive: Archive, folder: Path, rows: int, most_tokens: int | None = None) -> FeatureSource:
    table = archive.cache.table.iloc[:rows]
    store = folder / "store"
    return FeatureSource(archive.cache, table, np.ones(rows, dtype=bool), folder, store, CPU, most_tokens)


def slow_features(volume: CachedVolume, config: Timm2dEncoder) -> dict[str, np.ndarray]:
    """Slice by slice, with timm alone, from the definitions."""
    network = timm.create_model(config.model, num_classes=0, dynamic_img_size=True).eval()
    network.load_state_dict(torch.load(config.weights, weights_only=True))
    matrix = raptor_projection(192, config)
    mean, most, random = [], [], []
    for plane in ("axial", "coronal", "sagittal"):
        axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
        rows, projected = [], []
        for place in range(volume.array.shape[axis]):
            picture = torch.from_numpy(np.array(volume.array).take(place, axis)).float() / 255
            if picture.mean() <= 0.01:
                continue
            picture = torch.nn.functional.interpolate(picture[None, None], (32, 32), mode="bilinear")[0]
            with torch.no_grad():
                before, after = network.get_intermediate_layers(
                    (picture.expand(3, -1, -1)[None] - 0.5) / 0.5, n=2, return_prefix_tokens=True, norm=True
                )
                last = network.forward_features((picture.expand(3, -1, -1)[None] - 0.5) / 0.5)
            row = [part for patches, prefix in (before, after) for part in (prefix[0, 0], patches[0].mean(0))]
            rows.append(torch.cat(row))
            projected.append(last[0, 1:] @ matrix)
        mean.append(torch.stack(rows).mean(0))
        most.append(torch.stack(rows).max(0).values)
        random.append(torch.stack(projected).mean(0).flatten())
    found = {"mean": mean, "max": most, "random": random}
    found["mean_max"] = [part for pair in zip(mean, most, strict=True) for part in pair]
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def test_aggregations_are_what_a_loop_over_slices_gives(archive: Archive, vit: Timm2dEncoder, tmp_path: Path) -> None:
    found = frozen_features(vit, source_of(archive, tmp_path, 2))
    assert list(found) == list(vit.aggregations)
    for row, key in enumerate(archive.cache.table["series_key"].iloc[:2]):
        expected = slow_features(archive.cache.read(key), vit)
        for name, rows in found.items():
            np.testing.assert_allclose(rows[row], expected[name], rtol=1e-3, atol=2e-4, err_msg=name)


def test_the_projection_keeps_lengths_and_depends_on_its_seed_alone() -> None:
    config = Timm2dEncoder(random_dim=100)
    matrix = raptor_projection(384, config)
    assert torch.equal(matrix, raptor_projection(384, config))
    assert not torch.equal(matrix, raptor_projection(384, config.model_copy(update={"random_seed": 1})))
    assert matrix.mean() == pytest.approx(0, abs=3 / 384)
    assert 100 * matrix.var() == pytest.approx(1, abs=0.02)
    vectors = torch.randn(200, 384)
    ratio = (vectors @ matrix).square().sum(1) / vectors.square().sum(1)
    assert ratio.mean() == pytest.approx(1, abs=0.05)


def test_volumes_that_share_a_pass_do_not_mix(archive: Archive, vit: Timm2dEncoder) -> None:
    volumes = [archive.cache.read(key) for key in archive.cache.table["series_key"].iloc[:3]]
    few = vit.model_copy(update={"slices": 3})
    together = list(slice_features(load_timm2d(few), volumes, few, CPU, False))
    for volume, expected in zip(volumes, together, strict=True):
        (alone,) = slice_features(load_timm2d(few), [volume], few, CPU, False)
        for name, array in alone["pooled"].items():
            np.testing.assert_allclose(array, expected["pooled"][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "tf_efficientnet_lite0"])
def test_one_pass_gives_what_two_give(name: str) -> None:
    """Class token first, then registers, then patches in rows: as timm has them."""
    torch.manual_seed(0)
    backbone = build(ModelConfig(name=f"timm/{name}", in_channels=3)).eval()
    assert isinstance(backbone, Timm2d)
    images = torch.rand(2, 3, 56, 42)
    with torch.no_grad():
        pooled, tokens = backbone.pooled_and_tokens(images, last=2)
        assert torch.allclose(tokens, backbone.tokens(images)[0], atol=1e-5)
        for one, other in zip(pooled, backbone.intermediate(images, last=2), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        if name.startswith("vit"):
            raw = backbone.net.forward_features(images)
            assert raw.shape[1] == tokens.shape[1] + (5 if "reg4" in name else 1) == 12 + (5 if "reg4" in name else 1)
            assert torch.allclose(pooled[-1], torch.cat([raw[:, 0], tokens.mean(1)], dim=1), atol=1e-5)
            moved = images.clone()
            moved[:, :, :14, 14:28] = 0.5  # the second patch of the first row changes most
            change = (backbone.net.patch_embed(moved) - backbone.net.patch_embed(images)).abs().flatten(1, 2).sum(-1)
            assert change.argmax(1).tolist() == [1, 1]


def test_protocols() -> None:
    raptor, axial = Timm2dEncoder(), Timm2dEncoder(protocol="axial32")
    assert (raptor.used_planes, raptor.most_slices) == (("axial", "coronal", "sagittal"), None)
    assert (axial.used_planes, axial.most_slices) == (("axial",), 32)
    assert Timm2dEncoder(protocol="axial32", slices=8).most_slices == 8


def test_a_picture_has_one_slice_and_no_two_means(vit: Timm2dEncoder) -> None:
    picture = CachedVolume("a", "a", "image", np.full((20, 10), 100, dtype=np.uint8), None)
    parts = list(slice_features(load_timm2d(vit), [picture, picture], vit, CPU, False, most_tokens=9))
    found = aggregated([part["pooled"] for part in parts], vit)
    assert {name: rows.shape for name, rows in found.items()} == {"mean_max": (2, 2 * 2 * 192), "random": (2, 4 * 5)}
    assert parts[0]["tokens"]["tokens"].shape == (1, 2 * 192)


def test_slices_are_non_empty_and_square(archive: Archive) -> None:
    volume = archive.cache.read("series0000")
    stacks = plane_slices(volume, Timm2dEncoder(image_size=28, slices=5))
    assert [tuple(stack.shape) for stack in stacks] == [(5, 1, 28, 28)] * 3
    assert len(plane_slices(volume, Timm2dEncoder(image_size=28, planes=("coronal",)))[0]) == 16


def test_tokens_are_the_last_block_of_evenly_spaced_slices(
    archive: Archive, vit: Timm2dEncoder, tmp_path: Path
) -> None:
    source = source_of(archive, tmp_path, 2, most_tokens=7)
    found = frozen_features(vit, source)
    read = frozen_tokens(vit, source)
    key = archive.cache.table["series_key"].iloc[1]
    tokens = read(key)
    assert tokens.shape == (7, 2 * 192) and tokens.dtype == np.float16
    whole = frozen_tokens(vit, source_of(archive, tmp_path, 2, 48))
    frozen_features(vit, source_of(archive, tmp_path, 2, 48))
    everything = whole(key).astype(np.float32)
    last = found["mean"][1].reshape(3, 2, -1)[:, 1]
    np.testing.assert_allclose(everything.reshape(3, 16, -1).mean(1), last, atol=2e-3)
    assert np.array_equal(tokens[0], everything[0]) and np.array_equal(tokens[-1], everything[-1])


def test_a_killed_pass_goes_on_and_two_benchmarks_share_it(
    archive: Archive, vit: Timm2dEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, ran = vit.model_copy(update={"slices": 2}), []
    read = type(archive.cache).read
    monkeypatch.setattr(type(archive.cache), "read", lambda self, key: ran.append(key) or read(self, key))

    class KilledError(BaseException):
        pass

    def kill(done: int) -> None:
        if done >= 4:
            raise KilledError

    source = source_of(archive, tmp_path, 40)
    with pytest.raises(KilledError):
        frozen_features(few, source, kill)
    kept = len(list((tmp_path / "store").rglob("*.npz")))
    assert kept == 4
    ran.clear()
    rows = frozen_features(few, source)
    assert len(ran) == 40 - kept
    ran.clear()
    elsewhere = FeatureSource(archive.cache, source.table, source.fit, tmp_path / "other", source.store, CPU)
    again = frozen_features(few, elsewhere)
    assert not ran and all(np.array_equal(rows[name], again[name]) for name in rows)
    frozen_features(few.model_copy(update={"aggregations": ("max", "random")}), elsewhere)
    assert not ran


def test_a_damaged_file_of_the_store_is_made_again(archive: Archive, vit: Timm2dEncoder, tmp_path: Path) -> None:
    few = vit.model_copy(update={"slices": 2})
    first = frozen_features(few, source_of(archive, tmp_path, 3))
    for number, file in enumerate(sorted((tmp_path / "store").rglob("*.npz"))):
        file.write_bytes(file.read_bytes()[: 100 * number])
    (tmp_path / "dinov2.npz").unlink()
    again = frozen_features(few, source_of(archive, tmp_path, 3))
    assert all(np.allclose(first[name], again[name], atol=1e-5) for name in first)


def test_weights_that_do_not_fit_are_refused(archive: Archive, vit: Timm2dEncoder, tmp_path: Path) -> None:
    other = vit.model_copy(update={"model": "vit_small_patch16_224"})
    with pytest.raises(WeightsError, match="do not fit the network"):
        frozen_features(other, source_of(archive, tmp_path, 3))


def test_pictures_beside_volumes_are_refused_in_one_sentence(
    archive: Archive, vit: Timm2dEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = type(archive.cache).read

    def mixed(self: object, key: str) -> CachedVolume:
        volume = read(archive.cache, key)
        picture = np.array(volume.array)[8]
        return CachedVolume(key, key, "mri", picture, None) if key == "series0010" else volume

    monkeypatch.setattr(type(archive.cache), "read", mixed)
    few = vit.model_copy(update={"slices": 2})
    with pytest.raises(DataError, match=r"features of 2 lengths: .*series series0000.*series series0010"):
        frozen_features(few, source_of(archive, tmp_path, 3))
