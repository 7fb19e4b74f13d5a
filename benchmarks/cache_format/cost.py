"""Time, CPU and disk traffic of one read, from a warm or a cold page cache; Markdown tables."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cache_format.formats import Array, Box, Store, files
from cache_format.volumes import VolumeSet, boxes_of


@dataclass(frozen=True)
class Cost:
    """Per read: lower quartiles of times, since other work may share the machine; medians of bytes."""

    wall_ms: float
    cpu_ms: float
    disk_mb: float
    needed_mb: float


def drop_pages(path: Path) -> None:
    """Out of the page cache, so that the next read comes from the disk."""
    for file in files(path):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_from_disk() -> int:
    """Bytes that this process fetched from the storage layer so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes"):
            return int(line.split()[1])
    raise RuntimeError("no read_bytes in /proc/self/io")


def read_boxes(store: Store, path: Path, boxes: list[Box]) -> list[Array]:
    read = store.open(path)
    return [read(box) for box in boxes]


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def cost(store: Store, paths: list[Path], volumes: VolumeSet, access: str, cold: bool, rounds: int) -> Cost:
    """Over at least 8 reads. The first warm round also checks every value."""
    rows = []
    for turn in range(max(rounds, -(-8 // len(paths)))):
        for index, path in enumerate(paths):
            boxes, array = boxes_of(access, volumes, index, turn), volumes.arrays[index]
            if cold:
                drop_pages(path)
            elif turn == 0:
                for box, got in zip(boxes, read_boxes(store, path, boxes), strict=True):
                    assert np.array_equal(got, array[box]), f"{store.name}: wrong values"
            before = bytes_from_disk()
            took = timed(lambda p=path, b=boxes: read_boxes(store, p, b))
            needed = sum(array[box].nbytes for box in boxes)
            rows.append((*took, (bytes_from_disk() - before) / 1e6, needed / 1e6))
    wall, cpu, from_disk, needed = np.array(rows).T
    return Cost(*np.quantile([wall, cpu], 0.25, axis=1), float(np.median(from_disk)), float(np.median(needed)))


def write_all(store: Store, volumes: VolumeSet, folder: Path) -> tuple[list[Path], float, float]:
    """Paths, and wall and CPU milliseconds per volume (after one that loads code)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    suffix = ".nii.gz" if store.name == ".nii.gz" else ".b2nd" if store.name.startswith("blosc2") else ".npy"
    paths = [folder / f"{index}{suffix}" for index in range(len(volumes.arrays))]
    store.write(volumes.arrays[0], folder / f"warm_up{suffix}")
    times = [timed(lambda a=a, p=p: store.write(a, p)) for a, p in zip(volumes.arrays, paths, strict=True)]
    os.sync()
    return paths, statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def size(paths: list[Path]) -> int:
    return sum(file.stat().st_size for path in paths for file in files(path))


def table(head: list[str], rows: list[list[str]]) -> None:
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
