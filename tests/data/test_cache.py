"""The cache: what is prepared once stays as it is, what is damaged is found, what was made otherwise is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import distributed
import nibabel
import numpy as np
import pandas as pd
import pytest

from lejepa_med.compute import spread
from lejepa_med.config import IndexSettings, PrepareConfig
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data import cache as cache_module
from lejepa_med.data import preparing, preparing_series
from lejepa_med.data.cache import COLUMNS, Cache, entry_path, publish_manifest, write_entry, write_settings
from lejepa_med.data.dataset import CacheSource
from lejepa_med.data.index.archive import index
from lejepa_med.data.preparing import PrepareSummary, prepare
from lejepa_med.data.preparing_series import manifest_row
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.reading import Archive
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec
from lejepa_med.whole_files import remove_abandoned, whole_file, write_atomically

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


def test_a_dask_cluster_gives_the_same_bytes(folder: Path) -> None:
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        summary = prepare(folder / "index", folder / "dask", config(compute={"scheduler": cluster.scheduler_address}))
    assert summary.prepared == PATIENTS + 1
    assert contents(folder / "dask") == contents(folder / "cache")


def contents(cache: Path) -> dict[str, bytes]:
    return {str(file.relative_to(cache)): file.read_bytes() for file in cache.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", ["cache.json", "manifest.parquet", "entry"])
def test_any_flipped_byte_is_one_sentence(folder: Path, name: str) -> None:
    cache = Cache.open(folder / "cache")
    row = cache.table.iloc[2]
    file = entry_path(cache.folder, row["entry"]) if name == "entry" else cache.folder / name
    whole, random = file.read_bytes(), np.random.default_rng(0)
    places = range(len(whole)) if name == "cache.json" else random.integers(0, len(whole), 120).tolist()
    said = {
        "cache.json": "cache.json is damaged",
        "manifest.parquet": "manifest.parquet is damaged; run `prepare` again",
        "entry": f"series {row['series_key']} is missing or damaged; run `prepare` again",
    }
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= int(random.integers(1, 256))
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=said[name]):
            Cache.open(folder / "cache").read(row["series_key"])
    file.write_bytes(whole)
    Cache.open(folder / "cache").read(row["series_key"])


def test_reading_checks_once_per_process_and_not_at_all_if_told(folder: Path) -> None:
    cache = Cache.open(folder / "cache")
    row = cache.table.iloc[0]
    file = entry_path(cache.folder, row["entry"])
    cache.read(row["series_key"])
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cache.read(row["series_key"])
    with pytest.raises(DataError, match="damaged"):
        Cache.open(folder / "cache").read(row["series_key"])
    assert Cache.open(folder / "cache", verify=False).read(row["series_key"]).array.size
    assert list(cache.verify(ComputeConfig(workers=2))) == [row["series_key"]]


def test_a_manifest_is_known_to_its_checksum_at_every_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the three files a kill prevents, the cache opens: with the old rows or the new."""
    table = Cache.open(folder / "cache").table
    for written in range(3):
        publish_manifest(folder / "cache", table)
        left = [written]

        def stops(path: Path, content: bytes, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write_atomically(path, content)

        monkeypatch.setattr(cache_module, "write_atomically", stops)
        with pytest.raises(KeyboardInterrupt):
            publish_manifest(folder / "cache", table.iloc[:3])
        monkeypatch.undo()
        assert len(Cache.open(folder / "cache")) == (3 if written == 2 else 5)


def test_a_cache_of_the_first_format_opens(folder: Path) -> None:
    """It knows neither groups nor sizes, and its settings have no checksum."""
    path = folder / "cache"
    stats = Cache.open(path).stats()
    header = json.loads((path / "cache.json").read_text())
    old = {"version": 1, "preprocess": {k: v for k, v in header["preprocess"].items() if k != "max_upsampling"}}
    (path / "cache.json").write_text(json.dumps(old, indent=1))
    pd.read_parquet(path / "manifest.parquet")[list(COLUMNS)].to_parquet(path / "manifest.parquet", index=False)
    (path / "manifest.parquet.sha256").unlink()
    cache = Cache.open(path)
    assert cache.table["group_key"].tolist() == cache.table["series_key"].tolist()
    assert cache.stats() == stats and list(cache.verify()) == []
    again(folder)
    assert Cache.open(path).table["bytes"].min() > 0


def test_groups_of_near_duplicates_reach_the_cache(folder: Path) -> None:
    table = pd.read_parquet(folder / "index" / "series.parquet")
    used = table[table["verdict"] != "rejected"]
    twins = used.groupby("patient_key")["series_key"].transform("count") == 2
    group = pd.Series("", index=table.index)
    group[twins[twins].index] = "twins"
    table.assign(group_key=group).to_parquet(folder / "index" / "series.parquet", index=False)
    again(folder)
    cache = Cache.open(folder / "cache")
    assert cache.table["group_key"].value_counts()["twins"] == 2
    alone = cache.table[cache.table["group_key"] != "twins"]
    assert alone["group_key"].tolist() == alone["series_key"].tolist()
    stats = cache.stats()
    assert (stats["groups"], stats["groups_of_near_duplicates"]) == (PATIENTS, 1)
    assert CacheSource(cache, cache.table).groups == cache.table["group_key"].tolist()


def test_stats(folder: Path) -> None:
    cache = Cache.open(folder / "cache")
    stats, shapes = cache.stats(), np.array(cache.table["shape"].tolist())
    assert (stats["studies"], stats["modalities"]) == (cache.table["study_key"].nunique(), {"mri": 5})
    assert sum(stats["sequences"].values()) == 5
    assert stats["shapes"]["3d median"] == np.median(shapes, axis=0).tolist()
    assert stats["shapes"]["3d largest"] == shapes.max(0).tolist()


def test_strays_are_named(folder: Path) -> None:
    cache = Cache.open(folder / "cache")
    assert cache.strays() == {"unlisted": [], "partial": [], "other": []}
    old = "volumes/ab/" + "ab" * 16 + ".npy"
    for name in (old, "volumes/ab/.x.npy.00000000.partial", "volumes/notes.txt"):
        (cache.folder / name).parent.mkdir(exist_ok=True)
        (cache.folder / name).write_bytes(b"x")
    assert cache.strays() == {
        "unlisted": [old],
        "partial": ["volumes/ab/.x.npy.00000000.partial"],
        "other": ["volumes/notes.txt"],
    }


def test_a_partial_file_of_a_living_writer_stays(tmp_path: Path) -> None:
    (tmp_path / ".dead.npy.00000000.partial").write_bytes(b"x")
    with whole_file(tmp_path / "alive.npy") as stream:
        stream.write(b"content")
        assert remove_abandoned([tmp_path]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["alive.npy"]
    assert (tmp_path / "alive.npy").read_bytes() == b"content"


def test_a_full_disk_stops_with_a_sentence_and_the_next_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(folder / "cache")
    shutil.rmtree(folder / "cache")
    calls = [0]
    save = np.save

    def fills_up(stream: Any, array: np.ndarray, **options: Any) -> None:
        calls[0] += 1
        if calls[0] > 2:
            stream.write(array.tobytes()[:100])
            raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")
        save(stream, array, **options)

    monkeypatch.setattr(np, "save", fills_up)
    with pytest.raises(
        DataError, match=r"^cache .*: the disk is full \(.* MB free.*run the same command again$"
    ) as caught:
        again(folder)
    assert "secret" not in str(caught.value)
    assert len(entries(folder)) == 2
    assert not list((folder / "cache").rglob("*.partial"))
    monkeypatch.undo()
    assert again(folder).reused == 2
    assert contents(folder / "cache") == expected


def test_little_space_is_said_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    prepare(folder / "index", folder / "other", config(), warn=said.append)
    assert said == []
    usage = shutil.disk_usage(folder)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    prepare(folder / "index", folder / "third", config(), warn=said.append)
    assert len(said) == 1 and "may be needed" in said[0]
    prepare(folder / "index", folder / "third", config(), warn=said.append)
    assert len(said) == 1  # everything is there already


def test_a_scan_that_kills_its_process_costs_itself_alone(folder: Path) -> None:
    """A worker dies on one volume, by whatever cause: here a preprocessing step that ends its process."""
    rows, _ = preparing._chosen(Archive.open(folder / "index").rows(), config())
    victim = rows["series_key"][1]
    results = [
        result
        for _, batch in spread(
            partial(dies_on, victim), rows.to_dict("records"), ComputeConfig(workers=2), preparing._lost, batch_size=1
        )
        for result in batch
    ]
    reasons = {result["series_key"]: result["reason"] for result in results}
    died = "the process that prepared it died: too little memory, or a decoder that crashed or never ended"
    assert reasons.pop(victim) == died
    assert set(reasons.values()) == {""}


def dies_on(victim: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if any(row["series_key"] == victim for row in rows):
        os._exit(9)
    return [manifest_row(row) for row in rows]


def test_a_defect_is_a_row_without_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(volume: Volume, spec: PreprocessSpec) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(preparing_series, "prepare_volume", breaks)
    with pytest.raises(DataError, match="none of 5 series could be prepared") as caught:
        prepare(folder / "index", folder / "other", config())
    assert "secret" not in str(caught.value)
    failures = pd.read_csv(folder / "other" / "failures.csv")
    assert failures["reason"].nunique() == 1 and "report it" in failures["reason"][0]
