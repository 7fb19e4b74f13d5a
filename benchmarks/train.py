"""A training step in parts, its memory and what share of the device's peak it reaches; how it grows; what settings do.

    python benchmarks/train.py --work DIR                 # CPU: small batches, few steps, some 20 minutes; --quick: 3
    python benchmarks/train.py --work DIR --device cuda --batch 64 --steps 50 --workers 12 --volumes 1024 \\
        --growth-side 96 --growth-batches 16 32 64 --growth-volumes 256 512 1024

Volumes of 192 x 192 x 160 int16 lie on disk in a synthetic cache (12 MB each; made once), and come through the loader
of a run; the page cache is warm. Every row is of a process of its own. `volumes/s` is of whole steps that nothing
interrupts; the parts are of other steps, with the device synchronised around each. Memory is the peak above what the
process held before the model was built; on a CPU without pages of files. `planned` is what `lejepa-med plan` says of
it, but for the copy to be saved: nothing is saved here. Utilisation is the share of the peak of a large matrix product
in the same process that the FLOPs of the model reach. Growth and settings: in train_growth.py, taking turns.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from train_growth import alternate, epochs, line, ratio
from train_step import PARTS, Clock, Step, batches

SETTINGS = {
    "channels_last": ("resnet18_3d", {}, {"channels_last": True}),
    "compile, ResNet-18": ("resnet18_3d", {}, {"compile": True}),
    "compile, ViT-S": ("vit_small_3d", {}, {"compile": True}),
    "activation_checkpointing": ("vit_small_3d", {}, {"activation_checkpointing": True}),
    "bf16, ResNet-18": ("resnet18_3d", {"precision": "float32"}, {"precision": "bf16"}),
    "bf16, ViT-S": ("vit_small_3d", {"precision": "float32"}, {"precision": "bf16"}),
}
"""What is compared: a model, and `train` without and with the setting."""
MODELS = ("resnet18_3d", "resnet50_3d", "vit_small_3d", "vit_base_3d")


def settings(
    options: argparse.Namespace, model: str, batch: int, volumes: int, side: int, **train: Any
) -> dict[str, Any]:
    """A config of `plan`: 2 global views of `side` and 6 local ones of half of it."""
    return {
        "data": {"cache": str(options.work / f"cache_{volumes}"), "workers": options.workers, "monitor_fraction": 0.0,
                 "holdout": {"test_fraction": 0.0}, "residency": options.residency},
        "model": {"name": model, "stem_stride": options.stem_stride, "patch_size": 16 if side % 32 == 0 else 8},
        "views": {"global_size": [side] * 3, "local_size": [side // 2] * 3},
        "train": {"batch_size": batch, "device": options.device, "precision": options.precision}
        | train,
    }  # fmt: skip


def measure(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """One setting, in this process: `steps` whole steps after two of warm-up, then as many in parts."""
    import torch
    from micro_batch import Peak

    from lejepa_med.config import PlanConfig, validate
    from lejepa_med.training.model_cost import model_cost
    from lejepa_med.training.planning import memory_needed
    from lejepa_med.training.planning_probe import matmul_flops, planned_archive, planned_device

    config = validate(PlanConfig, values, "benchmark")
    device = planned_device(config)
    cost = model_cost(config, device.bf16, device.on_gpu)
    needed = memory_needed(config, cost, planned_archive(config)[0], device)
    planned = needed.total - needed.parts["copy to be saved"]
    with Peak(config.train.device) as peak:
        step = Step(config)
        clock, waits = Clock(step.device), []
        with batches(config, 2 + 2 * steps, step.device) as fed:
            for number, batch, _ in itertools.islice(fed, 2):
                step(batch, number)
            clock.synchronise()
            began = time.perf_counter()
            for number, batch, waited in itertools.islice(fed, steps):
                step(batch, number)
                waits.append(waited)
            clock.synchronise()
            whole = (time.perf_counter() - began) / steps
            for number, batch, waited in fed:
                clock.begin(waited)
                step(batch, number, clock)
    size = config.train.batch_size
    peak_flops = matmul_flops(step.device, torch.bfloat16 if step.bf16 else torch.float32, 2.0)
    flops = cost.forward_flops + cost.backward_flops
    if config.train.activation_checkpointing:  # what runs again is no work of the model
        plain = config.train.model_copy(update={"activation_checkpointing": False})
        flops = model_cost(config.model_copy(update={"train": plain}), device.bf16, device.on_gpu, False).step_flops()
    reached = flops * size / whole
    return {
        "model": config.model.name,
        "batch": size,
        "volumes_per_s": size / whole,
        "step_s": whole,
        "data_wait": statistics.mean(waits) / whole,
        "parts_s": {part: statistics.median(clock.seconds[part]) for part in PARTS},
        "memory": peak.mib * 2**20,
        "planned": planned,
        "gflop_per_volume": flops / 1e9,
        "tflops": reached / 1e12,
        "peak_tflops": peak_flops / 1e12,
        "utilisation": reached / peak_flops,
    }


def in_process(options: argparse.Namespace, what: str, **work: Any) -> Any:
    command = [sys.executable, __file__, *options.given, "--one", json.dumps({"what": what, **work})]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def do(what: str, **work: Any) -> Any:
    """In this process: one of the three kinds of measurement."""
    return {"measure": measure, "alternate": alternate, "epochs": epochs}[what](**work)


def table(title: str, header: str, rows: list[str]) -> None:
    print(f"\n{title}\n\n| {header} |\n|{'---|' * (header.count('|') + 1)}")
    print("\n".join(f"| {row} |" for row in rows), flush=True)


def in_parts(row: dict[str, Any]) -> str:
    parts = " | ".join(f"{1e3 * row['parts_s'][part]:,.0f}" for part in PARTS)
    return (
        f"{row['model']} | {row['batch']} | {row['volumes_per_s']:.3g} | {row['data_wait']:.1%} | {parts} | "
        f"{row['memory'] / 1e9:.2f} | {row['planned'] / 1e9:.2f} | {row['gflop_per_volume']:.0f} | "
        f"{row['tflops']:.3g} of {row['peak_tflops']:.3g} | {row['utilisation']:.0%}"
    )


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--work", type=Path, default=Path("train_benchmark"), help="folder for the synthetic caches")
    top.add_argument("--device", default="cpu")
    top.add_argument("--models", nargs="*", default=list(MODELS))
    top.add_argument("--batch", type=int, default=2)
    top.add_argument("--side", type=int, default=96, help="voxels of a global view; local ones have half")
    top.add_argument("--steps", type=int, default=2)
    top.add_argument("--volumes", type=int, default=16)
    top.add_argument("--workers", type=int, default=1)
    top.add_argument("--residency", default="disk")
    top.add_argument("--precision", default="auto")
    top.add_argument("--stem-stride", type=int, default=2, help="of ResNets; 1: eight times the FLOPs")
    top.add_argument("--growth-model", default="vit_tiny_3d", help="empty: no growth table")
    top.add_argument("--growth-side", type=int, default=48)
    top.add_argument("--growth-batches", type=int, nargs=3, default=[8, 16, 32])
    top.add_argument("--growth-volumes", type=int, nargs=3, default=[32, 64, 128])
    top.add_argument("--settings", nargs="*", default=list(SETTINGS), help="which to compare; none: no such table")
    top.add_argument("--rounds", type=int, default=7, help="steps of each in growth and settings")
    top.add_argument("--quick", action="store_true", help="one model, small views, no compilation")
    top.add_argument("--out", type=Path, help="JSON of all rows")
    top.add_argument("--one", help=argparse.SUPPRESS)
    return top


def main() -> None:
    options = parser().parse_args()
    options.given = sys.argv[1:]
    if options.quick:
        options.models, options.side, options.steps, options.rounds = options.models[:1], 48, 2, 3
        options.settings = [name for name in options.settings if "compile" not in name]
    if options.one:
        print(json.dumps(do(**json.loads(options.one))))
        return
    from loader import synthetic_cache

    growth = bool(options.growth_model)
    for count in {options.volumes, *(options.growth_volumes if growth else ())}:
        synthetic_cache(options.work / f"cache_{count}", count)
    print(f"{options.device}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')}, {datetime.date.today()}")  # fmt: skip
    rows = []
    for model in options.models:
        values = settings(options, model, options.batch, options.volumes, options.side)
        rows.append(in_process(options, "measure", values=values, steps=options.steps))
    if rows:
        parts = " | ".join(f"{part} ms" for part in PARTS)
        table(
            f"2 x {options.side}^3 + 6 x {options.side // 2}^3",
            f"model | batch | volumes/s | data wait | {parts} | GB | planned GB | GFLOP/volume | TFLOP/s | utilisation",
            [in_parts(row) for row in rows],
        )
    result: dict[str, Any] = {"rows": rows}
    if growth:
        result |= grow(options)
    if options.settings:
        result["settings"] = compare(options)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1))


def grow(options: argparse.Namespace) -> dict[str, Any]:
    """Batch sizes and archive sizes, each with the straight line through them."""
    model, side, sizes, archives = (
        options.growth_model, options.growth_side, options.growth_batches, options.growth_volumes
    )  # fmt: skip
    values = [settings(options, model, batch, max(archives), side) for batch in sizes]
    memory = [in_process(options, "measure", values=one, steps=2) for one in values]
    seconds = [
        statistics.median(one) for one in in_process(options, "alternate", settings=values, rounds=options.rounds)
    ]
    table(
        f"Growth with the batch, {model}, 2 x {side}^3 + 6 x {side // 2}^3",
        "batch | s per step | ms per volume | GB | planned GB",
        [
            f"{batch} | {took:.3g} | {1e3 * took / batch:.3g} | {row['memory'] / 1e9:.3f} | {row['planned'] / 1e9:.3f}"
            for batch, took, row in zip(sizes, seconds, memory, strict=True)
        ],
    )
    in_bytes = [float(row["memory"]) for row in memory]
    lines = {"step": line(sizes, seconds), "memory": line(sizes, in_bytes)}
    values = [settings(options, model, sizes[0], volumes, side) for volumes in archives]
    by_size = in_process(options, "epochs", settings=values, volumes=archives)
    table(
        f"Growth with the archive, batch {sizes[0]}",
        "volumes | s per epoch | ms per volume | s until the first batch",
        [
            f"{one['volumes']} | {one['seconds']:.3g} | {1e3 * one['seconds'] / one['volumes']:.3g} | "
            f"{one['start_s']:.2g}"
            for one in by_size
        ],
    )
    lines["epoch"] = line(archives, [row["seconds"] for row in by_size])
    units = {"step": ("s", 1.0), "memory": ("GB", 1e9), "epoch": ("s", 1.0)}
    table(
        "Straight lines through them",
        "of | intercept | per volume | largest residual",
        [
            f"{name}, {unit} | {lines[name]['intercept'] / one:.3g} | {lines[name]['slope'] / one:.3g} | "
            f"{lines[name]['residual']:.1%}"
            for name, (unit, one) in units.items()
        ],
    )
    return {"batches": sizes, "step_s": seconds, "memory": memory, "archives": by_size, "lines": lines}


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps without and with each setting, in turns; memory of each in a process of its own."""
    rows = []
    for name in options.settings:
        model, without, given = SETTINGS[name]
        pair = [
            settings(options, model, options.batch, options.volumes, options.side, **one) for one in (without, given)
        ]
        took = in_process(options, "alternate", settings=pair, rounds=options.rounds)
        memory = [in_process(options, "measure", values=values, steps=1) for values in pair]
        medians = [statistics.median(one) for one in took]
        rows.append({"setting": name, "model": model, "step_s": medians, "ratio": ratio(*took), "memory": memory})
    table(
        f"Settings, batch {options.batch}, 2 x {options.side}^3 + 6 x {options.side // 2}^3",
        "train. | model | s without | s with | faster (range) | GB without | with | planned without | with",
        [
            f"{row['setting']} | {row['model']} | {row['step_s'][0]:.3g} | {row['step_s'][1]:.3g} | "
            f"{row['ratio'][0]:.2f} ({row['ratio'][1]:.2f}-{row['ratio'][2]:.2f}) | "
            + " | ".join(f"{one[key] / 1e9:.2f}" for key in ("memory", "planned") for one in row["memory"])
            for row in rows
        ],
    )
    return rows


if __name__ == "__main__":
    main()
