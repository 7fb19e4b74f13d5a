"""Masks go through the same orientation, grid and crop as their images: a phantom that is its own mask comes back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lejepa_med.config import PrepareConfig
from lejepa_med.data.cache import Cache, entry_path
from lejepa_med.data.masks import checked_mask, prepare_mask
from lejepa_med.data.preparing import prepare
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec

FOLDER = os.environ.get("LEJEPA_MED_REAL_DATA", "")


def phantom(shape: tuple[int, int, int]) -> np.ndarray:
    """Classes 0 (a quarter-voxel-free background), 1 (an ellipsoid) and 2 (a box inside, off the middle)."""
    grid = [(np.arange(side) + 0.5) / side - 0.5 for side in shape]
    x, y, z = np.meshgrid(*grid, indexing="ij")
    classes = (((x / 0.42) ** 2 + (y / 0.4) ** 2 + (z / 0.38) ** 2) < 1).astype(np.uint8)
    classes[(np.abs(x - 0.1) < 0.12) & (np.abs(y + 0.05) < 0.15) & (np.abs(z) < 0.2)] = 2
    return classes


def oriented(
    spacing: tuple[float, float, float], axes: tuple[int, ...], flips: tuple[int, ...], tilt: float
) -> np.ndarray:
    """An affine with permuted and flipped axes, turned by `tilt` degrees about R."""
    turn = np.eye(3)
    angle = np.radians(tilt)
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[:, list(axes)] @ np.diag(np.array(flips) * np.array(spacing))
    affine[:3, 3] = (-20.0, 31.0, 7.5)
    return affine


def both(classes: np.ndarray, affine: np.ndarray, spec: PreprocessSpec) -> tuple[np.ndarray, np.ndarray]:
    """The prepared image of intensities 100 x class, and the prepared mask."""
    image = Volume(classes.astype(np.float32) * 100, affine, "ct")
    prepared = prepare_volume(image, spec)
    return prepared.array, prepare_mask(checked_mask(Volume(classes, affine, "mask"), image), image, prepared, spec)


@settings(max_examples=25)
@given(
    st.permutations((0, 1, 2)),
    st.tuples(*[st.sampled_from((-1, 1))] * 3),
    st.tuples(*[st.sampled_from((0.7, 1.0, 1.3, 3.0))] * 3),
    st.sampled_from((0.0, 12.0, -27.0)),
)
def test_a_phantom_is_its_own_mask(
    axes: list[int], flips: tuple[int, int, int], spacing: tuple[float, float, float], tilt: float
) -> None:
    """Where the image is interpolated between classes it says nothing; elsewhere the two agree in every voxel."""
    classes = phantom((22, 25, 19))
    spec = PreprocessSpec(foreground_margin_mm=2.0)
    image, mask = both(classes, oriented(spacing, tuple(axes), flips, tilt), spec)
    assert mask.dtype == np.uint8 and mask.shape == image.shape
    pure = np.abs(image / 100 - np.round(image / 100)) < 0.005
    spread = np.abs(image / 100 - mask)
    assert pure.mean() > 0.3
    assert (spread[pure] < 0.01).mean() > 0.98  # a mean of 0 and 2 is 1, too
    assert spread.max() <= 2.001
    expected = (classes > 0).sum() * np.prod(spacing)
    assert abs((mask > 0).sum() - expected) < 0.1 * expected


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_on_the_same_grid_nothing_changes(flips: tuple[int, int, int]) -> None:
    classes = phantom((22, 25, 19))
    image, mask = both(classes, oriented((1.0, 1.0, 1.0), (0, 1, 2), flips, 0.0), PreprocessSpec())
    np.testing.assert_array_equal(image, mask.astype(np.int16) * 100)
    np.testing.assert_array_equal(np.bincount(mask.ravel())[1:], np.bincount(classes.ravel())[1:])


def test_how_a_scan_is_stored_does_not_matter() -> None:
    """The middle between two voxels goes one way in the patient, not one way in the file."""
    classes, spec = phantom((24, 24, 24)), PreprocessSpec(spacing_mm=(2.0, 2.0, 2.0))
    plain = oriented((1.0, 1.0, 1.0), (0, 1, 2), (1, 1, 1), 0.0)
    flipped = plain.copy()
    flipped[:3, 0] *= -1
    flipped[:3, 3] = plain[:3, 3] + 23 * plain[:3, 0]
    _, mask = both(classes, plain, spec)
    _, again = both(classes[::-1], flipped, spec)
    np.testing.assert_array_equal(mask, again)


def test_a_volume_is_right_on_average_where_voxels_grow() -> None:
    """Balls at random places: neither shrunk nor swollen."""
    random, ratios = np.random.default_rng(0), []
    for _ in range(30):
        grid = np.indices((24, 24, 24)) - random.uniform(10, 14, (3, 1, 1, 1))
        classes = (np.sqrt((grid**2).sum(0)) < random.uniform(3, 6)).astype(np.uint8)
        _, mask = both(classes, np.eye(4), PreprocessSpec(spacing_mm=(2.0, 2.0, 2.0), foreground_margin_mm=20.0))
        ratios.append(8 * mask.sum() / classes.sum())
    assert abs(np.mean(ratios) - 1) < 0.02


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((5, 4, 4)), "mask of another shape: 5 x 4 x 4, the image has 4 x 4 x 4"),
        (np.full((4, 4, 4), 300.0), "mask values are no class numbers: 300 to 300"),
        (np.full((4, 4, 4), -1.0), "mask values are no class numbers: -1 to -1"),
        (np.full((4, 4, 4), np.nan), "mask values are no class numbers: nan to nan"),
        (np.full((4, 4, 4), 0.5), "mask values are no class numbers: they are no integers"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked_mask(Volume(mask, np.eye(4), "mask"), Volume(np.zeros((4, 4, 4)), np.eye(4), "mri"))


def test_a_mask_of_another_place_is_refused() -> None:
    elsewhere = np.eye(4)
    elsewhere[2, 3] = 3.0
    image = Volume(np.zeros((4, 4, 4)), np.eye(4), "mri")
    with pytest.raises(DataError, match="mask of another place: its corners lie 3 voxels from the image's"):
        checked_mask(Volume(np.zeros((4, 4, 4)), elsewhere, "mask"), image)


def write_pair(folder: Path, name: str, seed: int, spacing: float = 1.3) -> None:
    classes = phantom((20, 22, 18))
    noise = np.random.default_rng(seed).normal(10, 2, classes.shape)
    for kind, array in (("images", (noise + 100 * classes).astype(np.float32)), ("labels", classes)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-spacing, spacing, spacing, 1.0])), folder / kind / name)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    for number in range(3):
        write_pair(tmp_path / "scans", f"patient_{number}.nii.gz", number)
    shutil.copy(tmp_path / "scans/images/patient_0.nii.gz", tmp_path / "scans/images/unlabelled.nii.gz")
    prepare(tmp_path / "scans", tmp_path / "cache", config())
    return Cache.open(tmp_path / "cache")


def config(**settings: object) -> PrepareConfig:
    return PrepareConfig.model_validate({"modality": "mri", "compute": {"workers": 1}} | settings)


def test_masks_are_in_the_cache(cache: Cache) -> None:
    masked = [key for key in cache.table["series_key"] if cache.has_mask(key)]
    assert (len(cache), len(masked), cache.stats()["masks"]) == (4, 3, 3)
    assert cache.mask_labels() == {0: "background", 1: "label 1", 2: "label 2"}
    for key in masked:
        mask, image = cache.read_mask(key), cache.read(key).array
        assert mask.shape == image.shape and mask.dtype == np.uint8 and not mask.flags.writeable
        assert image[mask == 2].mean() > image[mask == 1].mean() > image[mask == 0].mean() + 50
    (bare,) = set(cache.table["series_key"]) - set(masked)
    with pytest.raises(DataError, match=f"series {bare} has no mask"):
        cache.read_mask(bare)
    assert cache.strays() == {"unlisted": [], "partial": [], "other": []}


def test_a_damaged_mask_is_found_and_mended(cache: Cache, tmp_path: Path) -> None:
    row = cache.table[cache.table["mask_entry"] != ""].iloc[1]
    file = entry_path(cache.folder, row["mask_entry"])
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert list(cache.verify()) == [row["series_key"]]
    with pytest.raises(DataError, match=f"the mask of series {row['series_key']} is missing or damaged; run `prepare`"):
        cache.read_mask(row["series_key"])
    summary = prepare(tmp_path / "scans", tmp_path / "cache", config())
    assert (summary.prepared, summary.reused) == (4, 3)
    assert file.read_bytes() == content


def test_a_second_run_changes_nothing(cache: Cache, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in cache.folder.rglob("*") if file.is_file()}
    (cache.folder / "mask_labels.json").unlink()
    assert prepare(tmp_path / "scans", tmp_path / "cache", config()).reused == 4
    assert {file: file.read_bytes() for file in cache.folder.rglob("*") if file.is_file()} == before


def test_a_changed_mask_is_another_entry(cache: Cache, tmp_path: Path) -> None:
    file = tmp_path / "scans" / "labels" / "patient_1.nii.gz"
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), file)
    os.utime(file, ns=(10**18, 10**18))
    assert prepare(tmp_path / "scans", tmp_path / "cache", config()).reused == 3
    after = Cache.open(cache.folder).table.set_index("series_key")
    changed = after["mask_entry"] != cache.table.set_index("series_key")["mask_entry"]
    assert changed.sum() == 1 and (after["entry"] == cache.table.set_index("series_key")["entry"]).all()


def test_a_cache_without_the_columns_opens(cache: Cache) -> None:
    file = cache.folder / "manifest.parquet"
    pd.read_parquet(file).drop(columns=["mask_entry", "mask_sha256"]).to_parquet(file, index=False)
    (cache.folder / "manifest.parquet.sha256").unlink()
    old = Cache.open(cache.folder)
    assert not any(old.has_mask(key) for key in old.table["series_key"])
    assert list(old.verify()) == []


def test_damaged_mask_labels_are_one_sentence(cache: Cache) -> None:
    (cache.folder / "mask_labels.json").write_text(json.dumps(["liver"]))
    with pytest.raises(DataError, match=r"mask_labels.json is damaged; run `prepare` again"):
        cache.mask_labels()


def test_pictures_and_their_masks(tmp_path: Path) -> None:
    """A palette picture holds class numbers, whatever its colours; the longer side becomes 32 pixels."""
    classes = np.zeros((40, 64), np.uint8)
    classes[10:30, 8:24], classes[10:30, 40:56] = 1, 2
    for kind in ("images", "masks"):
        (tmp_path / "scans" / kind).mkdir(parents=True)
    Image.fromarray(classes * 100 + 20).save(tmp_path / "scans/images/a.png")
    picture = Image.fromarray(classes, mode=None).convert("P")
    picture.putdata(classes.ravel().tolist())
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "scans/masks/a.png")
    prepare(tmp_path / "scans", tmp_path / "cache", config(preprocess={"image_size": 32}))
    cache = Cache.open(tmp_path / "cache")
    key = cache.table["series_key"][0]
    mask, image = cache.read_mask(key), cache.read(key).array
    assert mask.shape == image.shape == (32, 32)
    np.testing.assert_array_equal(np.flatnonzero(mask.any(1))[[0, -1]], [6 + 5, 6 + 14])
    assert (np.bincount(mask.ravel())[1:] == [80, 80]).all()
    assert {int(value): image[mask == value].max() for value in (1, 2)} == {1: 120, 2: 220}


@pytest.mark.real_data
@pytest.mark.skipif(not FOLDER, reason="needs LEJEPA_MED_REAL_DATA to name the folder of real scans")
@pytest.mark.parametrize(("spacing", "mean", "each"), [(1.0, 0.0, 0.0), (1.5, 0.01, 0.12)])
def test_real_volumes_in_mm3(tmp_path: Path, spacing: float, mean: float, each: float) -> None:
    """At the scanned 1 mm the volumes are those of the table, else within 1 % on average and 12 % each."""
    real = Path(FOLDER).resolve() / "hippocampus_msd"
    for kind in ("images", "labels"):
        (tmp_path / "scans" / kind).mkdir(parents=True)
        for file in sorted((real / "labels").iterdir())[:40]:
            shutil.copy(real / kind / file.name, tmp_path / "scans" / kind / file.name)
    columns = ["anterior_mm3", "posterior_mm3"]
    source = {"table": str(real / "cases.csv"), "patient_column": "subject", "label_columns": columns}
    preprocess = {"spacing_mm": (spacing,) * 3, "foreground_margin_mm": 60.0}
    prepare(tmp_path / "scans", tmp_path / "cache", config(source=source, preprocess=preprocess))
    cache, truth = Cache.open(tmp_path / "cache"), pd.read_csv(tmp_path / "cache" / "labels.csv")
    assert cache.table["patient_key"].nunique() < len(cache) == len(truth) == 40
    found = np.array([np.bincount(cache.read_mask(key).ravel(), minlength=3)[1:] for key in truth["series_key"]])
    error = found * spacing**3 / truth[columns].to_numpy() - 1
    assert abs(error.mean()) <= mean and np.abs(error).max() <= each
