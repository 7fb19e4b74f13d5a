"""Published layouts are prepared as they lie there; what is wrong with one is a row or one sentence."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import published_layouts as layouts
import pytest
from PIL import Image

from lejepa_med.config import PrepareConfig
from lejepa_med.config.preparing import SourceConfig
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.cache import Cache
from lejepa_med.data.collections.nnunet import mask_labels
from lejepa_med.data.collections.recognise import layout_of
from lejepa_med.data.preparing import PrepareSummary, prepare
from lejepa_med.errors import DataError
from lejepa_med.evaluation.labels import load_labels

FOLDER = os.environ.get("LEJEPA_MED_REAL_DATA", "")


def run(place: Path, out: Path, **settings: object) -> tuple[PrepareSummary, Cache]:
    config = PrepareConfig.model_validate({"compute": {"workers": 1}} | settings)
    return prepare(place, out, config), Cache.open(out)


def labels_of(cache: Cache) -> pd.DataFrame:
    return pd.read_csv(cache.folder / "labels.csv", dtype=str, keep_default_na=False)


def failures_of(cache: Path) -> list[str]:
    return sorted(pd.read_csv(cache / "failures.csv")["reason"])


def some_folder(place: Path) -> Path:
    layouts.nnunet(place / "source")
    for old, new in (("imagesTr", "images"), ("labelsTr", "labels")):
        (place / "source" / old).rename(place / new)
    return place


def datalist(folder: Path) -> Path:
    layouts.decathlon(folder)
    content = json.loads((folder / "dataset.json").read_text())
    cases = content["training"]
    layouts.write_json(folder / "fold_0.json", {"training": cases[:2], "validation": cases[2:]})
    (folder / "dataset.json").unlink()
    return folder


def one_npz(folder: Path) -> Path:
    layouts.medmnist(folder / "pathmnist.npz")
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "nnunet": layouts.nnunet,
    "decathlon": layouts.decathlon,
    "bids": layouts.bids,
    "mednist": layouts.mednist,
    "folder": some_folder,
    "datalist": datalist,
    "medmnist": one_npz,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_layout_is_recognised(kind: str, tmp_path: Path) -> None:
    assert layout_of(MAKERS[kind](tmp_path / "data"), SourceConfig()) == kind


@pytest.mark.parametrize("kind", MAKERS)
def test_nothing_identifying_leaves_the_private_files(kind: str, tmp_path: Path) -> None:
    source = MAKERS[kind](tmp_path / "archive")
    _, cache = run(source, tmp_path / "cache", modality="mri")
    names = {part for file in source.rglob("*") for part in file.relative_to(source).parts}
    words = [name.split(".")[0].encode() for name in names if len(name.split(".")[0]) > 4]
    words = [word for word in words if word not in (b"AbdomenCT", b"HeadCT")]  # classes, as a label
    words += [str(tmp_path).encode(), b"Secret", b"Paris"]
    for file in cache.folder.rglob("*"):
        if file.is_dir():
            continue
        if file.parent.name == "private" or file.name == "labels.csv":
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        if file.parent.name != "private":
            assert not [word for word in words if word in file.read_bytes()]
    assert stat.S_IMODE((cache.folder / "private").stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", MAKERS)
def test_a_second_run_changes_nothing(kind: str, tmp_path: Path) -> None:
    source = MAKERS[kind](tmp_path / "archive")
    first, cache = run(source, tmp_path / "cache", modality="mri")
    before = {file: file.read_bytes() for file in cache.folder.rglob("*") if file.is_file()}
    second, _ = run(source, tmp_path / "cache", modality="mri")
    assert (second.prepared, second.reused) == (first.prepared, first.prepared)
    assert {file: file.read_bytes() for file in cache.folder.rglob("*") if file.is_file()} == before


def test_nnunet_channels_are_series_of_one_study(tmp_path: Path) -> None:
    summary, cache = run(layouts.nnunet(tmp_path / "a"), tmp_path / "cache")
    assert (summary.series, summary.prepared, summary.failed) == (8, 8, {})
    assert cache.table["sequence"].value_counts().to_dict() == {"t1": 4, "flair": 4}
    assert (cache.table.groupby("patient_key")["series_key"].count() == 2).all()
    assert cache.table["study_key"].nunique() == 4
    assert cache.mask_labels() == {0: "background", 1: "edema", 2: "core"}
    labels = labels_of(cache).set_index("series_key")["split"]
    for row in cache.table.itertuples():
        assert cache.has_mask(row.series_key) == (labels[row.series_key] == "train")
    assert labels.value_counts().to_dict() == {"train": 6, "test": 2}


def test_several_processes_give_the_same_bytes(tmp_path: Path) -> None:
    source = layouts.nnunet(tmp_path / "a")
    _, one = run(source, tmp_path / "one")
    _, two = run(source, tmp_path / "two", compute={"workers": 2}, source={"salt": str(tmp_path / "one" / "private")})
    for name in ("manifest.parquet", "labels.csv", "mask_labels.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert list(two.verify()) == []


def test_what_is_wrong_with_a_case_is_a_row(tmp_path: Path) -> None:
    source = layouts.nnunet(tmp_path / "a", cases=7, channels=("CT",))
    masks, images = source / "labelsTr", source / "imagesTr"
    (masks / "BRATS_000.nii.gz").unlink()
    layouts.save(masks / "BRATS_001.nii.gz", np.zeros((3, 4, 5), np.uint8))
    layouts.save(masks / "BRATS_002.nii.gz", np.full((14, 16, 12), 9, np.uint8))
    (images / "BRATS_003_0000.nii.gz").unlink()
    (images / "BRATS_004_0000.nii.gz").write_bytes(b"\x1f\x8bno gzip")
    (masks / "BRATS_005.nii.gz").write_bytes(b"nothing")
    summary, cache = run(source, tmp_path / "cache")
    assert failures_of(cache.folder) == [
        "image cannot be read (unreadable)",
        "image missing",
        "mask cannot be read (unreadable)",
        "mask missing",
        "mask of another shape: 3 x 4 x 5, the image has 14 x 16 x 12",
        "mask value without a label: 9",
    ]
    assert (summary.series, summary.prepared, sum(summary.failed.values())) == (8, 2, 6)


def test_labels_of_both_versions_and_regions() -> None:
    assert mask_labels({"0": "background", "1": "liver"}) == {0: "background", 1: "liver"}
    regions = {"background": 0, "whole": [1, 2, 3], "masses": [2, 3], "tumor": 2}
    assert mask_labels(regions) == {0: "background", 1: "whole", 2: "tumor", 3: "masses"}
    with pytest.raises(DataError, match="`labels` must hold names and whole numbers"):
        mask_labels({"background": "zero"})


def test_decathlon(tmp_path: Path) -> None:
    summary, cache = run(layouts.decathlon(tmp_path / "a"), tmp_path / "cache")
    assert (summary.prepared, cache.stats()["masks"]) == (4, 3)
    assert cache.mask_labels() == {0: "background", 1: "Anterior", 2: "Posterior"}


def test_a_4d_image_is_a_series_per_modality(tmp_path: Path) -> None:
    source = layouts.decathlon(tmp_path / "a", modalities=("FLAIR", "T1w", "t1gd", "T2w"))
    _, cache = run(source, tmp_path / "cache")
    assert cache.table["sequence"].value_counts().to_dict() == {"t1": 8, "flair": 4, "t2": 4}
    assert cache.table["patient_key"].nunique() == 4
    assert cache.table["sha256"].nunique() == 16
    assert cache.stats()["masks"] == 12


def test_an_image_that_is_listed_and_not_there_is_a_row(tmp_path: Path) -> None:
    source = layouts.decathlon(tmp_path / "a")
    (source / "imagesTr" / "hippocampus_001.nii.gz").unlink()
    (source / "labelsTr" / "hippocampus_002.nii.gz").unlink()
    summary, cache = run(source, tmp_path / "cache")
    assert failures_of(cache.folder) == ["image missing", "mask missing"] and summary.prepared == 2


def test_a_datalist_of_classes(tmp_path: Path) -> None:
    source = layouts.decathlon(tmp_path / "a")
    names = [f"imagesTr/hippocampus_{number:03d}.nii.gz" for number in range(3)]
    entries = [{"image": name, "label": number % 2, "patient": "same"} for number, name in enumerate(names)]
    layouts.write_json(source / "list.json", {"training": entries[:2], "validation": entries[2:]})
    _, cache = run(source / "list.json", tmp_path / "cache", modality="mri")
    labels = labels_of(cache)
    assert sorted(zip(labels["split"], labels["label"], strict=True)) == [("train", "0"), ("train", "1"), ("val", "0")]
    assert cache.table["patient_key"].nunique() == 1 and cache.stats()["masks"] == 0


@pytest.mark.parametrize("root", ["", "ds000001"])
def test_bids(root: str, tmp_path: Path) -> None:
    summary, cache = run(layouts.bids(tmp_path / "a", root=root), tmp_path / "cache")
    assert summary.prepared == 12
    assert summary.left_out == {"mask": 6, "not structural (func)": 6}
    assert cache.table["sequence"].value_counts().to_dict() == {"t1": 6, "flair": 6}
    assert (cache.table["patient_key"].nunique(), cache.table["study_key"].nunique()) == (3, 6)
    labels = labels_of(cache)
    assert list(labels.columns) == ["series_key", "patient_key", "site", "age", "sex"]
    assert sorted(labels["age"]) == [""] * 4 + ["31"] * 4 + ["32"] * 4


def test_the_layout_of_fomo(tmp_path: Path) -> None:
    for subject in (1, 2):
        for name in ("t1", "flair", "t2s"):
            layouts.save(tmp_path / "a" / f"sub_{subject}" / "ses_1" / f"{name}.nii.gz", layouts.volume(subject)[0])
    _, cache = run(tmp_path / "a", tmp_path / "cache")
    assert (len(cache), cache.table["patient_key"].nunique()) == (6, 2)
    assert set(cache.table["sequence"]) == {"t1", "flair", ""}


@pytest.mark.parametrize(
    ("shape", "labels"), [((28, 28), 1), ((28, 28, 3), 1), ((28, 28), 14), ((28, 28, 28), 1), ((64, 64), 1)]
)
def test_medmnist_is_kept_as_published(shape: tuple[int, ...], labels: int, tmp_path: Path) -> None:
    arrays = layouts.medmnist(tmp_path / "a" / "some.npz", shape, labels)
    _, cache = run(tmp_path / "a" / "some.npz", tmp_path / "cache")
    table = labels_of(cache)
    columns = ["label"] if labels == 1 else [f"label_{number}" for number in range(labels)]
    assert list(table.columns) == ["series_key", "patient_key", "split", *columns]
    colour = len(shape) == 3 and shape[2] == 3
    for split in ("train", "val", "test"):
        rows = table[table["split"] == split]
        images = arrays[f"{split}_images"]
        if colour:
            images = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
        expected = {
            (image.tobytes(), tuple(map(str, label)))
            for image, label in zip(images, arrays[f"{split}_labels"].tolist(), strict=True)
        }
        found = {(cache.read(row["series_key"]).array.tobytes(), tuple(row[columns])) for _, row in rows.iterrows()}
        assert len(rows) == len(images) and found == expected
    assert set(cache.table["modality"]) == {"image"} and cache.table["spacing_mm"].isna().all()


def test_a_task_reads_the_labels(tmp_path: Path) -> None:
    layouts.medmnist(tmp_path / "a.npz")
    _, cache = run(tmp_path / "a.npz", tmp_path / "cache")
    task = TaskConfig(name="t", labels=cache.folder / "labels.csv", column="label", kind="classification")
    assert len(load_labels(task, cache.table, None)) == 14


def test_damaged_npz_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    layouts.medmnist(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"array `train_images` of the .npz file is damaged or cut off"):
        run(file, tmp_path / "cache")
    np.savez(file, train_images=np.array([{"a": 1}], dtype=object), train_labels=np.zeros((1, 1)))
    with pytest.raises(DataError, match=r"array `train_images` of the .npz file holds pickled objects"):
        run(file, tmp_path / "cache")
    np.savez(file, images=np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"the .npz file has no array `train_images`"):
        run(file, tmp_path / "cache")
    np.savez(file, train_images=np.zeros((3, 4, 4), np.float32), train_labels=np.zeros((3, 1)))
    with pytest.raises(DataError, match=r"train_images has the shape \(3, 4, 4\) and type float32, expected 8-bit"):
        run(file, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_damaged_rows_of_an_npz_fail_alone(tmp_path: Path) -> None:
    """A flipped byte in the stored pixels is found by the checksum of the archive, at the end of the array."""
    file = tmp_path / "a.npz"
    random, arrays = np.random.default_rng(0), {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = random.integers(0, 256, (16, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.zeros((16, 1), np.uint8)
    np.savez(file, **arrays)
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        place = archive.getinfo("val_images.npy").header_offset
    content[place + 11000] ^= 255
    file.write_bytes(content)
    summary, cache = run(file, tmp_path / "cache")
    assert 32 < summary.prepared < 48
    assert set(failures_of(cache.folder)) == {
        "medmnist: array `val_images` of the .npz file is damaged or cut off; download it again"
    }


def test_mednist(tmp_path: Path) -> None:
    _, cache = run(layouts.mednist(tmp_path / "a"), tmp_path / "cache", preprocess={"image_size": 64})
    assert labels_of(cache)["label"].value_counts().to_dict() == {"AbdomenCT": 3, "Hand": 3, "HeadCT": 3}
    assert cache.read(cache.table["series_key"][0]).array.shape == (64, 64)


def test_a_table_says_whose_images_these_are(tmp_path: Path) -> None:
    source = layouts.decathlon(tmp_path / "a")
    rows = "file,subject,where,age\n" + "".join(f"hippocampus_{n:03d}.nii.gz,s{n // 2},Ulm,{n}\n" for n in range(4))
    (source / "cases.csv").write_text(rows)
    table = {"table": "cases.csv", "patient_column": "subject", "site_column": "where", "label_columns": ["age"]}
    _, cache = run(source, tmp_path / "cache", source=table)
    assert cache.table["patient_key"].nunique() == 2
    labels = labels_of(cache)
    assert sorted(labels["age"]) == ["0", "1", "2", "3"] and labels["site"].nunique() == 1
    assert "Ulm" not in labels.to_csv()
    by_id = tmp_path / "by_id.csv"
    by_id.write_text("patient_id,group\ns0,a\ns1,b\n")
    task = TaskConfig(name="t", labels=by_id, column="group")
    assert len(load_labels(task, cache.table, cache.folder / "private")) == 4
    with pytest.raises(DataError, match=r"source.table: no column `name`; it has file, subject, where, age"):
        run(source, tmp_path / "other", source=table | {"file_column": "name"})


@pytest.mark.usefixtures("salts_of_users")
def test_keys_agree_between_caches_of_one_salt(tmp_path: Path) -> None:
    source = layouts.decathlon(tmp_path / "a")
    _, first = run(source, tmp_path / "one")
    salt = {"salt": str(tmp_path / "one" / "private")}
    _, second = run(source, tmp_path / "two", source=salt, preprocess={"spacing_mm": (2.0, 2.0, 2.0)})
    _, third = run(source, tmp_path / "three")
    assert first.table["patient_key"].tolist() == second.table["patient_key"].tolist()
    assert not set(first.table["patient_key"]) & set(third.table["patient_key"])
    with pytest.raises(DataError, match="was made with another salt; choose another --out"):
        run(source, tmp_path / "three", source=salt)


def test_no_layout_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(
        DataError, match="expected a folder written by `index`, or a collection laid out as one of nnunet"
    ):
        run(tmp_path / "a", tmp_path / "cache")
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "b", tmp_path / "cache", source={"kind": "nnunet"})
    for kind in ("nnunet", "decathlon"):
        (tmp_path / "a" / "dataset.json").write_text("{")
        with pytest.raises(DataError, match=r"dataset.json cannot be read as JSON"):
            run(tmp_path / "a", tmp_path / "cache", source={"kind": kind})
    assert not (tmp_path / "cache").exists()


@pytest.mark.real_data
@pytest.mark.skipif(not FOLDER, reason="needs LEJEPA_MED_REAL_DATA to name the folder of real scans")
def test_real_pictures_of_mednist(tmp_path: Path) -> None:
    for place in sorted((Path(FOLDER) / "mednist").iterdir()):
        if place.is_dir():
            (tmp_path / "a" / place.name).mkdir(parents=True)
            for file in sorted(place.glob("*.jp*g"))[:20]:
                shutil.copy(file, tmp_path / "a" / place.name)
    if not (tmp_path / "a").exists():
        pytest.fail("mednist holds no folder of pictures")
    _, cache = run(tmp_path / "a", tmp_path / "cache", preprocess={"image_size": 64})
    assert labels_of(cache)["label"].value_counts().unique().tolist() == [20]
