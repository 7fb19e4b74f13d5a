"""Formats of the cache, measured: bytes, time, CPU and disk traffic of what training reads; warm, cold, damaged.

    pip install blosc2 zarr            # their rows are left out otherwise; neither is a dependency of the package
    python benchmarks/cache_formats.py --data FOLDER --work DIR [--tables read sweep processes damage pyramid]

`FOLDER` holds the real scans (`open_ms_longitudinal`, `dicom_t1_studyforrest`, `hippocampus_msd`, `pyradiomics_cases`);
without it, and without LEJEPA_MED_REAL_DATA, the synthetic volumes alone are measured. Prints Markdown, for
docs/design/cache.md. Cold: pages are dropped with posix_fadvise after fsync, and the bytes that really came from disk
are taken from /proc/self/io (Linux).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from cache_format_stores import Array, Box, Store, files, main_stores, swept_stores

CONFIGS = Path(__file__).parent.parent / "configs"
ACCESSES = ("base crop", "8 views", "axial", "coronal", "sagittal", "whole")


@dataclass(frozen=True)
class VolumeSet:
    """Prepared volumes of one kind, and the pretraining config whose base crops and views are read from them."""

    name: str
    arrays: list[Array]
    spacing_mm: float
    config: str


@dataclass(frozen=True)
class Cost:
    """Per read: lower quartiles of times, since other work may share the machine; medians of bytes."""

    wall_ms: float
    cpu_ms: float
    disk_mb: float
    needed_mb: float


# --- volumes --------------------------------------------------------------------------------------------------------


def real_sets(data: Path, work: Path) -> Iterator[VolumeSet]:
    """Through the project's own `index` and `prepare`."""
    from lejepa_med.config import IndexSettings, PrepareConfig, load_config, validate
    from lejepa_med.data import archive, preparing
    from lejepa_med.data.cache import Cache

    plan = [
        ("heads, 1 mm, uint8", ["open_ms_longitudinal", "dicom_t1_studyforrest"], "mri", "brain_mri_1mm", 1.0),
        ("hippocampus, 1 mm, uint8", ["hippocampus_msd/images"], "mri", "brain_mri_1mm", 1.0),
        ("lung CT, 1.5 mm, int16", ["pyradiomics_cases"], "ct", "body_ct", 1.5),
        ("lung CT, 1 mm, int16", ["pyradiomics_cases"], "ct", "body_ct", 1.0),
    ]
    for name, folders, modality, prepare, spacing in plan:
        place = work / "real" / name.replace(", ", "_").replace(" ", "_")
        settings = validate(IndexSettings, {"modality": modality, "compute": {"workers": 1}}, "index")
        archive.index([data / folder for folder in folders], place / "index", settings)
        overrides = ["compute.workers=1", f"preprocess.spacing_mm=[{spacing}, {spacing}, {spacing}]"]
        config = load_config(PrepareConfig, CONFIGS / "prepare" / f"{prepare}.yaml", overrides)
        preparing.prepare(place / "index", place / "cache", config)
        cache = Cache.open(place / "cache")
        arrays = [np.array(cache.read(key).array) for key in cache.table["series_key"]]
        yield VolumeSet(name, arrays, spacing, "brain_mri_resnet3d" if modality == "mri" else "chest_ct_resnet3d")


def synthetic_sets(work: Path) -> Iterator[VolumeSet]:
    """Phantoms of the package on 256^3 voxels: heads as uint8, trunks as int16, with the noise of its scanners."""
    from lejepa_med.data.preprocess import body_mask, to_hu, to_unit_range
    from lejepa_med.data.synthetic import body_phantom, draw_body, draw_scan, draw_subject, head_phantom
    from lejepa_med.spec import PreprocessSpec

    def head(seed: int) -> Array:
        image = head_phantom(draw_subject(seed), draw_scan(seed), (0.8, 0.8, 0.8), (256, 256, 256)).array
        return to_unit_range(image, body_mask(image, "mri"), PreprocessSpec())

    def trunk(seed: int) -> Array:
        return to_hu(body_phantom(draw_body(seed), (1.5, 1.5, 1.5), (256, 256, 256)).array, PreprocessSpec())

    for name, make, count, spacing, config in (
        ("synthetic 256^3, uint8", head, 3, 1.0, "brain_mri_resnet3d"),
        ("synthetic 256^3, int16", trunk, 2, 1.5, "chest_ct_resnet3d"),
    ):
        file = work / f"synthetic_{make.__name__}.npy"
        if not file.exists():
            np.save(file, np.stack([make(seed) for seed in range(count)]))
        yield VolumeSet(name, list(np.load(file)), spacing, config)


# --- what training reads --------------------------------------------------------------------------------------------


_BOXES: dict[tuple[str, str, int, int], list[Box]] = {}


def boxes_of(access: str, volumes: VolumeSet, index: int, seed: int) -> list[Box]:
    """The boxes that one item of a batch reads; the same for every format."""
    key = (access, volumes.name, index, seed)
    if key not in _BOXES:
        _BOXES[key] = _draw_boxes_of(access, volumes, index, seed)
    return _BOXES[key]


def _draw_boxes_of(access: str, volumes: VolumeSet, index: int, seed: int) -> list[Box]:
    array, rng = volumes.arrays[index], np.random.default_rng([seed, index])
    planes = {"sagittal": 0, "coronal": 1, "axial": 2}
    if access in planes:
        box = [slice(0, side) for side in array.shape]
        place = int(rng.uniform(0.15, 0.85) * array.shape[planes[access]])
        box[planes[access]] = slice(place, place + 1)
        return [tuple(box)]
    if access == "whole":
        return [tuple(slice(0, side) for side in array.shape)]
    base = base_side(volumes)
    low = [int(rng.integers(0, max(0, side - base) + 1)) for side in array.shape]
    crop = tuple(slice(a, a + min(base, side)) for a, side in zip(low, array.shape, strict=True))
    return [crop] if access == "base crop" else view_boxes(volumes, array, crop, seed * 1000 + index)


def base_side(volumes: VolumeSet) -> int:
    from lejepa_med.config import PretrainConfig, load_config

    config = load_config(PretrainConfig, CONFIGS / "pretrain" / f"{volumes.config}.yaml")
    assert config.views.base_crop_mm is not None
    return round(config.views.base_crop_mm / volumes.spacing_mm)


def view_boxes(volumes: VolumeSet, array: Array, crop: Box, seed: int) -> list[Box]:
    """Voxels of 2 global and 6 local views as the package draws them; a view that meets only air needs none."""
    import torch

    from lejepa_med.config import PretrainConfig, load_config
    from lejepa_med.views.geometry import body_cells, draw_boxes

    views, base = load_config(PretrainConfig, CONFIGS / "pretrain" / f"{volumes.config}.yaml").views, base_side(volumes)
    have = np.array([s.stop - s.start for s in crop])
    margin = (base - have) // 2  # where the volume is smaller than the base crop, it is centred in air
    mask = np.zeros((base,) * 3, bool)
    inside = tuple(slice(m, m + h) for m, h in zip(margin, have, strict=True))
    mask[inside] = array[crop] > (25 if array.dtype == np.uint8 else -500)
    body, generator = body_cells(torch.from_numpy(mask)[None]), torch.Generator().manual_seed(seed)
    boxes: list[Box] = []
    for which in ("global", "local"):
        drawn = draw_boxes(views, which, [generator], (base,) * 3, (volumes.spacing_mm,) * 3, body)
        ends = torch.stack([drawn.start, drawn.start + drawn.length])[:, 0].sort(0).values
        low, high = np.floor(ends[0].numpy()).astype(int) - 1, np.ceil(ends[1].numpy()).astype(int) + 1
        offset = np.array([s.start for s in crop]) - margin
        stop = np.array([s.stop for s in crop])
        for a, b in zip(low + offset, high + offset, strict=True):
            a, b = np.maximum(a, stop - have), np.minimum(b, stop)
            if (b > a).all():
                boxes.append(tuple(slice(int(x), int(y)) for x, y in zip(a, b, strict=True)))
    return boxes


# --- measuring ------------------------------------------------------------------------------------------------------


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


# --- tables ---------------------------------------------------------------------------------------------------------


def read_tables(volumes: VolumeSet, work: Path, rounds: int) -> None:
    """One table of bytes, writing and warm reads; one of cold reads with their traffic."""
    raw = sum(array.nbytes for array in volumes.arrays)
    print(f"\n### {volumes.name}: {len(volumes.arrays)} volumes, {raw / len(volumes.arrays) / 1e6:.1f} MB each")
    needed: dict[str, float] = {}
    warm_rows, cold_rows = [], []
    for store in main_stores():
        paths, wall, cpu = write_all(store, volumes, work / "files")
        chosen = paths[:5]
        warm_row = [store.name, f"{size(paths) / raw:.3f}", f"{wall:.0f} / {cpu:.0f}"]
        cold_row = [store.name]
        for access in ACCESSES:
            warm = cost(store, chosen, volumes, access, False, rounds)
            cold = cost(store, chosen, volumes, access, True, rounds)
            needed[access] = warm.needed_mb
            warm_row.append(f"{warm.wall_ms:.1f} / {warm.cpu_ms:.1f}")
            times = cold.disk_mb / cold.needed_mb
            cold_row.append(f"{cold.wall_ms:.1f} / {cold.disk_mb:.2f} / {times:.{1 if times < 10 else 0}f}x")
        warm_rows.append(warm_row)
        cold_rows.append(cold_row)
        shutil.rmtree(work / "files")
    columns = [f"{access} ({needed[access]:.2f} MB)" for access in ACCESSES]
    print("\nWarm: wall / CPU milliseconds per read. `size`: of the raw bytes.")
    table(["format", "size", "write, ms", *columns], warm_rows)
    print("\nCold: wall milliseconds / MB from disk / amplification (bytes from disk per byte needed).")
    table(["format", *columns], cold_rows)


def sweep_table(sets: list[VolumeSet], work: Path) -> None:
    """Codecs, levels, filters and block sizes: size, writing, and the CPU of one warm base crop."""
    rows = []
    for store in swept_stores():
        row = [store.name]
        for volumes in sets:
            paths, _, cpu = write_all(store, volumes, work / "files")
            warm = cost(store, paths[:8], volumes, "base crop", False, 3)
            row.append(f"{size(paths) / sum(a.nbytes for a in volumes.arrays):.3f} / {cpu:.0f} / {warm.cpu_ms:.1f}")
            shutil.rmtree(work / "files")
        rows.append(row)
    print("\n### Codecs, filters, blocks: size / CPU ms to write / CPU ms of a warm base crop")
    table(["format", *[volumes.name for volumes in sets]], rows)


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
                            pool.submit(_read_share, store.name, paths[n::count] * 2, boxes[n::count] * 2, cold)
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


def pyramid_tables(sets: list[VolumeSet], work: Path, draws: int) -> None:
    """How coarse global views are, how much of the base crop the views cover, and what a half level would save."""
    import torch

    from lejepa_med.config import PretrainConfig, load_config
    from lejepa_med.views.geometry import draw_boxes

    rows = []
    for config, spacing in (("brain_mri_resnet3d", 1.0), ("chest_ct_resnet3d", 1.5), ("chest_ct_resnet3d", 1.0)):
        views = load_config(PretrainConfig, CONFIGS / "pretrain" / f"{config}.yaml").views
        assert views.base_crop_mm is not None
        base, size_ = round(views.base_crop_mm / spacing), torch.tensor(views.global_size)
        generators = [torch.Generator().manual_seed(seed) for seed in range(draws // views.num_global)]
        body = torch.ones(len(generators), 1, 1, 1)
        drawn = draw_boxes(views, "global", generators, (base,) * 3, (spacing,) * 3, body)
        ratio = (drawn.length.abs() / size_).flatten(0, 1)  # prepared voxels per view voxel
        shares = [(ratio >= 2 - 1e-4).all(-1), (ratio >= 2 - 1e-4).any(-1), ratio.prod(-1) >= 8 - 1e-3]
        pitch = ratio.prod(-1) ** (1 / 3) * spacing
        low, middle, high = torch.quantile(pitch, torch.tensor([0.05, 0.5, 0.95])).tolist()
        rows.append(
            [f"{config} at {spacing} mm"]
            + [f"{100 * share.float().mean():.2f} %" for share in shares]
            + [f"{low:.2f} / {middle:.2f} / {high:.2f}"]
        )
    print(f"\n### Pyramid: global views ({draws} drawn) of at least twice the prepared pitch")
    table(["config", "all axes", "any axis", "geometric mean", "pitch mm, 5 / 50 / 95 %"], rows)
    rows = []
    for volumes in sets:
        covered = []
        for index in range(min(4, len(volumes.arrays))):
            for turn in range(5):
                (crop,), boxes = (boxes_of(a, volumes, index, turn) for a in ("base crop", "8 views"))
                seen = np.zeros(volumes.arrays[index].shape, np.uint8)
                for number, box in enumerate(boxes):
                    seen[box] |= 1 if number < 2 else 2
                total = seen[crop].size
                needed = sum(seen[box].size for box in boxes)
                covered.append(
                    [np.count_nonzero(seen) / total, np.count_nonzero(seen & 2) / total, needed / total]
                )  # locals alone: 2
        half = VolumeSet("half", [halved(a) for a in volumes.arrays], volumes.spacing_mm, volumes.config)
        store = main_stores()[0]
        line = [volumes.name, *[f"{share:.2f}" for share in np.mean(covered, axis=0)]]
        for which in (volumes, half):
            paths, _, _ = write_all(store, which, work / "files")
            cold = cost(store, paths[:8], which, "whole", True, 3)
            warm = cost(store, paths[:8], which, "whole", False, 3)
            line.append(f"{warm.wall_ms:.1f} / {cold.wall_ms:.1f} / {cold.disk_mb:.1f}")
        rows.append(line)
    print("\nOf the base crop's voxels (1 = all); and reading a whole volume at full and at half resolution (.npy).")
    head = ["volumes", "covered by 8 views", "by the 6 local ones", "read view by view"]
    table([*head, "full: ms warm / cold / MB", "half: ms warm / cold / MB"], rows)


def halved(array: Array) -> Array:
    """Means of 2 x 2 x 2 voxels."""
    even = array[tuple(slice(0, side // 2 * 2) for side in array.shape)].astype(np.float32)
    a, b, c = (side // 2 for side in even.shape)
    return np.round(even.reshape(a, 2, b, 2, c, 2).mean((1, 3, 5))).astype(array.dtype)


def checksum_table(volumes: VolumeSet) -> None:
    """What it costs to look at every byte."""
    raw = volumes.arrays[0].tobytes()
    rows = []
    for name, digest in (("SHA-256", lambda: hashlib.sha256(raw).digest()), ("CRC-32 (zlib)", lambda: zlib.crc32(raw))):
        wall = statistics.median(timed(digest)[0] for _ in range(9))
        rows.append([name, f"{wall:.1f}", f"{len(raw) / wall / 1e6:.1f}"])
    print(f"\n### Checksums over {len(raw) / 1e6:.1f} MB in memory")
    table(["checksum", "ms", "GB/s"], rows)


def main() -> None:
    """Parses the command line and prints the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LEJEPA_MED_REAL_DATA"))
    parser.add_argument("--work", type=Path, required=True, help="on the disk to be measured; some 2 GB")
    kinds = ["read", "sweep", "processes", "damage", "pyramid"]
    parser.add_argument("--tables", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=10_000)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    sets = list(real_sets(Path(arguments.data), arguments.work)) if arguments.data else []
    large = [volumes for volumes in sets if "hippocampus" not in volumes.name]
    synthetic = list(synthetic_sets(arguments.work))
    sets, large = sets + synthetic, large + synthetic
    if "read" in arguments.tables:
        for volumes in sets:
            read_tables(volumes, arguments.work, arguments.rounds)
    if "pyramid" in arguments.tables:
        pyramid_tables(large, arguments.work, arguments.draws)
    if "damage" in arguments.tables:
        checksum_table(sets[0])
        damage_table(sets[0], arguments.work, 100)
    if "processes" in arguments.tables:
        process_table(sets[0], arguments.work, (1, 2, 4))
    if "sweep" in arguments.tables:
        sweep_table(large, arguments.work)


if __name__ == "__main__":
    main()
