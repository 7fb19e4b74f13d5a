"""The cache: what is prepared once stays as it is, what is damaged is found, what was made otherwise is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from lejepa_med.config import IndexSettings, PrepareConfig
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data.archive import index
from lejepa_med.data.cache import Cache, entry_path, write_entry, write_settings
from lejepa_med.data.preparing import PrepareSummary, prepare
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.reading import Archive
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec

PATIENTS = 4


def save(file: Path, seed: int, gain: float = 1.0) -> None:
    array = np.random.default_rng(seed).normal(10, 3, (18, 20, 16 + seed))
    array[4:14, 5:15, 4:12] += 100
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image((gain * array).astype(np.float32), np.diag([-2.0, -1.0, 2.0, 1.0])), file)


def config(**settings: object) -> PrepareConfig:
    base = {"compute": {"workers": 1}, "preprocess": {"spacing_mm": (2.0, 2.0, 2.0)}}
    return PrepareConfig.model_validate(base | settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`scans`, `index` and `cache` of four patients, one of them seen twice."""
    for patient in range(PATIENTS):
        save(tmp_path / "scans" / f"sub-{patient}" / "a.nii.gz", patient)
    save(tmp_path / "scans" / "sub-0" / "b.nii.gz", 9)
    run_index(tmp_path)
    prepare(tmp_path / "index", tmp_path / "cache", config())
    return tmp_path


def run_index(folder: Path) -> None:
    index([folder / "scans"], folder / "index", IndexSettings(modality="mri", compute=ComputeConfig(workers=1)))


def again(folder: Path, **settings: object) -> PrepareSummary:
    return prepare(folder / "index", folder / "cache", config(**settings))


def entries(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = sorted((folder / "cache" / "volumes").rglob("*.npy"))
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_manifest_describes_what_is_there(folder: Path) -> None:
    cache = Cache.open(folder / "cache")
    assert len(cache) == PATIENTS + 1
    assert cache.table["patient_key"].nunique() == PATIENTS
    assert cache.preprocess == config().preprocess
    for row in cache.table.itertuples():
        volume = cache.read(row.series_key)
        assert list(volume.array.shape) == list(row.shape)
        assert volume.spacing_mm == (2.0, 2.0, 2.0)
        assert (volume.modality, volume.array.dtype) == ("mri", np.uint8)
        assert not volume.array.flags.writeable
    stats = cache.stats()
    assert stats["volumes"] == PATIENTS + 1
    assert stats["patients"] == PATIENTS
    assert stats["bytes"] == sum(len(content) for content, _ in entries(folder).values())


def test_cached_equals_uncached(folder: Path) -> None:
    cache, archive = Cache.open(folder / "cache"), Archive.open(folder / "index")
    for key in cache.table["series_key"]:
        volume = archive.read(key)
        direct = prepare_volume(Volume(volume.array, volume.affine, "mri"), config().preprocess)
        np.testing.assert_array_equal(cache.read(key).array, direct.array)


def test_no_identity_and_no_path_in_the_cache(folder: Path) -> None:
    for file in (folder / "cache").rglob("*"):
        if file.is_file():
            assert b"sub-" not in file.read_bytes()
            assert b"scans" not in file.read_bytes()


def test_a_second_run_reuses_every_entry(folder: Path) -> None:
    before = entries(folder)
    manifest = (folder / "cache" / "manifest.parquet").read_bytes()
    summary = again(folder)
    assert (summary.series, summary.prepared, summary.reused, summary.failed) == (5, 5, 5, {})
    assert entries(folder) == before
    assert (folder / "cache" / "manifest.parquet").read_bytes() == manifest


def test_workers_give_the_same_bytes(folder: Path) -> None:
    prepare(folder / "index", folder / "other", config(compute={"workers": 2}))
    bytes_of = {name: content for name, (content, _) in entries(folder).items()}
    assert {file.name: file.read_bytes() for file in (folder / "other" / "volumes").rglob("*.npy")} == bytes_of


def test_after_a_kill_only_what_is_missing_is_made(folder: Path) -> None:
    before = entries(folder)
    victim = sorted((folder / "cache" / "volumes").rglob("*.npy"))[2]
    left_over = victim.with_name(f".{victim.name}.1f2e3d4c.partial")  # by a kill
    left_over.write_bytes(victim.read_bytes()[:50])
    victim.unlink()
    (folder / "cache" / "manifest.parquet").unlink()
    with pytest.raises(DataError, match="not a finished cache"):
        Cache.open(folder / "cache")
    assert again(folder).reused == PATIENTS
    assert not left_over.exists()
    after = entries(folder)
    assert {name: content for name, (content, _) in after.items()} == {n: c for n, (c, _) in before.items()}
    unchanged = [name for name in before if after[name] == before[name]]
    assert len(unchanged) == PATIENTS


def test_a_changed_scan_is_another_entry(folder: Path) -> None:
    before = set(entries(folder))
    save(folder / "scans" / "sub-2" / "a.nii.gz", 2, gain=2.0)
    os.utime(folder / "scans" / "sub-2" / "a.nii.gz", ns=(10**18, 10**18))
    run_index(folder)
    assert again(folder).reused == PATIENTS
    assert len(set(entries(folder)) - before) == 1
    assert list(Cache.open(folder / "cache").verify()) == []


def test_other_settings_are_refused_and_named(folder: Path) -> None:
    before = entries(folder)
    other = {"spacing_mm": (1.0, 1.0, 2.0), "foreground": False}
    with pytest.raises(DataError) as caught:
        again(folder, preprocess=other)
    assert "spacing_mm (2.0, 2.0, 2.0) there, (1.0, 1.0, 2.0) asked for; foreground True there, False" in str(
        caught.value
    )
    assert str(caught.value).endswith("choose another --out")
    assert entries(folder) == before


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_found(folder: Path, damage: str) -> None:
    cache = Cache.open(folder / "cache")
    assert list(cache.verify()) == []
    row = cache.table.iloc[1]
    file = entry_path(cache.folder, row["entry"])
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "flip":
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1000])
    else:
        file.unlink()
    assert list(cache.verify()) == [row["series_key"]]
    if damage != "flip":
        with pytest.raises(DataError, match=f"series {row['series_key']} is missing or damaged; run `prepare` again"):
            cache.read(row["series_key"])


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_preparing_again_mends_what_is_damaged(folder: Path, damage: str) -> None:
    """The advice of the message works."""
    cache = Cache.open(folder / "cache")
    file = entry_path(cache.folder, cache.table.iloc[1]["entry"])
    content = file.read_bytes()
    file.write_bytes(content[:-1000] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    again(folder)
    assert file.read_bytes() == content
    assert list(Cache.open(folder / "cache").verify()) == []


def test_a_scan_that_fails_is_a_row_and_not_a_crash(folder: Path) -> None:
    (folder / "scans" / "sub-3" / "a.nii.gz").write_bytes(b"gone bad since the index was made")
    for file in (folder / "cache" / "volumes").rglob("*.npy"):
        file.unlink()
    summary = again(folder)
    assert (summary.prepared, sum(summary.failed.values())) == (PATIENTS, 1)
    failures = pd.read_csv(folder / "cache" / "failures.csv")
    assert failures["reason"].tolist() == [
        "its files are gone, damaged or changed since the index was made; run `index` again"
    ]
    assert summary.series == summary.prepared + 1


def test_series_of_unknown_modality_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    index([folder / "scans"], tmp_path / "unknown", IndexSettings(compute=ComputeConfig(workers=1)))
    with pytest.raises(DataError, match=r"no series to prepare \(found: 5 unknown\); set modality"):
        prepare(tmp_path / "unknown", tmp_path / "c2", config())
    assert prepare(tmp_path / "unknown", tmp_path / "c2", config(modality="ct")).prepared == 5
    assert Cache.open(tmp_path / "c2").read(Cache.open(tmp_path / "c2").table["series_key"][0]).array.dtype == np.int16


def test_select_names_what_was_found(folder: Path) -> None:
    cache = Cache.open(folder / "cache")
    assert len(cache.select(("mri",), None)) == 5
    with pytest.raises(DataError, match="no volume is of the kind asked for; found: mri"):
        cache.select(("ct",), None)


def test_newer_cache_is_refused(folder: Path) -> None:
    header = json.loads((folder / "cache" / "cache.json").read_text())
    (folder / "cache" / "cache.json").write_text(json.dumps(header | {"version": 3}))
    with pytest.raises(DataError, match="format 3 is newer than this lejepa-med reads; upgrade it"):
        Cache.open(folder / "cache")


def test_entries_are_whole_or_not_there(tmp_path: Path) -> None:
    write_settings(tmp_path, PreprocessSpec())
    write_entry(tmp_path, "ab12", np.arange(5))
    assert [file.name for file in (tmp_path / "volumes" / "ab").iterdir()] == ["ab12.npy"]
    with pytest.raises(ValueError, match="Object arrays"):
        write_entry(tmp_path, "ab13", np.array([object()]))
    assert not entry_path(tmp_path, "ab13").exists()
