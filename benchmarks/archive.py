"""Reading an archive, side by side with other readers in one run: header scan, plain pixels, compressed pixels.

    python benchmarks/archive.py [headers] [native] [compressed] [--data FOLDER] [--repeats 7]

Without names all tables are made. Files are written to a temporary folder first (and so are in the page cache), or
taken from FOLDER for the header scan. Each figure is the median over repeats in which the readers take turns, with the
range in brackets; a ratio is the median of the ratios within the repeats.

    headers      files/s: `read_frames` beside pydicom.dcmread(stop_before_pixels, same tags), in 1 and 2 processes
    native       slices/s of 200 slices of 512 x 512: `read_frames`, `stack`, `read_volume` beside SimpleITK
    compressed   slices/s of 512 x 512 by transfer syntax: `stored_values` beside pydicom's pixel_array
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from lejepa_med.compute import spread
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data.dicom.header import TAGS
from lejepa_med.data.dicom.header_pass import read_frames
from lejepa_med.data.dicom.pixels import rescaled, stored_values
from lejepa_med.data.dicom.stack import stack
from lejepa_med.data.dicom.volume import read_volume

SLICES, SIDE, HEADERS = 200, 512, 1000
TAG_LIST: list[int] = sorted(TAGS)


def main() -> None:
    """Parses the command line and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}; default: all")
    parser.add_argument("--data", type=Path, help="folder of DICOM files for the header scan")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; expected {', '.join(TABLES)}")
    _print_machine()
    for name in options.tables or TABLES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n## {name}\n")
            TABLES[name](Path(folder), options)


def _print_machine() -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("pydicom", "numpy", "pyjpegls", "pylibjpeg-openjpeg"))
    print(f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"Python {platform.python_version()}, {packages}")  # fmt: skip


def headers(folder: Path, options: argparse.Namespace) -> None:
    """Header scan, files/s."""
    if options.data:
        files = [str(path) for path in sorted(options.data.rglob("*")) if path.is_file() and _is_dicom(path)]
    else:
        files = []
        for number in range(HEADERS):
            dataset = ct_slice(number, 64)
            files.append(str(folder / f"{number:04d}"))
            dataset.save_as(files[-1], enforce_file_format=True)
    elements = statistics.median(len(list(pydicom.dcmread(file, stop_before_pixels=True))) for file in files[:50])
    print(f"{len(files)} files, {elements:g} elements each (median)\n")
    readers: dict[str, Callable[[], object]] = {}
    for workers in (1, 2):
        readers[f"pydicom, {_processes(workers)}"] = _spread(_bare, files, workers)
        readers[f"ours, {_processes(workers)}"] = _spread(_ours, files, workers)
    references = tuple(f"pydicom, {_processes(workers)}" for workers in (1, 2))
    print_rates(measure(readers, options.repeats), len(files), "files/s", references)


def _processes(workers: int) -> str:
    return f"{workers} process{'es' * (workers > 1)}"


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _spread(work: Callable[[list[str]], list[int]], files: Sequence[str], workers: int) -> Callable[[], object]:
    compute = ComputeConfig(workers=workers)
    return lambda: [len(results) for _, results in spread(work, files, compute, lambda item: 0)]


def _bare(batch: list[str]) -> list[int]:
    return [len(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(TAG_LIST))) for file in batch]


def _ours(batch: list[str]) -> list[int]:
    return [_frames_of(file) for file in batch]


def _frames_of(file: str) -> int:
    try:
        return len(read_frames(file))
    except Exception:  # files that are no volume are part of a scan
        return 0


def native(folder: Path, options: argparse.Namespace) -> None:
    """Plain 16-bit pixels, slices/s."""
    files = []
    for number in range(SLICES):
        files.append(str(folder / f"{number:04d}.dcm"))
        ct_slice(number, SIDE).save_as(files[-1], enforce_file_format=True)
    frames = [read_frames(file)[0] for file in files]
    readers: dict[str, Callable[[], object]] = {
        "ours, files to volume": lambda: read_volume(stack([read_frames(file)[0] for file in files], 0)),
        "ours, pixels of known frames": lambda: [rescaled(frame, stored_values([frame])[0]) for frame in frames],
    }
    reference: tuple[str, ...] = ()
    try:
        import SimpleITK
    except ImportError:
        print("SimpleITK is not installed: pip install SimpleITK\n")
    else:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(files)
        readers[f"SimpleITK {SimpleITK.Version_VersionString()}, ImageSeriesReader"] = reader.Execute
        reference = (list(readers)[-1],)
        ours = read_volume(stack(frames, 0)).array
        assert np.array_equal(SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0), ours)
    print_rates(measure(readers, options.repeats), SLICES, "slices/s", reference)


def compressed(folder: Path, options: argparse.Namespace) -> None:
    """Compressed pixels, slices/s."""
    for name, syntax in (("RLE", RLELossless), ("JPEG-LS", JPEGLSLossless), ("JPEG 2000", JPEG2000Lossless)):
        files = []
        for number in range(10):
            dataset = ct_slice(number, SIDE)
            dataset.compress(syntax, generate_instance_uid=False)
            files.append(str(folder / f"{syntax}{number}.dcm"))
            dataset.save_as(files[-1], enforce_file_format=True)
        readers: dict[str, Callable[[], object]] = {
            f"{name}, ours": lambda files=files: [stored_values(read_frames(file)) for file in files],
            f"{name}, pydicom": lambda files=files: [pydicom.dcmread(file).pixel_array for file in files],
        }
        print_rates(measure(readers, options.repeats), len(files), "slices/s", (f"{name}, pydicom",))
        print()


TABLES: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "headers": headers, "native": native, "compressed": compressed,
}  # fmt: skip


def measure(readers: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each reader, which take turns, after one call of each."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for repeat in range(repeats + 1):
        for name, read in readers.items():
            begin = time.perf_counter()
            read()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def print_rates(seconds: Mapping[str, Sequence[float]], items: int, unit: str, references: Iterable[str]) -> None:
    """A Markdown table of rates, with the ratio to each reference."""
    references = list(references)
    print(f"| reader | {unit} |" + "".join(f" / {name} |" for name in references))
    print("|---|---|" + "---|" * len(references))
    for name, times in seconds.items():
        rate = f"{items / statistics.median(times):.0f} ({items / max(times):.0f}-{items / min(times):.0f})"
        ratios = [
            statistics.median(theirs / ours for theirs, ours in zip(seconds[reference], times, strict=True))
            for reference in references
        ]
        print(f"| {name} | {rate} |" + "".join(f" {ratio:.2f} |" for ratio in ratios), flush=True)


def ct_slice(number: int, side: int) -> Dataset:
    """A CT slice with a header of a clinical size: about 200 elements, two private blocks, some sequences."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.826.0.1.9.{number + 1}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.826.0.1.1", "1.2.826.0.1.2"
    dataset.FrameOfReferenceUID, dataset.PatientID = "1.2.826.0.1.3", "BENCHMARK"
    dataset.ImageType, dataset.Modality = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT"
    dataset.BodyPartExamined, dataset.AcquisitionNumber, dataset.InstanceNumber = "CHEST", 1, number + 1
    dataset.AcquisitionTime, dataset.ConvolutionKernel, dataset.KVP = "101500.25", "B30f", "120"
    dataset.PixelSpacing, dataset.ImageOrientationPatient = ["0.7", "0.7"], ["1", "0", "0", "0", "1", "0"]
    dataset.ImagePositionPatient = ["-179.2", "-179.2", f"{number * 1.5:.2f}"]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "-1024", "HU"
    for group, size in ((0x0019, 70), (0x0043, 70)):
        dataset.add_new((group << 16) | 0x0010, "LO", "BENCHMARK PRIVATE")
        for element in range(size):
            vr, value = (("DS", "12.5"), ("LO", "text of some length"), ("SL", 7), ("OB", b"\0" * 64))[element % 4]
            dataset.add_new((group << 16) | (0x1000 + element), vr, value)
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, "1.2.826.0.1.4"
    for word in ("ReferencedImageSequence", "ReferencedStudySequence", "SourceImageSequence"):
        setattr(dataset, word, Items([item, item]))
    dataset.add_new(0x00090010, "LO", "BENCHMARK PRIVATE")
    for element in range(30):
        dataset.add_new(0x00091000 + element, "LO", "more")
    row, column = np.mgrid[0:side, 0:side]
    noise = np.random.default_rng(number).integers(0, 40, (side, side))
    values = 1024 + 800 * np.sin(row / side * 5 + number / 50) * np.cos(column / side * 4) + noise
    dataset.Rows = dataset.Columns = side
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = values.clip(0, 4095).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


if __name__ == "__main__":
    main()
