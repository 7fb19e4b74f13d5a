"""Speed of `prepare`: volumes per second for 1 and 2 processes, and where the time of one volume goes.

    python benchmarks/prepare.py --data FOLDER_OF_NIFTI --dicom-series 6

`--data` is a folder of MRI in NIfTI (the hippocampus images of the Medical Segmentation Decathlon, for one); the DICOM
series are written here: 256 slices of 256 x 256, 16 bits, 0.9 x 0.9 x 1.0 mm, a noisy ball in noise. The target is
1 mm. Stages are measured in CPU time of one process, rates on the clock. Also measured: SHA-256 of an entry, which the
first read of a volume in a process costs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lejepa_med.config import IndexSettings, PrepareConfig
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data import preparing, preprocess
from lejepa_med.data.cache import Cache, entry_path, file_digest, write_entry
from lejepa_med.data.index import archive
from lejepa_med.data.reading import Archive
from lejepa_med.data.synthetic import SeriesHeader, write_series
from lejepa_med.data.volume import Volume

_STAGES = {"resample": "resample", "foreground": "body_mask", "normalise": "to_unit_range"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of MRI in NIfTI")
    parser.add_argument("--dicom-series", type=int, default=6, help="synthetic series of 256^3 voxels (0: none)")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.data is not None:
            measure("nifti", options.data, work / "nifti")
        if options.dicom_series:
            for number in range(options.dicom_series):
                write_dicom(work / "dicom" / "scans" / f"{number}", number)
            measure("dicom 256^3", work / "dicom" / "scans", work / "dicom")


def write_dicom(folder: Path, seed: int, side: int = 256) -> None:
    random = np.random.default_rng(seed)
    line = np.arange(side) - side / 2
    distance = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)
    array = np.where(distance < 0.4 * side, 800, 0) + random.normal(40, 12, (side, side, side))
    volume = Volume(array.clip(0).astype(np.int16), np.diag([-0.9, -0.9, 1.0, 1.0]), "mri")
    folder.mkdir(parents=True)
    write_series(volume, SeriesHeader(f"series {seed}", f"study {seed}", f"BENCH{seed}", "BENCH"), folder)


def measure(name: str, scans: Path, work: Path) -> None:
    settings = IndexSettings(modality="mri", compute=ComputeConfig(workers=1))
    archive.index([scans], work / "index", settings)
    rates = {}
    for workers in (1, 2):
        config = PrepareConfig(compute=ComputeConfig(workers=workers))
        if workers > 1:  # the processes are there, as in any long run
            preparing.prepare(work / "index", work / "warm", config)
        shutil.rmtree(work / "cache", ignore_errors=True)
        began = time.perf_counter()
        summary = preparing.prepare(work / "index", work / "cache", config)
        rates[f"volumes_per_s_{workers}"] = round(summary.prepared / (time.perf_counter() - began), 2)
    shares, per_volume = stages(work)
    result = {"data": name, "volumes": summary.prepared, **rates, "cpu_ms_per_volume": per_volume, "shares": shares}
    print(json.dumps(result | {"sha256_cpu_ms_per_volume": hashing(Cache.open(work / "cache"))}), file=sys.stdout)


def stages(work: Path) -> tuple[dict[str, float], float]:
    """Share of each stage in the time of one process, by timing the functions themselves."""
    spent: dict[str, float] = {}
    opened, spec = Archive.open(work / "index"), PrepareConfig().preprocess
    originals = {name: getattr(preprocess, function) for name, function in _STAGES.items()}
    for name, function in _STAGES.items():
        setattr(preprocess, function, timed(name, originals[name], spent))
    read, prepare = timed("read", opened.read, spent), timed("prepare", preprocess.prepare_volume, spent)
    write = timed("write and hash", write_entry, spent)
    keys = [str(key) for key in opened.rows()["series_key"]]
    for number, key in enumerate(keys):
        volume = read(key)
        write(work / "stages", f"{number:032x}", prepare(volume, spec).array)
    for name, function in _STAGES.items():
        setattr(preprocess, function, originals[name])
    spent["rest"] = spent.pop("prepare") - sum(spent[name] for name in _STAGES)
    total = sum(spent.values())
    return {name: round(seconds / total, 3) for name, seconds in spent.items()}, round(1e3 * total / len(keys), 1)


def timed(name: str, function: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        began = time.process_time()
        result = function(*arguments)
        spent[name] = spent.get(name, 0.0) + time.process_time() - began
        return result

    return call


def hashing(cache: Cache) -> float:
    began = time.process_time()
    for entry in cache.table["entry"]:
        file_digest(entry_path(cache.folder, entry))
    return round(1e3 * (time.process_time() - began) / len(cache), 2)


if __name__ == "__main__":
    main()
