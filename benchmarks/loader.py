"""Base crops per second that the loop gets, by residency and workers, side by side; and what it waits for in training.

    python benchmarks/loader.py --volumes 200 --work DIR [--device cuda] [--out loader.json]
    python benchmarks/loader.py --run RUN                  # data_wait of a run that is there, e.g. the demo's

Writes a synthetic cache of N volumes of 192 x 192 x 160 int16 into DIR (12 MB each; used again if it is there). The
page cache is warm: everything is read once before. Lines are medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lejepa_med.config.pretraining import DataConfig
from lejepa_med.data.cache import Cache, entry_name, publish_manifest, write_entry, write_settings
from lejepa_med.data.dataset import StepDataset
from lejepa_med.data.prefetch import feed
from lejepa_med.data.residency import make_resident
from lejepa_med.data.sampler import StepSampler
from lejepa_med.data.sources import CacheSource, Source
from lejepa_med.spec import PreprocessSpec
from lejepa_med.training.log import read_log

SHAPE, BASE = (192, 192, 160), (192, 192, 192)


def synthetic_cache(folder: Path, volumes: int) -> Cache:
    """One patient per volume; smooth noise, shifted, so that no two volumes are alike."""
    if (folder / "manifest.parquet").exists() and len(Cache.open(folder)) == volumes:
        return Cache.open(folder)
    spec = PreprocessSpec()
    write_settings(folder, spec)
    noise = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    rows = []
    for number in range(volumes):
        key = f"{number:08x}"
        entry = entry_name(key, "synthetic", spec)
        written = write_entry(folder, entry, np.roll(noise, 7 * number, axis=2))
        row = {"series_key": key, "patient_key": key, "study_key": key, "group_key": key, "modality": "ct"}
        row |= {"sequence": "", "shape": list(SHAPE), "spacing_mm": [1.0] * 3, "entry": entry}
        rows.append(row | {"sha256": written.sha256, "bytes": written.bytes})
    publish_manifest(folder, pd.DataFrame(rows))
    return Cache.open(folder)


def rate(source: Source, config: DataConfig, batch: int, steps: int, device: torch.device) -> float:
    """Base crops per second of a loop that does nothing else, after what was made ahead of it is used up."""
    dataset = StepDataset(source, StepSampler(source.patients, batch, 0), BASE, 0, config.crops_per_read)
    ahead = config.prefetch + 2
    with feed(dataset, range(ahead + steps), config, device) as fed:
        for _ in itertools.islice(fed, ahead):
            pass
        began = time.perf_counter()
        crops = sum(len(batch.keys) for _, batch, _ in fed)
        return crops / (time.perf_counter() - began)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    cache = synthetic_cache(options.work, options.volumes)
    list(cache.verify())  # reads everything
    plain = CacheSource(Cache.open(options.work, verify=False), cache.table)
    ways: dict[tuple[str, int, int], list[float]] = {}
    sources = {where: make_resident(plain, where, device) for where in options.residency}
    for _ in range(options.rounds):
        for where, source in sources.items():
            for workers, crops in itertools.product(options.workers, options.crops_per_read):
                config = DataConfig(workers=workers, crops_per_read=crops)
                found = rate(source, config, options.batch, options.steps, device)
                ways.setdefault((where, workers, crops), []).append(found)
    return [
        {
            "residency": where,
            "workers": workers,
            "crops_per_read": crops,
            "crops_per_s": round(statistics.median(rates), 1),
            "lowest": round(min(rates), 1),
            "highest": round(max(rates), 1),
        }
        for (where, workers, crops), rates in ways.items()
    ]


def data_wait(run: Path) -> dict[str, float]:
    """Mean and median share of the step that a run waited for data, without its first ten steps."""
    lines = read_log(run, "timing")[10:]
    waits = [line["data_wait"] for line in lines]
    return {
        "steps": len(lines),
        "data_wait_mean": round(statistics.mean(waits), 4),
        "data_wait_median": round(statistics.median(waits), 4),
        "samples_per_s": round(statistics.median(line["samples_per_s"] for line in lines), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("loader_cache"))
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--crops-per-read", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--residency", nargs="+", default=["disk", "host", "device"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run", type=Path, help="only the data_wait of this run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"device": options.device, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    if options.run is not None:
        result |= data_wait(options.run)
        print(json.dumps(result))
    else:
        result["rows"] = measure(options)
        for row in result["rows"]:
            print("  ".join(f"{name} {value}" for name, value in row.items()))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
