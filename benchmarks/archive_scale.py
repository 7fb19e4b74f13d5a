"""Memory and speed of `index` on many tiny DICOM files: does either change with their number?

    python benchmarks/archive_scale.py --files 20000 200000 --workers 2

Writes series of 100 slices of 4 x 4 pixels into a temporary folder (one header whose UIDs, positions and pixels are
patched), indexes them with the command line in a process of its own, and prints one row per size: files/s of reading
files alone and of the whole command, and the most memory that the main process and any other process took. The files
are removed afterwards.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SLICES, SIDE = 100, 4
STUDY, SERIES, INSTANCE = (f"1.2.3.4.{kind}.10000000" for kind in (1, 2, 3))  # the last part is patched
POSITION = "-0000000.0"


def template() -> bytes:
    """One slice as a file, with places for UIDs, position and pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", INSTANCE
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.PatientID, dataset.PatientName, dataset.Modality = "PATIENT", "Some^Body", "MR"
    dataset.ImageType, dataset.AcquisitionTime = ["ORIGINAL", "PRIMARY", "OTHER"], "101530.25"
    dataset.EchoTime, dataset.RepetitionTime, dataset.ScanningSequence = "3.5", "500", "SE"
    dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    dataset.ImagePositionPatient = f"0\\0\\{POSITION}"
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = bytes(2 * SIDE * SIDE)
    dataset["PixelData"].VR = "OW"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def write(folder: Path, count: int) -> None:
    """`count` files in series of 100, ten series to a folder."""
    whole = template()
    draw = np.random.default_rng(0)
    for number in range(count):
        series, place = divmod(number, SLICES)
        content = whole
        for uid, value in ((STUDY, series // 4), (SERIES, series), (INSTANCE, number)):
            content = content.replace(uid.encode(), f"{uid[:-8]}{value + 10_000_000:08d}".encode())
        content = content.replace(POSITION.encode(), f"{place:010.2f}".encode())
        content = content[: -2 * SIDE * SIDE] + draw.integers(0, 999, SIDE * SIDE, np.uint16).tobytes()
        target = folder / f"{series // 10:05d}" / f"{series:06d}"
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{place:04d}").write_bytes(content)


def measure(folder: Path, out: Path, workers: int) -> dict[str, float]:
    """Times and peaks of one run, in a process of its own."""
    code = (
        "import sys, time, resource\n"
        "from pathlib import Path\n"
        "from lejepa_med.config.indexing import IndexSettings\n"
        "from lejepa_med.data.index.archive import index\n"
        "stages = {}\n"
        "def progress(stage, done, total):\n"
        "    now = time.perf_counter()\n"
        "    stages.setdefault(stage, [now, now])[1] = now\n"
        "began = time.perf_counter()\n"
        f"index([Path({str(folder)!r})], Path({str(out)!r}), "
        f"IndexSettings.model_validate({{'compute': {{'workers': {workers}}}}}), progress)\n"
        "whole = time.perf_counter() - began\n"
        "from joblib.externals.loky import get_reusable_executor\n"
        "get_reusable_executor().shutdown(wait=True)\n"  # the system counts children that have ended
        "first, last = stages['files']\n"
        "peak = lambda who: resource.getrusage(who).ru_maxrss / 1024\n"
        "print(last - first, whole, peak(resource.RUSAGE_SELF), peak(resource.RUSAGE_CHILDREN))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    read_s, whole_s, main_mb, child_mb = map(float, done.stdout.split())
    return {"read_s": read_s, "whole_s": whole_s, "main_mb": main_mb, "child_mb": child_mb}


def alone(folder: Path, limit: int = 5000) -> float:
    """Files/s of one process that looks at files and keeps nothing."""
    from lejepa_med.data.files.walk import Found
    from lejepa_med.data.index.examine import examine

    paths = _files(folder, limit)
    began = time.perf_counter()
    for path in paths:
        assert examine(Found(path, path, 1, 1)).frames
    return len(paths) / (time.perf_counter() - began)


def _files(folder: Path, limit: int) -> list[str]:
    def below() -> Iterator[str]:
        for parent, _, names in os.walk(folder):
            yield from (f"{parent}/{name}" for name in names)

    return [path for _, path in zip(range(limit), below(), strict=False)]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args(words)
    print(
        "| files | examine alone, files/s | reading, files/s | whole index, files/s | again, s | main MB | worker MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for count in options.files:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            folder, out = Path(temporary) / "archive", Path(temporary) / "index"
            write(folder, count)
            bare = alone(folder)
            first = measure(folder, out, options.workers)
            again = measure(folder, out, options.workers)
            print(
                f"| {count:,} | {bare:,.0f} | {count / first['read_s']:,.0f} | {count / first['whole_s']:,.0f} "
                f"| {again['whole_s']:.1f} | {max(first['main_mb'], again['main_mb']):.0f} | {first['child_mb']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
