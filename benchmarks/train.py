"""A training step in parts, its memory and what share of the device's peak it reaches; and how all that grows.

    python benchmarks/train.py --work DIR                                            # CPU: small batches, few steps
    python benchmarks/train.py --work DIR --device cuda --batch 64 --steps 50 --workers 12 --volumes 2000

Volumes of 192 x 192 x 160 int16 lie on disk in a synthetic cache (12 MB each; made once), and come through the loader
of a run; the page cache is warm. Every setting runs in a process of its own. `volumes/s` is of whole steps that nothing
interrupts; the parts are of other steps, with the device synchronised around each. Memory is the peak above what the
process held before the model was built. `planned` is what `lejepa-med plan` says of it. The peak that utilisation is a
share of is that of a large matrix product in the same process. Growth: three batch sizes, three sizes of an archive.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PARTS = ("data", "views", "forward/backward", "objective", "optimizer")
MODELS = ("resnet18_3d", "resnet50_3d", "vit_small_3d", "vit_base_3d")


def settings(options: argparse.Namespace, model: str, batch: int, volumes: int, side: int) -> dict[str, Any]:
    """A config of `plan`: 2 global views of `side` and 6 local ones of half of it."""
    return {
        "data": {"cache": str(options.work / f"cache_{volumes}"), "workers": options.workers, "monitor_fraction": 0.0,
                 "holdout": {"test_fraction": 0.0}, "residency": options.residency},
        "model": {"name": model, "stem_stride": options.stem_stride, "patch_size": 16 if side % 32 == 0 else 8},
        "views": {"global_size": [side] * 3, "local_size": [side // 2] * 3},
        "train": {"batch_size": batch, "device": options.device, "precision": options.precision},
    }  # fmt: skip


class Step:
    """One training step as the loop does it, in parts that can be timed one by one."""

    def __init__(self, config: Any) -> None:
        import torch

        from lejepa_med.backbones import build
        from lejepa_med.objective import LeJEPALoss
        from lejepa_med.training.devices import choose_device, uses_bf16
        from lejepa_med.training.model import Pretrainer
        from lejepa_med.training.optimizer import build_optimizer
        from lejepa_med.views import BatchedMultiCrop

        torch.manual_seed(0)
        self.config, self.device = config, choose_device(config.train.device)
        self.bf16 = uses_bf16(config, self.device)
        self.model = Pretrainer(build(config.model), config.projector).to(self.device).train()
        self.crop = BatchedMultiCrop(config.views)
        self.loss = LeJEPALoss(**config.objective.model_dump(), seed=0)
        self.optimizer = build_optimizer(self.model, config.optim, is_vit="vit" in config.model.name)
        self.autocast = lambda: torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def __call__(self, batch: Any, step: int, clock: Callable[[str], None] = lambda part: None) -> None:
        from lejepa_med.training.batch_views import batch_views

        views = batch_views(self.crop, batch, ("views", 0, step))
        clock("views")
        with self.autocast():
            _, projections = self.model(views)
        clock("forward/backward")
        leaf = projections.detach().requires_grad_()
        self.loss(leaf, self.config.views.num_global, step).total.backward()
        clock("objective")
        self.optimizer.zero_grad(set_to_none=True)
        projections.backward(leaf.grad)
        clock("forward/backward")
        self.optimizer.step()
        clock("optimizer")


@contextlib.contextmanager
def batches(config: Any, count: int, device: Any) -> Iterator[Iterator[tuple[int, Any, float]]]:
    """The loader of a run, from its first step on."""
    from lejepa_med.data.dataset import StepDataset
    from lejepa_med.data.prefetch import feed
    from lejepa_med.data.residency import placed_source
    from lejepa_med.data.training_source import base_size, build_sampler, cache_source

    source = placed_source(config, cache_source(config), device, None, None)
    dataset = StepDataset(source, build_sampler(config, source), base_size(config, source), config.seed)
    with feed(dataset, range(count), config.data, device) as fed:
        yield fed


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
    planned = memory_needed(config, cost, planned_archive(config)[0], device).total
    with Peak(config.train.device) as peak:
        step = Step(config)
        clock, waits, whole = Clock(step.device), [], []
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
    reached = cost.step_flops() * size / whole
    return {
        "model": config.model.name,
        "batch": size,
        "volumes_per_s": size / whole,
        "step_s": whole,
        "data_wait": statistics.mean(waits) / whole,
        "parts_s": {part: statistics.median(clock.seconds[part]) for part in PARTS},
        "memory": peak.mib * 2**20,
        "planned": planned,
        "gflop_per_volume": cost.step_flops() / 1e9,
        "tflops": reached / 1e12,
        "peak_tflops": peak_flops / 1e12,
        "utilisation": reached / peak_flops,
    }


class Clock:
    """Seconds of each part of each step."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self.last = 0.0

    def begin(self, waited: float) -> None:
        for part in PARTS:
            self.seconds[part].append(waited if part == "data" else 0.0)
        self.synchronise()
        self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        self.synchronise()
        now = time.perf_counter()
        self.seconds[part][-1] += now - self.last
        self.last = now

    def synchronise(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def epoch(values: dict[str, Any], volumes: int) -> dict[str, Any]:
    """Seconds of one pass over an archive, after two steps of warm-up."""
    from lejepa_med.config import PlanConfig, validate

    config = validate(PlanConfig, values, "benchmark")
    step, steps = Step(config), volumes // config.train.batch_size
    with batches(config, 2 + steps, step.device) as fed:
        for number, batch, _ in itertools.islice(fed, 2):
            step(batch, number)
        Clock(step.device).synchronise()
        began = time.perf_counter()
        for number, batch, _ in fed:
            step(batch, number)
        Clock(step.device).synchronise()
    return {"volumes": volumes, "steps": steps, "seconds": time.perf_counter() - began}


def in_process(options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, *options.given, "--one", json.dumps(work)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


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
    top.add_argument("--growth-batches", type=int, nargs=3, default=[4, 8, 16])
    top.add_argument("--growth-volumes", type=int, nargs=3, default=[16, 32, 64])
    top.add_argument("--out", type=Path, help="JSON of all rows")
    top.add_argument("--one", help=argparse.SUPPRESS)
    return top


def main() -> None:
    options = parser().parse_args()
    options.given = sys.argv[1:]
    if options.one:
        work = json.loads(options.one)
        found = epoch(work["values"], work["epoch"]) if "epoch" in work else measure(work["values"], work["steps"])
        print(json.dumps(found))
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
        rows.append(in_process(options, {"values": values, "steps": options.steps}))
    parts = " | ".join(f"{part} ms" for part in PARTS)
    table(
        f"2 x {options.side}^3 + 6 x {options.side // 2}^3",
        f"model | batch | volumes/s | data wait | {parts} | GB | planned GB | GFLOP/volume | TFLOP/s | utilisation",
        [in_parts(row) for row in rows],
    )
    result: dict[str, Any] = {"rows": rows}
    if growth:
        result |= grow(options)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1))


def grow(options: argparse.Namespace) -> dict[str, Any]:
    """Batch sizes and archive sizes, each beside its ratio to the smallest."""
    model, side, count = options.growth_model, options.growth_side, max(options.growth_volumes)
    by_batch = []
    for batch in options.growth_batches:
        values = settings(options, model, batch, count, side)
        by_batch.append(in_process(options, {"values": values, "steps": max(3, options.steps)}))
    first = by_batch[0]
    table(
        f"Growth with the batch, {model}, 2 x {side}^3 + 6 x {side // 2}^3",
        "batch | s per step | ms per volume | GB | planned GB | MB per volume more",
        [
            f"{row['batch']} | {row['step_s']:.3g} | {1e3 * row['step_s'] / row['batch']:.3g} | "
            f"{row['memory'] / 1e9:.3f} | {row['planned'] / 1e9:.3f} | {_slope(first, row)}"
            for row in by_batch
        ],
    )
    by_size = []
    for volumes in options.growth_volumes:
        values = settings(options, model, options.growth_batches[0], volumes, side)
        by_size.append(in_process(options, {"values": values, "epoch": volumes}))
    table(
        f"Growth with the archive, batch {options.growth_batches[0]}",
        "volumes | s per epoch | ms per volume",
        [f"{row['volumes']} | {row['seconds']:.3g} | {1e3 * row['seconds'] / row['volumes']:.3g}" for row in by_size],
    )
    return {"by_batch": by_batch, "by_size": by_size}


def _slope(first: dict[str, Any], row: dict[str, Any]) -> str:
    more = row["batch"] - first["batch"]
    return f"{(row['memory'] - first['memory']) / more / 1e6:.1f}" if more else ""


if __name__ == "__main__":
    main()
