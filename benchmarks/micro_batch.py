"""Memory and time of a training step: the whole batch at once, and in micro-batches, each in a process of its own.

    python benchmarks/micro_batch.py                    # on a CPU: a narrow 3D ResNet-18 with GroupNorm, 3D ViT-tiny
    python benchmarks/micro_batch.py --device cuda --batch 64 --side 96

Memory is the peak above what the process held before the step (model, views, optimizer): resident set on a CPU,
allocated by torch on CUDA. Time is the fastest of the steps. The loss is printed because it must not change.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

MODELS = {"resnet18_3d": {"norm": "group", "width": 0.25}, "vit_tiny_3d": {"patch_size": 8}}
"""Narrow on purpose: gradients of the weights (130 MiB at full width) don't depend on the batch."""
FIELDS = ("model", "micro_batch", "memory_mib", "seconds", "loss")


def measure(name: str, batch: int, micro_batch: int | None, side: int, steps: int, device: str) -> dict[str, object]:
    """One setting, in this process."""
    import torch

    from lejepa_med.backbones import build
    from lejepa_med.config import ModelConfig, ProjectorConfig
    from lejepa_med.objective import LeJEPALoss
    from lejepa_med.training.model import Pretrainer

    torch.manual_seed(0)
    model = Pretrainer(build(ModelConfig(name=name, **MODELS[name])), ProjectorConfig(), micro_batch).to(device)
    sizes = ((2, side), (6, side // 2))
    views = [torch.rand(count, batch, 1, *(voxels,) * 3, device=device) for count, voxels in sizes]
    loss_function = LeJEPALoss()
    with Peak(device) as peak:
        seconds = []
        for _step in range(steps):
            began = time.perf_counter()
            model.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                _, projections = model(views)
            loss = loss_function(projections, 2, step=0)
            loss.total.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            value = float(loss.total.detach())
            del projections, loss
    row = (name, micro_batch or "whole", round(peak.mib), round(min(seconds), 2), round(value, 5))
    return dict(zip(FIELDS, row, strict=True))


class Peak:
    """`mib`: the most memory inside the block, above what there was before it."""

    def __init__(self, device: str) -> None:
        self.cuda, self.highest, self.ended = device == "cuda", 0, threading.Event()

    def __enter__(self) -> Peak:
        import torch

        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = self.highest = resident()
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.ended.wait(0.002):
            self.highest = max(self.highest, resident())

    def __exit__(self, *_: object) -> None:
        import torch

        if self.cuda:
            self.highest = torch.cuda.max_memory_allocated()
        else:
            self.ended.set()
            self.thread.join()
        self.mib = (self.highest - self.before) / 2**20


def resident() -> int:
    """Bytes of this process in memory, without pages of files, which the system may take back (Linux)."""
    import resource

    present, of_files = (int(pages) for pages in Path("/proc/self/statm").read_text().split()[1:3])
    return (present - of_files) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=32, help="samples of a step")
    parser.add_argument("--micro-batches", type=int, nargs="*", default=[8, 4, 1])
    parser.add_argument("--side", type=int, default=48, help="voxels of a global view; local ones have half")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--models", nargs="*", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "MICRO_BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    shared = (options.side, options.steps, options.device)
    if options.one:
        name, micro_batch = options.one
        print(json.dumps(measure(name, options.batch, int(micro_batch) or None, *shared)))
        return
    print(f"batch of {options.batch}: 2 views of {options.side}^3 and 6 of {options.side // 2}^3, {options.device}")
    print("{:<12} {:>12} {:>11} {:>9} {:>9}".format(*FIELDS))
    for name in options.models:
        for micro_batch in (0, *options.micro_batches):
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name, str(micro_batch)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print("{:<12} {:>12} {:>11} {:>9} {:>9}".format(*(row[field] for field in FIELDS)), flush=True)


if __name__ == "__main__":
    main()
