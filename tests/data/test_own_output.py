"""What this package writes is never read as a scan, and never written over what is something else."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from dicom_factory import stack, write

from lejepa_med.cli.main import main
from lejepa_med.config import PrepareConfig
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.converting import convert
from lejepa_med.data.files.own_output import kind_of
from lejepa_med.data.index.archive import IndexSummary, index
from lejepa_med.data.preparing import prepare
from lejepa_med.errors import DataError

ONE = ComputeConfig(workers=1)
MRI = PrepareConfig.model_validate({"compute": {"workers": 1}, "preprocess": {"foreground": False}})


def run(source: Path, out: Path) -> IndexSummary:
    return index([source], out, IndexSettings(compute=ONE))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write(tmp_path / "archive" / "scan", stack(8))
    return tmp_path / "archive"


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_outputs_inside_the_archive_are_one_row_each(archive: Path) -> None:
    for _ in range(2):
        summary = run(archive, archive / "index")
        assert (summary.files_seen, summary.files_used, summary.reasons) == (9, 8, {"own_output": 1})
    convert(archive / "index", archive / "nifti", compute=ONE)
    prepare(archive / "index", archive / "cache", MRI)
    (archive / "run").mkdir()
    for name in ("config.yaml", "metrics.jsonl", "views.png"):
        (archive / "run" / name).touch()
    summary = run(archive, archive / "index")
    assert (summary.files_seen, summary.files_used, summary.series) == (12, 8, 2)
    table = pd.read_csv(archive / "index" / "series.csv", keep_default_na=False)
    assert table.loc[table["reason"] == "own_output", "num_files"].tolist() == [4]
    assert run(archive, archive.with_name("elsewhere")).files_used == 8


def test_converted_scans_are_not_indexed_even_if_they_are_all_there_is(archive: Path, tmp_path: Path) -> None:
    run(archive, tmp_path / "index")
    convert(tmp_path / "index", tmp_path / "nifti", compute=ONE)
    with pytest.raises(DataError, match=r"none of 1 files is a scan \(1 own_output\)"):
        run(tmp_path / "nifti", tmp_path / "again")


def test_a_conversion_that_was_killed_is_known_too(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(archive, tmp_path / "index")
    to_stream = nibabel.Nifti1Image.to_stream

    def dies(image: nibabel.Nifti1Image, stream: object) -> None:
        to_stream(image, stream)
        (archive / "nifti" / ("0" * 16 + ".nii.gz")).write_bytes(b"an earlier one")
        raise KeyboardInterrupt

    monkeypatch.setattr(nibabel.Nifti1Image, "to_stream", dies)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "index", archive / "nifti", compute=ONE)
    monkeypatch.undo()
    assert run(archive, tmp_path / "index").reasons == {"own_output": 1}
    assert convert(tmp_path / "index", archive / "nifti", compute=ONE) == 1


def test_nothing_is_written_into_a_folder_of_another_kind(archive: Path, tmp_path: Path) -> None:
    run(archive, tmp_path / "index")
    convert(tmp_path / "index", tmp_path / "nifti", compute=ONE)
    prepare(tmp_path / "index", tmp_path / "cache", MRI)
    before = names(tmp_path)
    made = {name: tmp_path / name for name in ("index", "nifti", "cache", "archive")}
    for kind, out in made.items():
        if kind != "index":
            with pytest.raises(DataError, match=r"index: --out .* holds other files; choose a new folder"):
                run(archive, out)
        if kind != "nifti":
            with pytest.raises(DataError, match=r"convert: --out .* holds other files"):
                convert(tmp_path / "index", out, compute=ONE)
        if kind != "cache":
            with pytest.raises(DataError, match=r"prepare: --out .* holds other files"):
                prepare(tmp_path / "index", out, MRI)
    with pytest.raises(DataError, match="is a file"):
        convert(tmp_path / "index", tmp_path / "index" / "series.csv", compute=ONE)
    assert names(tmp_path) == before


def test_convert_of_raw_folders_refuses_the_archive_before_it_scans(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(tmp_path)
    assert main(["convert", str(archive), "--out", str(archive), "compute.workers=1"]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert names(tmp_path) == before
    for _ in range(2):
        assert main(["convert", str(archive), "--out", str(archive / "nifti"), "compute.workers=1"]) == 0
    assert len(list((archive / "nifti").glob("*.nii.gz"))) == 1


@pytest.mark.parametrize(
    "entries",
    [
        {"series.csv"}, {"series.csv", "notes.txt", "0" * 16 + ".nii.gz"}, {"cache.json"}, {"config.yaml"}, {"salt"},
        {"0" * 16 + ".nii.gz"}, {"sub-01.nii.gz", "series.csv"}, set(),
    ],
)  # fmt: skip
def test_folders_of_a_user_are_read(entries: set[str]) -> None:
    assert kind_of(entries) is None


def test_such_a_folder_is_indexed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "series.csv").write_text("of a user")
    array = np.random.default_rng(0).normal(100, 20, (8, 9, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "in" / "sub-01.nii.gz")
    assert run(tmp_path / "in", tmp_path / "out").files_used == 1
