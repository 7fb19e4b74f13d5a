"""The index: every file has a row, every volume reads back, no identity leaves, nothing is read twice."""

from __future__ import annotations

import os
import pickle
import random
import sqlite3
import stat
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from dicom_factory import (
    CT,
    SECONDARY_CAPTURE,
    SR,
    compressed,
    enhanced,
    header,
    image,
    misplaced,
    stack,
    turned,
    write,
)
from PIL import Image

from lejepa_med.config.compute import ComputeConfig
from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.converting import convert
from lejepa_med.data.files import nifti
from lejepa_med.data.files.walk import Found
from lejepa_med.data.index.archive import IndexSummary, _lost, index
from lejepa_med.data.index.archive_tables import COLUMNS
from lejepa_med.data.index.pseudonyms import Pseudonyms
from lejepa_med.data.index.store import Store
from lejepa_med.data.privacy import load_salt, patient_key
from lejepa_med.data.reading import Archive, read_any
from lejepa_med.data.vocabulary import FLAGS, REASONS
from lejepa_med.errors import DataError

PUBLIC = ("series.parquet", "series.csv", "index.html")
OUTPUTS = (*PUBLIC, "files.parquet")


def run(source: Path, out: Path, **settings: object) -> IndexSummary:
    return index([source], out, IndexSettings.model_validate({"compute": {"workers": 1}, **settings}))


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1, 1, 2, 1])), path)


def outputs(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in OUTPUTS}


def known(out: Path) -> list[bytes]:
    """The keys of the files in the store."""
    with sqlite3.connect(out / "scan.sqlite") as sql:
        keys = [key for (key,) in sql.execute("SELECT key FROM examined ORDER BY key")]
    sql.close()
    return keys


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, (6, 7, 8)).astype(np.float32)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """A folder with a DICOM series, its by-products, NIfTI files, images and rubbish."""
    folder = tmp_path / "planted-hospital"
    paths = write(folder / "planted-doe-john" / "a", stack(8))
    report = header(SR, SOPInstanceUID="1.2.5.1", Modality="SR")
    capture = image((0, 0, 0), 5, sop_class=SECONDARY_CAPTURE, SeriesInstanceUID="1.2.5.9")
    write(folder / "planted-doe-john" / "b", [report, capture])
    paths[5].with_name("again").write_bytes(paths[5].read_bytes())
    save(folder / "nifti" / "sub-07" / "ses-1" / "planted.nii.gz", noise(1))
    save(folder / "nifti" / "copy.nii.gz", noise(1))
    save(folder / "nifti" / "labels.nii.gz", (noise(2) > 100).astype(np.uint8))
    (folder / "nifti" / "cut.nii.gz").write_bytes(b"\x1f\x8b\x08\x00rest")
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (20, 30, 3), np.uint8)).save(folder / "photo.png")
    (folder / "planted-notes.txt").write_text("planted text")
    (folder / "empty.dcm").touch()
    (folder / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / "round").symlink_to(folder)
    (folder / "data.zip").write_bytes(b"PK\x03\x04")
    os.mkfifo(folder / "pipe")
    return folder


def test_every_file_is_used_or_explained(hospital: Path, tmp_path: Path) -> None:
    summary = run(hospital, tmp_path / "out")
    assert summary.files_seen == 23 == summary.files_used + summary.files_explained
    files = pd.read_parquet(tmp_path / "out" / "files.parquet")
    assert files["path"].nunique() == summary.files_seen
    table = pd.read_csv(tmp_path / "out" / "series.csv", keep_default_na=False)
    assert tuple(table.columns) == COLUMNS and table["series_key"].is_monotonic_increasing
    assert table["series_key"].is_unique
    assert sorted(table.loc[table["verdict"] == "rejected", "reason"]) == sorted(
        ["structured_report", "secondary_capture", "duplicate", "duplicate", "label_map", "unreadable", "unreadable",
         "unreadable", "not_a_scan", "empty_file", "broken_link", "symlink_loop", "special_file"]
    )  # fmt: skip
    assert summary.files_used == 8 + 1 + 1
    assert set(table["reason"]) <= {"", *REASONS}
    assert {flag for flags in table["flags"] for flag in flags.split(";")} <= {"", *FLAGS}


def test_no_identity_leaves_the_archive(
    hospital: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(hospital, out)
    convert(out, tmp_path / "converted")
    public = [out / name for name in PUBLIC] + sorted((tmp_path / "converted").iterdir())
    said = "".join(capfd.readouterr()) + caplog.text
    for path in public:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = nibabel.load(path).header.binaryblock
        for planted in (b"lanted", b"PLANTED", b"-7788", b"1961", b"1.2.826.77", b"doe-john", b"sub-07", b"hospital"):
            assert planted not in content, (path.name, planted)
    assert said == ""
    for path in out.iterdir():
        private = path.name not in PUBLIC
        assert (stat.S_IMODE(path.stat().st_mode) == 0o600) == private, path.name


def test_volumes_read_back(hospital: Path, tmp_path: Path) -> None:
    run(hospital, tmp_path / "out", modality="mri")
    archive = Archive.open(tmp_path / "out")
    rows = archive.rows().set_index("source")
    volume = archive.read(rows.loc["dicom", "series_key"])
    assert volume.modality == "mri" and misplaced(volume) <= 0.501
    np.testing.assert_array_equal(archive.read(rows.loc["nifti", "series_key"]).array, noise(1))
    assert archive.read(rows.loc["image", "series_key"]).array.shape == (20, 30)
    assert rows.loc["dicom", "patient_key"] == patient_key(load_salt(tmp_path / "out"), "PLANTED-ID-7788")
    assert rows.loc["nifti", "patient_key"] == patient_key(load_salt(tmp_path / "out"), "sub-07")


def test_rejected_unknown_and_changed_series_are_named_by_key(hospital: Path, tmp_path: Path) -> None:
    run(hospital, tmp_path / "out")
    archive = Archive.open(tmp_path / "out")
    rejected = archive.rows(("rejected",))["series_key"][0]
    with pytest.raises(DataError, match=f"series {rejected}: rejected"):
        archive.read(rejected)
    with pytest.raises(DataError, match="series abc: not in this index"):
        archive.read("abc")
    key = archive.rows().set_index("source").loc["dicom", "series_key"]
    for path in (hospital / "planted-doe-john" / "a").iterdir():
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=f"series {key}: its files are gone, damaged or changed") as caught:
        archive.read(key)
    assert "planted" not in str(caught.value)


def test_unchanged_files_are_not_read_again(hospital: Path, tmp_path: Path) -> None:
    first = run(hospital, tmp_path / "out")
    before = outputs(tmp_path / "out")
    assert run(hospital, tmp_path / "out").files_read == 0
    assert before == outputs(tmp_path / "out")
    save(hospital / "new.nii.gz", noise(9))
    (hospital / "planted-notes.txt").unlink()
    again = run(hospital, tmp_path / "out")
    assert (again.files_read, again.files_seen) == (1, first.files_seen)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "salt").write_bytes((tmp_path / "out" / "salt").read_bytes())
    run(hospital, fresh)
    assert outputs(fresh) == outputs(tmp_path / "out")
    assert len(known(fresh)) == len(known(tmp_path / "out")) == first.files_seen


def test_a_killed_run_is_resumed(hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lejepa_med.data.index.archive.dicom_entries", killed)
    with pytest.raises(KeyboardInterrupt):
        run(hospital, tmp_path / "out")
    monkeypatch.undo()
    assert run(hospital, tmp_path / "out").files_read == 0


def test_files_of_older_versions_are_removed_and_a_damaged_store_is_made_anew(hospital: Path, tmp_path: Path) -> None:
    first = run(hospital, tmp_path / "out")
    (tmp_path / "out" / "headers.jsonl").write_text("held patient ids")
    (tmp_path / "out" / "scan.sqlite").write_bytes(b"no database" * 1000)
    assert run(hospital, tmp_path / "out") == first
    assert not (tmp_path / "out" / "headers.jsonl").exists()


def test_two_processes_give_the_same_index(hospital: Path, tmp_path: Path) -> None:
    for number in range(80):
        save(hospital / "many" / f"{number}.nii", noise(number + 10))
    run(hospital, tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "salt").write_bytes((tmp_path / "one" / "salt").read_bytes())
    run(hospital, tmp_path / "two", compute={"workers": 2})
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")


def test_modality_comes_from_rules_then_settings(tmp_path: Path) -> None:
    for name in ("ct/a.nii", "mr/b.nii"):
        save(tmp_path / "in" / name, noise(len(name) + ord(name[0])))
    run(tmp_path / "in", tmp_path / "out", modality="mri", rules=[{"glob": "ct/*", "modality": "ct"}])
    table = Archive.open(tmp_path / "out").table
    assert sorted(table["modality"]) == ["ct", "mri"]
    ct = table.set_index("modality").loc["ct"]
    assert ct["flags"] == "hu_uncertain;patient_unknown"  # no voxel under -30


def test_the_patient_table(tmp_path: Path) -> None:
    for number, name in enumerate(("x/scan.nii", "y/scan.nii", "z/alone.nii", "z/other.nii")):
        save(tmp_path / "in" / name, noise(number))
    table = tmp_path / "patients.csv"
    table.write_text("path,patient_id\nx/scan.nii,p1\ny/scan.nii,p2\nalone.nii,p1\nscan.nii,p9\n")
    run(tmp_path / "in", tmp_path / "out", patients={"file": table})
    files = pd.read_parquet(tmp_path / "out" / "files.parquet").merge(Archive.open(tmp_path / "out").table)
    salt = load_salt(tmp_path / "out")
    patients = files.set_index("relative")["patient_key"]
    assert patients["in/x/scan.nii"] == patients["in/z/alone.nii"] == patient_key(salt, "p1")
    assert patients["in/y/scan.nii"] == patient_key(salt, "p2")
    assert "patient_unknown" in files.set_index("relative").loc["in/z/other.nii", "flags"]
    table.write_text("path,patient_id\nq.nii,p1\n")
    with pytest.raises(DataError, match="names none of the 4"):
        run(tmp_path / "in", tmp_path / "out2", patients={"file": table})


def test_user_mistakes_are_one_sentence_and_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="PATH 1 holds no file"):
        run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "planted.txt").write_text("text")
    with pytest.raises(DataError, match=r"none of 1 files is a scan \(1 not_a_scan\)") as caught:
        run(tmp_path / "in", tmp_path / "out")
    assert "planted" not in str(caught.value)
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_keys_survive_moving_the_archive(hospital: Path, tmp_path: Path) -> None:
    run(hospital, tmp_path / "out")
    moved = tmp_path / "elsewhere" / hospital.name
    moved.parent.mkdir()
    hospital.rename(moved)
    before = Archive.open(tmp_path / "out").rows()["series_key"].tolist()
    run(moved, tmp_path / "out")
    assert Archive.open(tmp_path / "out").rows()["series_key"].tolist() == before


def test_convert_resumes_and_keeps_geometry(hospital: Path, tmp_path: Path) -> None:
    run(hospital, tmp_path / "out")
    assert convert(tmp_path / "out", tmp_path / "nifti") == 3
    archive = Archive.open(tmp_path / "out")
    for key in archive.rows()["series_key"]:
        written, source = nibabel.load(tmp_path / "nifti" / f"{key}.nii.gz"), archive.read(key)
        np.testing.assert_array_equal(np.squeeze(np.asarray(written.dataobj)), source.array)
        np.testing.assert_allclose(written.affine, source.affine, atol=0.01)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "nifti").glob("*.gz")}
    convert(tmp_path / "out", tmp_path / "nifti")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "nifti").glob("*.gz")}


def test_folders_of_one_name_stay_apart(tmp_path: Path) -> None:
    for parent, seed in (("a", 1), ("b", 2)):
        save(tmp_path / parent / "data" / "scan.nii", noise(seed))
    roots = [tmp_path / "a" / "data", tmp_path / "b" / "data", tmp_path / "a" / "data" / "scan.nii"]
    summary = index(roots, tmp_path / "out", IndexSettings(compute=ComputeConfig(workers=1)))
    assert (summary.files_seen, summary.series) == (2, 2)
    assert Archive.open(tmp_path / "out").table["patient_key"].is_unique


def test_a_defect_of_the_reader_costs_one_series(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise ValueError("could not convert string to float: 'PLANTED'")

    monkeypatch.setattr("lejepa_med.data.index.entries_dicom.assemble", fails)
    summary = run(hospital, tmp_path / "out")
    assert summary.reasons["not_understood"] == 1 and summary.files_used == 2


def test_unreadable_folders_and_files_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "open" / "a.nii", noise())
    save(tmp_path / "in" / "closed" / "b.nii", noise(1))
    scandir = os.scandir

    def guarded(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    summary = run(tmp_path / "in", tmp_path / "out")
    assert summary.reasons == {"permission_denied": 1} and summary.files_used == 1


def test_damaged_files_never_crash_and_never_talk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    multi_frame = enhanced(4)
    multi_frame.SeriesInstanceUID = "1.2.826.77.20"
    for number, path in enumerate(write(tmp_path / "whole", [*stack(3), multi_frame]) * 20):
        content = bytearray(path.read_bytes())
        if number % 3 == 0:
            content = content[: draw.randrange(140, len(content))]
        for _ in range(10):
            content[draw.randrange(132, len(content))] = draw.randrange(256)
        (tmp_path / "whole" / f"{number}.dcm").write_bytes(content)
    summary = run(tmp_path / "whole", tmp_path / "out", min_slices=1)
    assert summary.files_seen == 84 == summary.files_used + summary.files_explained
    archive = Archive.open(tmp_path / "out")
    shapes = {archive.read(key).array.shape[:2] for key in archive.rows()["series_key"]}
    assert (9, 7) in shapes
    assert "".join(capfd.readouterr()) == ""


def test_the_contact_sheet_shows_every_kind(hospital: Path, tmp_path: Path) -> None:
    run(hospital, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3  # a DICOM series, a NIfTI file, a photo
    assert "23 files seen = 10 used + 13 explained" in page


def test_four_dimensional_files_give_one_row_per_part(tmp_path: Path) -> None:
    array = np.stack([noise(seed) for seed in range(4)], axis=-1)
    save(tmp_path / "in" / "a.nii.gz", array)
    save(tmp_path / "in" / "wide.nii", noise(8).astype(np.float64))
    run(tmp_path / "in", tmp_path / "out", keep_timepoints=2, modality="mri")
    archive = Archive.open(tmp_path / "out")
    assert sorted(archive.table["reason"]) == ["", "", "", "timepoint_not_kept", "timepoint_not_kept"]
    parts = archive.rows()
    found = [archive.read(key).array for key in parts.loc[parts["flags"].str.contains("split"), "series_key"]]
    assert {array.tobytes() for array in found} == {noise(0).tobytes(), noise(1).tobytes()}


def test_read_any_follows_the_same_rules(hospital: Path) -> None:
    (volume,) = read_any(hospital / "planted-doe-john" / "a")
    assert misplaced(volume) <= 0.501
    (volume,) = read_any(hospital / "nifti" / "copy.nii.gz", "mri")
    assert volume.modality == "mri"
    assert read_any(hospital / "photo.png")[0].modality == "image"
    with pytest.raises(DataError, match="no volume"):
        read_any(hospital / "planted-notes.txt")


def test_other_settings_judge_anew_without_reading(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(hospital, tmp_path / "out")

    def reads(*arguments: object) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr("lejepa_med.data.index.examine.examine", reads)
    monkeypatch.setattr("lejepa_med.data.index.probe.listed_frame", reads)
    again = run(hospital, tmp_path / "out", min_slices=9, modality="mri", accept_label_maps=True)
    assert again.files_read == 0
    assert again.reasons["too_few_slices"] == 4  # the series, two equal files and the label map
    assert again.modalities == {"image": 1}


def exported_again(folder: Path, study: str, patient: str) -> None:
    """The same scan as `stack` makes, under other UIDs and run-length encoded."""
    datasets = compressed(stack(8, PatientID=patient, StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1"))
    for number, dataset in enumerate(datasets):
        dataset.SOPInstanceUID = f"{study}.1.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    write(folder, datasets, seed=3)


def test_a_study_exported_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a", stack(8))
    exported_again(tmp_path / "in" / "b", "1.2.826.88", "other")
    write(tmp_path / "in" / "c", stack(8, gap=2.6, SeriesInstanceUID="1.2.826.99"))
    summary = run(tmp_path / "in", tmp_path / "out")
    assert summary.verdicts == {"accepted": 1, "flagged": 1, "rejected": 1}
    assert (summary.reasons, summary.flags) == ({"duplicate": 1}, {"duplicate_file": 1})
    table = Archive.open(tmp_path / "out").table.set_index("reason")
    assert table.loc["duplicate", "patient_key"] == patient_key(load_salt(tmp_path / "out"), "other")


def test_equal_series_of_one_study_are_its_protocol(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a", stack(8))
    exported_again(tmp_path / "in" / "b", "1.2.826.77.1", "PLANTED-ID-7788")
    assert run(tmp_path / "in", tmp_path / "out").verdicts == {"accepted": 2}


def test_numbers_of_rejected_and_tilted_series(tmp_path: Path) -> None:
    write(tmp_path / "in" / "uneven", [image((0, 0, height), number) for number, height in enumerate((0, 2, 5, 9, 14))])
    tilted = [image((0, 0, 2.0 * n), n, turned(15), SeriesInstanceUID="1.2.826.5") for n in range(6)]
    write(tmp_path / "in" / "tilted", tilted)
    save(tmp_path / "in" / "scan.nii", noise())
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (20, 30), np.uint8)).save(tmp_path / "in" / "a.png")
    run(tmp_path / "in", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "series.csv", keep_default_na=False).set_index("reason", drop=False)
    uneven = table.loc["irregular_spacing"]
    assert (uneven["gaps_mm"], float(uneven["tilt_degrees"])) == ("2;3;5", 0.0)
    others = table[table["reason"] == ""].set_index("source")
    assert others.loc["dicom", "gaps_mm"] == ";".join([f"{2 * np.cos(np.deg2rad(15)):.6g}"] * 3)
    assert float(others.loc["dicom", "tilt_degrees"]) == 15.0
    assert (others.loc["nifti", "gaps_mm"], float(others.loc["nifti", "tilt_degrees"])) == ("", 0.0)
    assert (others.loc["image", "gaps_mm"], others.loc["image", "tilt_degrees"]) == ("", "")
    assert (table["group_key"] == table["series_key"]).all()


def test_files_are_found_in_a_long_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lejepa_med.data.index.archive_tables._FILES_ROWS", 5)
    for number in range(6):
        slices = stack(8, gap=1.0 + number, SeriesInstanceUID=f"1.2.826.5.{number}")
        for place, dataset in enumerate(slices):
            dataset.SOPInstanceUID = f"1.2.826.6.{number}.{place}"
        write(tmp_path / "in" / str(number), slices)
    run(tmp_path / "in", tmp_path / "out")
    archive = Archive.open(tmp_path / "out")
    assert len(archive.table) == 6
    for row in archive.rows().to_dict("records"):
        volume = archive.read(row["series_key"])
        assert misplaced(volume) <= 0.501
        assert f"{volume.spacing_mm[2]:.6g}" == row["spacing_mm"].split(";")[2]
    pickled = pickle.dumps(archive)
    assert len(pickled) < 1000
    key = archive.table["series_key"][0]
    assert pickle.loads(pickled).fingerprint(key) == archive.fingerprint(key)


def test_one_run_at_a_time(hospital: Path, tmp_path: Path) -> None:
    run(hospital, tmp_path / "out")
    before = outputs(tmp_path / "out")
    with Store(tmp_path / "out"), pytest.raises(DataError, match="another `index` is at work"):
        run(hospital, tmp_path / "out")
    assert outputs(tmp_path / "out") == before


def test_a_file_that_kills_its_reader_has_a_row(hospital: Path, tmp_path: Path) -> None:
    found = Found(str(hospital / "photo.png"), "photo.png", 1, 1)
    lost = _lost(Pseudonyms(b"s"), found)
    assert (lost.kind, lost.reason, lost.frames, lost.volumes) == ("other", "crashed_reader", 0, 0)


def test_a_permission_that_was_given_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        save(tmp_path / "in" / f"{number}.nii", noise(number))
    look = nifti.look

    def guarded(path: Path) -> object:
        if path.name == "1.nii":
            raise PermissionError
        return look(path)

    monkeypatch.setattr(nifti, "look", guarded)
    assert run(tmp_path / "in", tmp_path / "out").reasons == {"permission_denied": 1}
    monkeypatch.undo()
    summary = run(tmp_path / "in", tmp_path / "out")
    assert (summary.files_read, summary.files_used) == (1, 2)


def test_thin_and_thick_of_one_acquisition_are_one_group(tmp_path: Path) -> None:
    for name, gap, count in (("thin", 1.0, 12), ("thick", 3.0, 4), ("later", 1.0, 12)):
        uid, time = f"1.2.826.{len(name)}.{count}", "111500" if name == "later" else "101500"
        slices = stack(count, gap, SeriesInstanceUID=uid, AcquisitionTime=time, SOPClassUID=CT)
        for place, dataset in enumerate(slices):
            dataset.SOPInstanceUID = f"{uid}.{place}"
        write(tmp_path / "in" / name, slices)
    run(tmp_path / "in", tmp_path / "out")
    table = Archive.open(tmp_path / "out").rows()
    groups = table.groupby("num_slices")["group_key"].agg(set)
    thick = next(iter(groups[4]))
    assert thick in groups[12] and len(groups[12]) == 2
    assert thick == min(table.loc[table["group_key"] == thick, "series_key"])


def test_pictures_with_burnt_in_text_are_not_shown(tmp_path: Path) -> None:
    write(tmp_path / "in", stack(8))
    run(tmp_path / "in", tmp_path / "clean")
    assert (tmp_path / "clean" / "index.html").read_text().count("<img") == 1
    write(tmp_path / "in", stack(8, BurnedInAnnotation="YES"))
    run(tmp_path / "in", tmp_path / "marked")
    assert list(Archive.open(tmp_path / "marked").table["flags"]) == ["burned_in"]
    assert "<img" not in (tmp_path / "marked" / "index.html").read_text()
