"""Tables that need other processes: several readers at once, and damaged files that may kill their reader."""

from __future__ import annotations

import hashlib
import shutil
import statistics
import time
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from cache_format.cost import drop_pages, read_boxes, table, timed, write_all
from cache_format.formats import Box, files, main_stores
from cache_format.volumes import VolumeSet, boxes_of


def _read_share(name: str, paths: list[Path], boxes: list[list[Box]], cold: bool) -> float:
    """Volumes per second of one process. Runs in a worker."""
    store = next(store for store in main_stores() if store.name == name)
    read_boxes(store, paths[0], boxes[0])
    elapsed = 0.0
    for path, wanted in zip(paths, boxes, strict=True):
        if cold:
            drop_pages(path)
        began = time.perf_counter()
        read_boxes(store, path, wanted)
        elapsed += time.perf_counter() - began
    return len(paths) / elapsed


def process_table(volumes: VolumeSet, work: Path, counts: tuple[int, ...]) -> None:
    """Base crops per second of several processes at once, each with files of its own."""
    head = ["format"] + [f"{n} processes, {kind}" for kind in ("warm", "cold") for n in counts]
    rows = []
    boxes = [boxes_of("base crop", volumes, index, 0) for index in range(len(volumes.arrays))]
    with ProcessPoolExecutor(max(counts), mp_context=get_context("spawn")) as pool:
        for store in main_stores():
            paths, _, _ = write_all(store, volumes, work / "files")
            row = [store.name]
            for cold in (False, True):
                for count in counts:
                    rates = []
                    for _ in range(3):  # the first time, a worker loads code
                        shares = [
                            pool.submit(_read_share, store.name, paths[n::count], boxes[n::count], cold)
                            for n in range(count)
                        ]
                        rates.append(sum(share.result() for share in shares))
                    row.append(f"{statistics.median(rates[1:]):.0f}")
            rows.append(row)
            shutil.rmtree(work / "files")
    print(f"\n### Base crops per second, {volumes.name}, several processes at once")
    table(head, rows)


def _damaged_read(name: str, path: Path, expected: str) -> str:
    """What becomes of reading a damaged file. Runs in a worker, which may die."""
    store = next(store for store in main_stores() if store.name == name)
    try:
        read = store.open(path)
        array = read(tuple(slice(0, side) for side in SHAPE_OF_DAMAGE))
    except Exception as error:
        return f"error ({type(error).__name__})"
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return "right values" if digest == expected else "wrong values"


SHAPE_OF_DAMAGE = (128, 128, 96)


def damage_table(volumes: VolumeSet, work: Path, trials: int) -> None:
    """One byte flipped at a random place of the entry, and the file cut at a random place."""
    array = np.ascontiguousarray(volumes.arrays[0][tuple(slice(0, side) for side in SHAPE_OF_DAMAGE)])
    part = VolumeSet(volumes.name, [array], volumes.spacing_mm, volumes.config)
    expected = hashlib.sha256(array.tobytes()).hexdigest()
    rows = []
    for store in main_stores():
        if store.name in (
            ".npy memory map, no read-ahead",
            ".npy memory map, S slowest",
            ".npy, S slowest, one read of the planes",
        ):
            continue
        paths, _, _ = write_all(store, part, work / "files")
        data = max(files(paths[0]), key=lambda file: file.stat().st_size)
        intact = data.read_bytes()
        row = [store.name]
        for kind in ("flipped", "cut"):
            rng, outcomes = np.random.default_rng(0), Counter[str]()
            pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            for _ in range(trials if kind == "flipped" else trials // 4):
                place = int(rng.integers(len(intact)))
                changed = bytes([intact[place] ^ (1 << int(rng.integers(8)))])
                data.write_bytes(intact[:place] + (changed + intact[place + 1 :] if kind == "flipped" else b""))
                try:
                    outcomes[pool.submit(_damaged_read, store.name, paths[0], expected).result(timeout=60)] += 1
                except BrokenProcessPool:
                    outcomes["process dies"] += 1
                    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
                except TimeoutError:
                    outcomes["hangs for a minute"] += 1
                    pool.shutdown(wait=False, cancel_futures=True)
                    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            pool.shutdown(wait=False)
            row.append(", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
        rows.append(row)
        shutil.rmtree(work / "files")
    print(f"\n### Damage: {trials} flipped bits, {trials // 4} cuts, one at a time, whole volume read")
    table(["format", "bit flipped", "file cut"], rows)


def checksum_table(volumes: VolumeSet) -> None:
    """What it costs to look at every byte."""
    raw = volumes.arrays[0].tobytes()
    rows = []
    for name, digest in (("SHA-256", lambda: hashlib.sha256(raw).digest()), ("CRC-32 (zlib)", lambda: zlib.crc32(raw))):
        wall = statistics.median(timed(digest)[0] for _ in range(9))
        rows.append([name, f"{wall:.1f}", f"{len(raw) / wall / 1e6:.1f}"])
    print(f"\n### Checksums over {len(raw) / 1e6:.1f} MB in memory")
    table(["checksum", "ms", "GB/s"], rows)
