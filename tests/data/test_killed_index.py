"""`index` is killed at random moments, as by a batch system; run again, it writes what an undisturbed run does."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_factory import SR, header, stack, write

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.index.archive import index

OUTPUTS = ("series.parquet", "series.csv", "index.html", "files.parquet")


def archive(folder: Path, series: int, slices: int) -> Path:
    """Series of several patients, one study twice under other UIDs, NIfTI files, reports and rubbish."""
    for number in range(series):
        patient = number // 3
        datasets = stack(slices, gap=1.0 + 0.1 * number)
        for place, dataset in enumerate(datasets):
            dataset.PatientID, dataset.StudyInstanceUID = f"planted-{patient}", f"1.2.826.70.{patient}"
            dataset.SeriesInstanceUID, dataset.SOPInstanceUID = f"1.2.826.71.{number}", f"1.2.826.72.{number}.{place}"
        write(folder / f"planted-{patient}" / str(number), datasets, seed=number)
    again = stack(slices)
    for place, dataset in enumerate(again):
        dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "planted", "1.2.826.79", "1.2.826.78"
        dataset.SOPInstanceUID = f"1.2.826.77.{place}"
    write(folder / "again", again)
    for number in range(series // 4):
        array = np.random.default_rng(number % 3).normal(100, 30, (6, 7, 8)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-1, 1, 2, 1])), folder / f"{number}.nii.gz")
        report = header(SR, SOPInstanceUID=f"1.2.5.{number}", Modality="SR")
        report.save_as(folder / f"report-{number}", enforce_file_format=True)
        (folder / f"notes-{number}.txt").write_text("planted")
    return folder


def fresh(folder: Path, salt: bytes) -> Path:
    folder.mkdir()
    (folder / "salt").write_bytes(salt)
    (folder / "salt").chmod(0o600)
    return folder


def start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    """The real command, in a process group of its own."""
    command = [sys.executable, "-m", "lejepa_med", "index", str(source), "--out", str(out), "compute.workers=2"]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def outputs(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in OUTPUTS}


def kept(out: Path) -> list[tuple[object, ...]]:
    """What the store knows, in an order of its own."""
    with sqlite3.connect(out / "scan.sqlite") as sql:
        files = sql.execute("SELECT key, kind, reason, series, uid, patient, study, payload FROM examined").fetchall()
        probes = sql.execute("SELECT * FROM probes").fetchall()
    sql.close()
    return sorted(files) + sorted(probes)


def check_private(out: Path) -> None:
    """Whatever a killed run leaves names nobody, but for the table of files, which only its owner may read."""
    for path in out.iterdir():
        if path.name in ("files.parquet", ".files.parquet.partial", "salt") or path.name.startswith("scan.sqlite"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
        if "files.parquet" not in path.name:
            assert b"planted" not in path.read_bytes(), path.name


def check_kills(tmp_path: Path, series: int, slices: int, kills: int) -> None:
    source = archive(tmp_path / "archive", series, slices)
    salt = b"5a" * 32
    whole = fresh(tmp_path / "whole", salt)
    began = time.monotonic()
    assert start(source, whole).wait() == 0
    seconds = time.monotonic() - began
    expected, known = outputs(whole), kept(whole)
    draw = random.Random(0)
    interrupted = attempt = 0
    while interrupted < kills:  # a run may be done before its moment comes: another one, with an earlier moment
        assert attempt < 5 * kills
        out = fresh(tmp_path / f"killed-{attempt}", salt)
        process = start(source, out)
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        interrupted, attempt, seconds = interrupted + killed, attempt + 1, seconds * (1.0 if killed else 0.8)
        check_private(out)
        index([source], out, IndexSettings.model_validate({"compute": {"workers": 1}}))
        assert outputs(out) == expected
        assert kept(out) == known
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_three_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, series=8, slices=6, kills=3)


@pytest.mark.long
def test_twenty_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, series=60, slices=25, kills=20)
