"""The objective's share of a training step: the demo's step, and a ResNet-18 on 96^3 views.

    python benchmarks/objective_share.py

Times, on one batch of noise of the right shape with the settings of a run: cutting the views, the network (forward,
then backward from given gradients of its projections), the objective alone (directions, projection, statistic and
prediction loss; forward, then backward to the projections) and the optimizer. Medians of interleaved repeats,
compilation left out; prints a Markdown table. On CUDA the device is synchronised around every part.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from collections.abc import Callable
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from lejepa_med.backbones import build
from lejepa_med.config import PretrainConfig, load_config, validate
from lejepa_med.objective import build_objective
from lejepa_med.training.devices import choose_device, uses_bf16
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.optimizer import build_optimizer
from lejepa_med.views import BatchedMultiCrop

PARTS = ("views", "network", "objective", "optimizer")


def cases() -> dict[str, tuple[PretrainConfig, float, int]]:
    """Name -> settings, voxel size of the base crops in mm, repeats."""
    with resources.as_file(resources.files("lejepa_med.cli") / "demo_configs" / "pretrain.yaml") as file:
        demo = load_config(PretrainConfig, file)
    large = {"model": {"name": "resnet18_3d"}, "train": {"batch_size": 16}}
    return {"demo": (demo, 4.0, 12), "ResNet-18, 2 x 96^3 + 6 x 48^3": (validate(PretrainConfig, large, "96"), 1.0, 3)}


def measure(config: PretrainConfig, spacing: float, repeats: int) -> dict[str, float]:
    """Median seconds of each part of a step."""
    device = choose_device(config.train.device)
    torch.manual_seed(0)
    batch, side = config.train.batch_size, round((config.views.base_crop_mm or 192) / spacing)
    images = torch.randint(1, 255, (batch, 1, side, side, side), dtype=torch.uint8).to(device)
    is_ct = torch.zeros(batch, dtype=torch.bool, device=device)
    model = Pretrainer(build(config.model), config.projector).to(device).train()
    crop, loss_function = BatchedMultiCrop(config.views), build_objective(config.objective, seed=0)
    optimizer = build_optimizer(model, config.optim)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(config, device))
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    for step in range(repeats + 2):  # two to warm up

        def network(views: list[Tensor]) -> Tensor:
            with autocast:
                _, projections = model(views)
            projections.backward(torch.full_like(projections, 1e-4), retain_graph=False)
            return projections.detach().float()

        def objective(projections: Tensor, step: int = step) -> None:
            leaf = projections.requires_grad_()
            loss_function(leaf, config.views.num_global, step).total.backward()

        views, seconds = _timed(lambda step=step: crop(images, (spacing,) * 3, is_ct, ("views", 0, step)), device)
        times["views"].append(seconds)
        projections, seconds = _timed(lambda views=views: network(views), device)
        times["network"].append(seconds)
        times["objective"].append(_timed(lambda z=projections: objective(z), device)[1])
        times["optimizer"].append(_timed(optimizer.step, device)[1])
    return {part: float(np.median(values[2:])) for part, values in times.items()}


def _timed(work: Callable[[], object], device: torch.device) -> tuple[object, float]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began


def main() -> None:
    """Measures and prints."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cuda = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}, {datetime.date.today()}\n")
    print("| step | N | " + " | ".join(f"{part} ms" for part in PARTS) + " | objective's share |")
    print("|---|---|" + "---|" * (len(PARTS) + 1))
    for name, (config, spacing, repeats) in cases().items():
        seconds = measure(config, spacing, repeats)
        cells = " | ".join(f"{1e3 * seconds[part]:.1f}" for part in PARTS)
        share = seconds["objective"] / sum(seconds.values())
        print(f"| {name} | {config.train.batch_size} | {cells} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
