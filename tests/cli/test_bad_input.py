"""What users get wrong: one sentence on standard error, exit code 2, no traceback, nothing written or overwritten."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from lejepa_med.backbones import build
from lejepa_med.cli.main import main
from lejepa_med.config import ModelConfig
from lejepa_med.spec import InferenceSpec, PreprocessSpec, Spec
from lejepa_med.weights import save_backbone

PRETRAIN = {
    "data": {"holdout": {"test_fraction": 0.0}},
    "model": {"name": "resnet10_3d", "width": 0.125, "stem_pool": False},
    "projector": {"hidden": 8, "dim": 4},
    "objective": {"num_slices": 8},
    "views": {
        "num_local": 1,
        "global_size": [16, 16, 16],
        "local_size": [8, 8, 8],
        "base_crop_mm": 40,
        "global_pitch_mm": None,
        "local_pitch_mm": None,
    },
    "train": {"steps": 1, "batch_size": 2},
}


@dataclass(frozen=True)
class Place:
    """A small archive with its index, cache, weights and configs; tests write into fresh folders only."""

    root: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("place")
    for number in range(16):
        ball = np.random.default_rng(number).normal(10, 3, (20, 20, 20))
        ball[5:15, 5:15, 5:15] += 100 + 10 * number
        folder = root / "archive" / f"sub-{number:02d}"
        folder.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(ball.astype(np.float32), np.diag([-2, 2, 2, 1.0])), folder / "t1.nii.gz")
    (root / "prepare.yaml").write_text(
        yaml.safe_dump({"compute": {"workers": 1}, "preprocess": {"spacing_mm": [2, 2, 2]}})
    )
    assert (
        main(["index", str(root / "archive"), "--out", str(root / "index"), "modality=mri", "compute.workers=1"]) == 0
    )
    prepare = ["prepare", str(root / "index"), "--out", str(root / "cache"), "--config", str(root / "prepare.yaml")]
    assert main(prepare) == 0
    config = PRETRAIN | {"data": PRETRAIN["data"] | {"cache": str(root / "cache")}}
    (root / "pretrain.yaml").write_text(yaml.safe_dump(config))
    model = ModelConfig.model_validate(PRETRAIN["model"])
    spec = Spec(preprocess=PreprocessSpec(spacing_mm=(2.0, 2.0, 2.0)), inference=InferenceSpec(window=(16, 16, 16)))
    (root / "run").mkdir()
    torch.manual_seed(0)
    save_backbone(root / "run" / "backbone.safetensors", build(model), model, spec)
    keys = pd.read_parquet(root / "cache" / "manifest.parquet")["series_key"]
    pd.DataFrame({"series_key": keys, "side": ["l", "r"] * 8}).to_csv(root / "labels.csv", index=False)
    probe = {
        "data": {"cache": str(root / "cache")},
        "model": str(root / "run"),
        "task": {"name": "side", "labels": str(root / "labels.csv"), "column": "side"},
    }
    (root / "probe.yaml").write_text(yaml.safe_dump(probe))
    return Place(root)


Fails = Callable[..., str]
PROGRESS = re.compile(r"[\w ]+: [\d,]+( of [\d,]+)?(, .*)?$|data: [\d.]+ GB of volumes .*$")


@pytest.fixture
def fails(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must fail as a user error, and returns its sentence."""

    def run(*words: object) -> str:
        before = digest(place.root), digest(tmp_path)
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in error
        lines = [line for line in error.splitlines() if not PROGRESS.match(line)]
        assert len(lines) == 1, error
        assert lines[0].startswith(f"lejepa-med {words[0]}: ")
        assert lines[0].count(f"{words[0]}: ") == 1
        assert (digest(place.root), digest(tmp_path)) == before
        return lines[0]

    return run


def digest(folder: Path) -> dict[str, str]:
    """Names and bytes of everything in a folder."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def changed(place: Place, tmp_path: Path, name: str, **sections: object) -> Path:
    """A config of the place with other sections."""
    values = yaml.safe_load((place / name).read_text()) | sections
    (tmp_path / name).write_text(yaml.safe_dump(values))
    return tmp_path / name


def test_index_of_an_empty_folder(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = fails("index", tmp_path / "empty", "--out", tmp_path / "out")
    assert "PATH 1 holds no file" in text


def test_index_of_a_missing_folder(fails: Fails, tmp_path: Path) -> None:
    text = fails("index", tmp_path, tmp_path / "gone", "--out", tmp_path / "out")
    assert "PATH 2 does not exist" in text
    assert "gone" not in text


def test_folder_with_no_readable_scan(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.nii.gz").write_bytes(b"\x1f\x8b not gzip")
    (tmp_path / "bad" / "notes.txt").write_text("text")
    text = fails("index", tmp_path / "bad", "--out", tmp_path / "index", "compute.workers=1")
    assert "none of 2 files is a scan (1 not_a_scan, 1 unreadable); expected DICOM, NIfTI" in text


def test_prepare_of_kinds_that_are_not_there(fails: Fails, place: Place, tmp_path: Path) -> None:
    text = fails("prepare", place / "index", "--out", tmp_path / "cache", "modalities=[ct]", "compute.workers=1")
    assert "no series to prepare (found: 16 mri); set modality, modalities or sequences" in text


def test_prepare_of_a_folder_that_is_no_index(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "IM0001").write_bytes(b"no scan")
    text = fails("prepare", tmp_path / "scans", "--out", tmp_path / "cache")
    assert "expected a folder written by `index`" in text
    assert "does not exist" in fails("prepare", tmp_path / "scams", "--out", tmp_path / "cache")


def test_prepare_with_other_settings_into_the_same_cache(fails: Fails, place: Place) -> None:
    words = ["prepare", place / "index", "--out", place / "cache", "--config", place / "prepare.yaml"]
    text = fails(*words, "preprocess.spacing_mm=[1, 1, 1]")
    assert "made with other settings (spacing_mm (2.0, 2.0, 2.0) there, (1.0, 1.0, 1.0) asked for)" in text
    assert "choose another --out" in text


def test_label_file_whose_ids_match_nothing(fails: Fails, place: Place, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("series_key,side\nsecret-1,l\nsecret-2,r\n")
    task = {"name": "side", "labels": str(tmp_path / "labels.csv"), "column": "side"}
    text = fails("probe", changed(place, tmp_path, "probe.yaml", task=task), "--out", tmp_path / "out")
    assert "none of the 2 ids in column `series_key` is in the cache" in text
    assert "secret" not in text


def test_missing_label_file_and_column(fails: Fails, place: Place, tmp_path: Path) -> None:
    task = {"name": "side", "labels": str(tmp_path / "gone.csv"), "column": "side"}
    config = changed(place, tmp_path, "probe.yaml", task=task)
    assert "label file does not exist" in fails("probe", config, "--out", tmp_path / "out")
    text = fails("probe", place / "probe.yaml", "--out", tmp_path / "out", "task.column=sied")
    assert "no column `sied`; did you mean `side`?" in text


@pytest.mark.parametrize("verb", ["pretrain", "views"])
def test_unknown_key(fails: Fails, place: Place, tmp_path: Path, verb: str) -> None:
    text = fails(verb, place / "pretrain.yaml", "--out", tmp_path / "out", "train.step=3", "veiws.x=1")
    assert "unknown key `train.step`; did you mean `steps`?" in text
    assert "unknown key `veiws`; did you mean `views`?" in text


@pytest.mark.parametrize(("verb", "config"), [("pretrain", "pretrain.yaml"), ("probe", "probe.yaml")])
def test_config_of_a_newer_version(fails: Fails, place: Place, tmp_path: Path, verb: str, config: str) -> None:
    text = fails(verb, changed(place, tmp_path, config, version=2), "--out", tmp_path / "out")
    assert "version 2 is newer than this lejepa-med reads (up to 1); upgrade lejepa-med" in text


@pytest.mark.parametrize("verb", ["pretrain", "views", "probe", "finetune", "benchmark"])
def test_missing_config_file(fails: Fails, tmp_path: Path, verb: str) -> None:
    assert "no such file" in fails(verb, tmp_path / "gone.yaml", "--out", tmp_path / "out")


def test_wrong_override(fails: Fails, place: Place, tmp_path: Path) -> None:
    words = ["pretrain", place / "pretrain.yaml", "--out", tmp_path / "out"]
    assert "`train.steps`: input should be a valid integer" in fails(*words, "train.steps=many")
    assert "`seed` is a single value and holds no `x`" in fails(*words, "seed.x=1", "seed=1", "seed.x=1")
    assert "is 2D, but views.global_size has 3 numbers" in fails(*words, "model.name=timm/resnet18")
    assert "`objective.lam" in fails(*words, "objective.lam=1.5")
    assert "take a multiple of 0.125" in fails(*words, "model.norm=group", "model.width=0.3")


def test_model_that_does_not_exist(fails: Fails, place: Place, tmp_path: Path) -> None:
    text = fails("pretrain", place / "pretrain.yaml", "--out", tmp_path / "out", "model.name=resnet19_3d")
    assert "resnet18_3d" in text


@pytest.mark.parametrize("verb", ["pretrain", "views"])
def test_missing_cache(fails: Fails, place: Place, tmp_path: Path, verb: str) -> None:
    text = fails(verb, place / "pretrain.yaml", "--out", tmp_path / "out.png", f"data.cache={tmp_path / 'gone'}")
    assert "not a finished cache; make it with `lejepa-med prepare INDEX --out" in text


def test_missing_cache_elsewhere(fails: Fails, place: Place, tmp_path: Path) -> None:
    assert "not a finished cache" in fails("cache", "verify", tmp_path / "gone")
    assert "not a finished cache" in fails("doctor", tmp_path / "gone")
    data = {"cache": str(tmp_path / "gone")}
    config = changed(place, tmp_path, "probe.yaml", data=data)
    assert "not a finished cache" in fails("probe", config, "--out", tmp_path / "out")


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    """An output folder that holds everything one could overwrite."""
    folder = tmp_path / "busy"
    (folder / "cells").mkdir(parents=True)
    for name in ("result.json", "model.safetensors", "config.yaml", "report.html", "benchmark.yaml"):
        (folder / name).write_text("precious")
    return folder


def test_output_in_use(fails: Fails, place: Place, busy: Path) -> None:
    assert "not empty; choose another --out" in fails("pretrain", place / "pretrain.yaml", "--out", busy)
    assert "not empty; choose another --out" in fails("demo", "--out", busy, "--size", "smoke")
    assert "already holds a result.json" in fails("probe", place / "probe.yaml", "--out", busy)
    assert "already holds a result.json" in fails("finetune", place / "probe.yaml", "--out", busy, "budgets=[]")
    assert "already holds a model.safetensors" in fails("export", place / "run", "--out", busy)


def test_resume_without_a_run(fails: Fails, place: Place, tmp_path: Path) -> None:
    text = fails("pretrain", place / "pretrain.yaml", "--out", tmp_path / "new", "--resume")
    assert "nothing to resume there" in text


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty folder", "gone"])
def test_damaged_weights(fails: Fails, place: Place, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    if damage != "gone":
        run.mkdir()
    content = (place / "run" / "backbone.safetensors").read_bytes()
    if damage in ("cut", "foreign"):
        (run / "backbone.safetensors").write_bytes(content[:-9] if damage == "cut" else b"PK\x03\x04 a zip")
    expected = "damaged" if damage in ("cut", "foreign") else "give a run, an export or a file"
    assert expected in fails("export", run, "--out", tmp_path / "out")
    assert expected in fails("embed", run, place / "cache", "--out", tmp_path / "e.parquet")
    assert expected in fails("probe", place / "probe.yaml", "--out", tmp_path / "out", f"model={run}")
    start = ["pretrain", place / "pretrain.yaml", "--out", tmp_path / "new", f"init_from={run}"]
    assert expected in fails(*start)


def test_embed_what_is_no_scan(fails: Fails, place: Place, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    text = fails("embed", place / "run", tmp_path / "a.txt", "--out", tmp_path / "e.parquet", "--modality", "mri")
    assert "no volume in 1 files" in text
    scan = place / "archive" / "sub-00" / "t1.nii.gz"
    assert "modality is unknown" in fails("embed", place / "run", scan, "--out", tmp_path / "e.parquet")


def test_report_of_no_benchmark(fails: Fails, place: Place, tmp_path: Path) -> None:
    assert "benchmark" in fails("report", place / "run", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "c.yaml", "--out", "x", "--res"],
        ["index", "a", "--ou", "x"],
        ["--vers"],
        ["config", "pretrian"],
        ["pretrian"],
        ["cache", "check", "x"],
        ["pretrain", "c.yaml"],
    ],
)
def test_argparse_refuses_abbreviations_and_unknown_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a file", "below a file", "below /proc"])
@pytest.mark.parametrize("verb", ["index", "convert", "prepare", "views", "pretrain"])
def test_outputs_that_cannot_be_written(fails: Fails, place: Place, tmp_path: Path, verb: str, name: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    out = {"a file": tmp_path / "notes.txt", "below a file": tmp_path / "notes.txt" / "x", "below /proc": "/proc/x/y"}
    target = f"{out[name]}.png" if verb == "views" and name != "a file" else out[name]
    given = {"index": "archive", "convert": "archive", "prepare": "index", "views": "pretrain.yaml"}
    workers = ["compute.workers=1"] if verb in ("index", "convert", "prepare") else []
    if verb == "prepare":
        workers += ["--config", str(place / "prepare.yaml")]
    text = fails(verb, place / given.get(verb, "pretrain.yaml"), "--out", target, *workers)
    assert str(target) in text


def test_views_replace_nothing_but_pictures(fails: Fails, place: Place, tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(b"no picture")
    assert "is there and is no PNG" in fails("views", place / "pretrain.yaml", "--out", tmp_path / "scan.png")
    assert "ends in .png" in fails("views", place / "pretrain.yaml", "--out", tmp_path / "IM0010")
    (tmp_path / "new").mkdir()
    for _ in range(2):
        assert main(["views", str(place / "pretrain.yaml"), "--out", str(tmp_path / "new" / "v.png")]) == 0


def test_devices_and_kinds_that_do_not_exist(fails: Fails, place: Place, tmp_path: Path) -> None:
    words = ["pretrain", place / "pretrain.yaml", "--out", tmp_path / "run"]
    assert "train.device gpu: no such device" in fails(*words, "train.device=gpu")
    assert "`data.modalities.1`: input should be 'mri'" in fails(*words, "data.modalities=[mri, ctt]")
    words = ["prepare", place / "index", "--out", tmp_path / "cache"]
    assert "got 'flaer'" in fails(*words, "sequences=[t2, flaer]")


def test_a_table_of_patients_is_read_first(fails: Fails, place: Place, tmp_path: Path) -> None:
    table = "{file: nope.csv, path_column: a, patient_column: b}"
    text = fails("index", place / "archive", "--out", tmp_path / "index", f"patients={table}")
    assert "patients.file (nope.csv) is not there" in text


def test_an_empty_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["index", "", "--out", str(tmp_path / "index")])
    assert "a path is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
