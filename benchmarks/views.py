"""Volumes per second of one multi-crop recipe (2 x 96^3 + 6 x 48^3 from base crops of 192^3), made in several ways.

    python benchmarks/views.py --out views.json                  # two CPU threads: all ways, interleaved
    python benchmarks/views.py --device cuda --out views.json    # BatchedMultiCrop on a GPU, and a ResNet-18 step

On a CPU every way gets two threads: two processes with one each, or one process with two. `Compose` and TorchIO make
each view by crop, resize (without antialiasing: the cheaper choice, in their favour) and the same kinds of intensity
changes at the same probabilities. With `tilt`, every view is rotated by up to 15 degrees, there by their own rotation.
TorchIO is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lejepa_med.config import ViewsConfig
from lejepa_med.views import BatchedMultiCrop, MultiCropd

BASE, SPACING, VIEWS = 192, (1.0, 1.0, 1.0), ((2, 96, 0.3, 1.0), (6, 48, 0.05, 0.3))
Make = Callable[[torch.Tensor, int], Any]


def base_crops(count: int, ct: bool) -> torch.Tensor:
    """Smooth noise inside a ball, air around it."""
    coarse = torch.rand(count, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    values = torch.nn.functional.interpolate(coarse, size=(BASE,) * 3, mode="trilinear")
    axis = torch.linspace(-1, 1, BASE)
    body = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 0.9
    if ct:
        return torch.where(body, values * 1200 - 600, torch.tensor(-1000.0)).to(torch.int16)
    return torch.where(body, values * 200 + 30, torch.tensor(0.0)).to(torch.uint8)


def views_config(tilt: bool) -> ViewsConfig:
    return ViewsConfig.model_validate({"tilt_probability": 1.0 if tilt else 0.0})


def compose(ct: bool, tilt: bool) -> Make:
    """MONAI's own transforms, one chain per kind of view."""
    from monai import transforms as mt

    def chain(size: int, low: float, high: float) -> Any:
        sides = [int(BASE * f ** (1 / 3)) for f in (low, high)]
        steps: list[Any] = [
            mt.RandSpatialCrop(roi_size=(sides[0],) * 3, max_roi_size=(sides[1],) * 3, random_size=True),
            mt.Resize((size,) * 3, mode="trilinear"),
        ]
        if tilt:
            angle = math.radians(15)
            steps += [mt.RandRotate(angle, angle, angle, prob=1.0, padding_mode="zeros", keep_size=True)]
        steps += [mt.RandGaussianSmooth((0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.5)]
        if ct:
            steps += [mt.ScaleIntensityRange(-300, 400, 0, 1, clip=True)]
        else:
            steps += [mt.ScaleIntensityRange(0, 255, 0, 1, clip=True), mt.RandAdjustContrast(0.8, (0.7, 1.5))]
            steps += [mt.RandBiasField(degree=2, coeff_range=(0.0, 0.1), prob=0.5), mt.RandScaleIntensity(0.25, 0.8)]
        return mt.Compose([*steps, mt.RandGaussianNoise(prob=0.5, std=0.05)])

    chains = [(number, chain(size, low, high)) for number, size, low, high in VIEWS]

    def make(images: torch.Tensor, step: int) -> Any:
        del step
        return [[[steps(image.float()) for _ in range(number)] for number, steps in chains] for image in images]

    return make


def torchio(ct: bool, tilt: bool) -> Make:
    """TorchIO's transforms on crops cut by hand (it has no crop of random size)."""
    import torchio as tio

    def chain(size: int) -> Any:
        steps: list[Any] = [tio.Resize((size,) * 3)]
        steps += [tio.RandomAffine(scales=0, degrees=15)] if tilt else []
        steps += [tio.RandomBlur((0.5, 1.0), p=0.5)]
        if ct:
            steps += [tio.RescaleIntensity((0, 1), in_min_max=(-300, 400))]
        else:
            steps += [tio.RescaleIntensity((0, 1), in_min_max=(0, 255)), tio.RandomGamma(0.4, p=0.8)]
            steps += [tio.RandomBiasField(0.1, order=2, p=0.5)]
        return tio.Compose([*steps, tio.RandomNoise(std=(0, 0.05), p=0.5)])

    chains = [(number, chain(size), low, high) for number, size, low, high in VIEWS]

    def make(images: torch.Tensor, step: int) -> Any:
        del step
        return [
            [[steps(_cut(image, low, high)) for _ in range(number)] for number, steps, low, high in chains]
            for image in images
        ]

    return make


def _cut(image: torch.Tensor, low: float, high: float) -> torch.Tensor:
    sides = [int(BASE * (low + (high - low) * float(torch.rand(1))) ** (1 / 3)) for _ in range(3)]
    places = [int(float(torch.rand(1)) * (BASE - side + 1)) for side in sides]
    return image[(slice(None), *(slice(p, p + s) for p, s in zip(places, sides, strict=True)))].float()


def multicropd(ct: bool, tilt: bool) -> Make:
    transform = MultiCropd("image", views_config(tilt), SPACING, is_ct=ct)
    scale = 1.0 if ct else 1 / 255
    return lambda images, step: [transform({"image": image.float() * scale}) for image in images]


def batched(ct: bool, tilt: bool, kernel: Any = "auto") -> Make:
    crop = BatchedMultiCrop(views_config(tilt), kernel=kernel)
    return lambda images, step: crop(images, SPACING, torch.full((len(images),), ct), ("benchmark", step))


def batched_torch(ct: bool, tilt: bool) -> Make:
    return batched(ct, tilt, "torch")


WAYS: dict[str, tuple[Callable[[bool, bool], Make], int]] = {  # and the number of processes
    "MONAI Compose, 2 processes": (compose, 2),
    "TorchIO, 2 processes": (torchio, 2),
    "MultiCropd, 2 processes": (multicropd, 2),
    "BatchedMultiCrop, 2 processes": (batched, 2),
    "BatchedMultiCrop, 2 threads": (batched, 1),
    "BatchedMultiCrop without C++, 2 threads": (batched_torch, 1),
}


def serve(pipe: Any, build: Callable[[bool, bool], Make], case: tuple[bool, bool], share: tuple[int, int]) -> None:
    """One process: for every step number that comes in, the views of its share of the batch are made once."""
    count, threads = share
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    try:
        make, images = build(*case), base_crops(count, case[0])
        make(images[:1], -1)
    except ImportError:
        pipe.send("not installed")
        return
    pipe.send("ready")
    while (step := pipe.recv()) is not None:
        make(images, step)
        pipe.send(time.process_time())


def on_cpu(case: tuple[bool, bool], batch: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Volumes per second of every way: median, least and most over the repeats."""
    context, teams, times = multiprocessing.get_context("spawn"), {}, {}
    for name, (build, processes) in WAYS.items():
        team = []
        for _ in range(processes):
            here, there = context.Pipe()
            worker = context.Process(
                target=serve, args=(there, build, case, (batch // processes, 2 // processes)), daemon=True
            )
            worker.start()
            team.append((here, worker))
        answers = {here.recv() for here, _ in team}
        if answers == {"ready"}:
            teams[name], times[name] = team, []
    for step in range(repeats + 1):  # the first round warms up
        for name, team in teams.items():
            start = time.perf_counter()
            for here, _ in team:
                here.send(step)
            for here, _ in team:
                here.recv()
            if step:
                times[name].append(batch / (time.perf_counter() - start))
    for team in teams.values():
        for here, worker in team:
            here.send(None)
            worker.join()
    plain = statistics.median(times["MONAI Compose, 2 processes"])
    return {
        name: {
            "volumes_per_s": round(statistics.median(rates), 2),
            "range": [round(min(rates), 2), round(max(rates), 2)],
            "times_compose": round(statistics.median(rates) / plain, 2),
            "paired": round(statistics.median(a / b for a, b in zip(rates, times[next(iter(times))], strict=True)), 2),
        }
        for name, rates in times.items()
    }


def on_gpu(case: tuple[bool, bool], batch: int, repeats: int) -> dict[str, Any]:
    """The same on a GPU, and as a share of a training step of a 3D ResNet-18 on these views."""
    from lejepa_med.backbones import build
    from lejepa_med.config import ModelConfig

    device = torch.device("cuda")
    make, images = batched(*case), base_crops(8, case[0]).repeat(batch // 8, 1, 1, 1, 1).to(device)
    network = build(ModelConfig()).to(device)

    def train(step: int) -> None:
        for group in make(images, step):
            with torch.autocast("cuda", torch.bfloat16):
                network(group.flatten(0, 1)).square().mean().backward()

    seconds = {}
    for name, work in (("views", lambda step: make(images, step)), ("step", train)):
        rounds = []
        for step in range(repeats + 2):
            torch.cuda.synchronize()
            start = time.perf_counter()
            work(step)
            torch.cuda.synchronize()
            rounds.append(time.perf_counter() - start)
        seconds[name] = statistics.median(rounds[2:])
    share = seconds["views"] / seconds["step"]
    return {"volumes_per_s": round(batch / seconds["views"], 1), "share_of_step": round(share, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cases", nargs="+", default=["mri", "ct", "mri-tilt", "ct-tilt"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    measure, results = on_cpu if options.device == "cpu" else on_gpu, {}
    for name in options.cases:
        case = (name.startswith("ct"), name.endswith("tilt"))
        results[name] = measure(case, options.batch, options.repeats)
        print(name, json.dumps(results[name], indent=1), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
