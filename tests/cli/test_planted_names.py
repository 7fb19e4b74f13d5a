"""Identifying texts planted everywhere in an archive: no byte that the commands write or print holds one of them.

Only `files.parquet` may, and there only in its two columns of paths.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
import stat
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from dicom_factory import CT, SECONDARY_CAPTURE, SR, enhanced, header, image, stack, write
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

WORDS = {
    "PatientName": "Qvornax^Trelba", "PatientID": "ZK4471-QX", "OtherPatientIDs": "MOP-90210-VY",
    "PatientBirthDate": "19310517", "PatientAddress": "Vexholm Lane 77", "PatientTelephoneNumbers": "555-019-2837",
    "PatientComments": "likes brumfels", "PatientMotherBirthName": "Yulgrith", "EthnicGroup": "Drovian",
    "AccessionNumber": "ACC7719332", "InstitutionName": "Kloptenberg Infirmary", "InstitutionAddress": "Wurzelplatz 9",
    "InstitutionalDepartmentName": "Ward Zephyrine", "ReferringPhysicianName": "Grubnak^Otto",
    "PerformingPhysicianName": "Hexlworth^Ada", "NameOfPhysiciansReadingStudy": "Plimdorf^Ivo",
    "OperatorsName": "Snodgrath^Una", "RequestingPhysician": "Tarquibel^Max", "StationName": "SCANNERVOX3",
    "DeviceSerialNumber": "SN88341XQ", "StudyDescription": "query morbus gaffel", "SeriesDescription": "brilligation",
    "ImageComments": "seen by frobisher", "ProtocolName": "proto-jabberwock", "StudyID": "STID5523",
    "StudyDate": "20190823", "SeriesDate": "20190824", "AcquisitionDate": "20190825", "ContentDate": "20190826",
    "PerformedProcedureStepID": "PPS-WIMBLE-4", "RequestedProcedureDescription": "check the vorpal node",
    "AdditionalPatientHistory": "fell off a mimsy borogove", "Occupation": "toveherder", "StackID": "STKUFFISH",
}  # fmt: skip
UIDS = {
    "StudyInstanceUID": "1.2.276.987654321.1", "SeriesInstanceUID": "1.2.276.987654322.2",
    "FrameOfReferenceUID": "1.2.276.987654323.3",
}  # fmt: skip
INSTANCES = "1.2.276.987654324.4"
PRIVATE_TAG = "PRIVQUONK"
PLACES = ("Zanzibelle_Marie", "file-of-wobbleton", "sub-Frabjous77", "ses-Slithy", "Outgrabe", "packed-momerath")
NIFTI = {"descrip": "DESCKWAZOO", "intent_name": "INTKWIBBLE", "db_name": "DBNBANDERS", "aux_file": "AUXTULGEYWOOD"}
OTHERS = ("SIDECARGALUMPH", "PNGCHORTLED", "TEXTUFFISHTHOUGHT", "CELLBEAMISH", "REPORTCALLOOH", "ENHCALLAY")
PLANTED = [*WORDS.values(), *UIDS.values(), INSTANCES, PRIVATE_TAG, *PLACES, *NIFTI.values(), *OTHERS]
PLANTED += [part for name in WORDS.values() if "^" in name for part in name.split("^")[:1]]
PRIVATE = {"salt", "scan.sqlite", "files.parquet"}


def planted(dataset: Dataset, number: int) -> Dataset:
    """A slice with everything that hospitals write into headers."""
    for keyword, value in (WORDS | UIDS).items():
        setattr(dataset, keyword, value)
    dataset.SOPInstanceUID = f"{INSTANCES}.{number}"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VORPAL"]
    block = dataset.private_block(0x0029, "PRIVQUONK MAKER", create=True)
    block.add_new(0x10, "LO", f"{PRIVATE_TAG} VALUE")
    request = Dataset()
    request.RequestingPhysician, request.RequestedProcedureID = WORDS["RequestingPhysician"], PRIVATE_TAG
    dataset.RequestAttributesSequence = Items([request])
    return dataset


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / PLACES[0]
    slices = [planted(dataset, number) for number, dataset in enumerate(stack(8))]
    paths = write(folder / "good", slices)
    paths[2].with_name(f"{PLACES[1]}.dcm").write_bytes(paths[2].read_bytes())
    cut = [planted(dataset, 100 + number) for number, dataset in enumerate(stack(6, SeriesInstanceUID="1.2.276.9"))]
    for path in write(folder / f"{PLACES[4]}-cut", cut):
        path.write_bytes(path.read_bytes()[:-20])
    uneven = [image((0, 0, height), 200 + height) for height in (0, 2, 5, 9, 14)]
    for number, dataset in enumerate(uneven):
        planted(dataset, 200 + number).SeriesInstanceUID = UIDS["SeriesInstanceUID"] + ".5"
    write(folder / "uneven", uneven)
    report = planted(header(SR, Modality="SR"), 300)
    report.ContentLabel, report.TextValue = "REPORT", OTHERS[4]
    capture = planted(image((0, 0, 0), 5, sop_class=SECONDARY_CAPTURE), 301)
    many = planted(enhanced(6), 302)
    many.SeriesInstanceUID, many.SeriesDescription = UIDS["SeriesInstanceUID"] + ".6", OTHERS[5]
    unnamed = [planted(dataset, 400 + n) for n, dataset in enumerate(stack(5, gap=3.0))]
    for dataset in unnamed:
        dataset.SOPClassUID, dataset.SeriesInstanceUID = CT, ""
    write(folder / PLACES[4], [report, capture, many])
    write(folder / f"{PLACES[4]} unnamed", unnamed)
    garbled = bytearray(paths[0].read_bytes())
    garbled[400:440] = b"\xff" * 40
    (folder / f"{PLACES[1]}-garbled.dcm").write_bytes(garbled)
    (folder / f"{PLACES[1]}.dcm").write_bytes(b"\0" * 128 + b"DICM" + OTHERS[2].encode() * 5)
    _write_files(folder)
    return folder


def _write_files(folder: Path) -> None:
    bids = folder / PLACES[2] / PLACES[3]
    bids.mkdir(parents=True)
    for name, seed in (("t1.nii.gz", 0), ("copy.nii.gz", 0), ("t2.nii", 1)):
        noise = np.random.default_rng(seed).normal(100, 30, (12, 13, 14)).astype(np.float32)
        scan = nibabel.Nifti1Image(noise, np.diag([-1, 1, 2, 1]))
        for field, value in NIFTI.items():
            scan.header[field] = value
        nibabel.save(scan, bids / name)
    whole = gzip.decompress((bids / "t1.nii.gz").read_bytes())
    (bids / f"{PLACES[1]}.nii").write_bytes(whole[:600])
    (bids / f"{PLACES[1]}.nii.gz").write_bytes(gzip.compress(OTHERS[2].encode() * 40))
    sidecar = {"Modality": "MR", "PatientName": OTHERS[0], "InstitutionName": OTHERS[0]}
    (bids / "t1.json").write_text(json.dumps(sidecar))
    (folder / f"{OTHERS[2]}.txt").write_text(OTHERS[2])
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Comment", OTHERS[1])
    pixels = np.random.default_rng(3).integers(0, 255, (20, 30), np.uint8)
    Image.fromarray(pixels).save(folder / f"{PLACES[1]}.png", pnginfo=chunks)
    (folder / f"{PLACES[1]}-cut.png").write_bytes((folder / f"{PLACES[1]}.png").read_bytes()[:150])
    with zipfile.ZipFile(folder / f"{PLACES[5]}.zip", "w") as packed:
        packed.writestr(f"{PLACES[1]}/{PLACES[5]}.txt", OTHERS[2])
        packed.write(bids / "t2.nii", f"{PLACES[5]}/t2.nii")


def run(*words: object) -> str:
    """Everything that a command says; whether it ends well is for the caller to know."""
    command = [sys.executable, "-m", "lejepa_med", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stderr
    return f"{done.returncode} {done.stdout} {done.stderr}"


def texts(path: Path) -> list[bytes]:
    """The bytes of a file, and what they unpack to."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        return [data, gzip.decompress(data)]
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        if path.name == "files.parquet":
            table = table.drop_columns(["path", "relative"])
            return [json.dumps(table.to_pylist(), default=str).encode(), str(table.schema).encode()]
        return [data, json.dumps(table.to_pylist(), default=str).encode(), str(table.schema).encode()]
    if path.name == "scan.sqlite":
        with sqlite3.connect(path) as sql:
            payloads = [row[0] for row in sql.execute("SELECT payload FROM examined") if row[0]]
        sql.close()
        assert payloads
        return [data, *map(zlib.decompress, payloads)]
    return [data]


def found_in(content: bytes) -> list[str]:
    lowered = content.lower()
    return [
        word
        for word in PLANTED
        if word.lower().encode() in lowered or word.lower().encode("utf-16-le").rstrip(b"\0") in lowered
    ]


def test_the_search_finds_what_is_there(archive: Path) -> None:
    everything = b"".join(path.read_bytes() for path in archive.rglob("*") if path.is_file())
    everything += b"".join(gzip.decompress(path.read_bytes()) for path in archive.rglob("t1.nii.gz"))
    everything += "\n".join(map(str, archive.rglob("*"))).encode()
    assert set(PLANTED) - set(found_in(everything)) == {OTHERS[3]}  # which stands in the patient table
    assert len(set(PLANTED)) >= 50
    assert found_in("xxACC7719332".encode("utf-16-be")) == ["ACC7719332"]


def test_no_planted_word_is_written_or_printed(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = tmp_path / "patients.csv"
    table.write_text(f"path,patient_id\n{PLACES[1]}.png,{OTHERS[3]}\n")
    said = {
        "index": run("index", archive, "--out", out / "index", "modality=mri", f"patients.file={table}"),
        "again": run("index", archive, "--out", out / "index", "modality=mri", "compute.workers=1", "min_slices=2"),
        "convert": run("convert", out / "index", "--out", out / "nifti"),
        "prepare": run("prepare", out / "index", "--out", out / "cache", "preprocess.spacing_mm=[2,2,2]"),
        "rubbish": run("index", next(archive.glob("*.txt")).parent / PLACES[4], "--out", out / "other"),
    }
    assert all(text.startswith("0") for text in said.values()), said
    check_modes(out / "index")
    for path in (archive / "good").iterdir():  # damaged after `index`: the paths on which readers fail
        path.write_bytes(path.read_bytes()[:-40])
    for path in (archive / PLACES[2]).rglob("t1.nii.gz"):
        path.unlink()
    said |= {
        "convert fails": run("convert", out / "index", "--out", out / "nifti2"),
        "prepare fails": run("prepare", out / "index", "--out", out / "cache2", "preprocess.spacing_mm=[2,2,2]"),
        "index of nothing": run("index", archive / "good" / "gone", "--out", out / "none"),
        "index of text": run("index", next(archive.glob("*.txt")), "--out", out / "none"),
    }
    assert not (out / "none").exists()
    assert said["index of nothing"].startswith("2") and "PATH 1" in said["index of nothing"]
    assert said["index of text"].startswith("2") and "none of 1 files is a scan" in said["index of text"]
    problems = {name: found_in(text.encode()) for name, text in said.items()}
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) > 20
    problems |= {str(path): [w for text in texts(path) for w in found_in(text)] for path in written}
    problems |= {f"name {path}": found_in(str(path.relative_to(out)).encode()) for path in out.rglob("*")}
    assert {name: words for name, words in problems.items() if words} == {}


def check_modes(index: Path) -> None:
    """Private files are for their owner only."""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in index.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == PRIVATE
    assert {name for name in modes if name not in PRIVATE} == {"series.csv", "series.parquet", "index.html"}
    assert pd.read_parquet(index / "files.parquet")["path"].str.contains(PLACES[0]).all()
