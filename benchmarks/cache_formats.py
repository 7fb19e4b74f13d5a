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
import os
import shutil
from pathlib import Path

import numpy as np
from cache_format.cost import cost, size, table, write_all
from cache_format.formats import Array, main_stores, swept_stores
from cache_format.volumes import CONFIGS, VolumeSet, boxes_of, real_sets, synthetic_sets
from cache_format.workers import checksum_table, damage_table, process_table

ACCESSES = ("base crop", "8 views", "axial", "coronal", "sagittal", "whole")


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


def main() -> None:
    """Parses the command line and prints the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LEJEPA_MED_REAL_DATA"))
    parser.add_argument("--work", type=Path, required=True, help="on the disk to be measured; some 2 GB")
    kinds = ["read", "sweep", "processes", "damage", "pyramid"]
    parser.add_argument("--tables", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--sets", default="", help="only sets of volumes whose name holds this, e.g. int16")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=10_000)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    sets = list(real_sets(Path(arguments.data), arguments.work)) if arguments.data else []
    sets = [volumes for volumes in [*sets, *synthetic_sets(arguments.work)] if arguments.sets in volumes.name]
    large = [volumes for volumes in sets if "hippocampus" not in volumes.name]
    if "read" in arguments.tables:
        for volumes in sets:
            read_tables(volumes, arguments.work, arguments.rounds)
    if "pyramid" in arguments.tables:
        pyramid_tables(large, arguments.work, arguments.draws)
    if "damage" in arguments.tables:
        checksum_table(sets[0])
        damage_table(sets[0], arguments.work, 60)
    if "processes" in arguments.tables:
        process_table(sets[0], arguments.work, (1, 2))
    if "sweep" in arguments.tables:
        sweep_table(large, arguments.work)


if __name__ == "__main__":
    main()
