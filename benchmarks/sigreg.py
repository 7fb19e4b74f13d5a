"""SIGReg forward and backward: the plain formula beside every kernel that runs here, in one run.

    python benchmarks/sigreg.py [--device cuda] [--repeats 9] [--threads 2] [--size 1024/64/1024 ...]

Prints a Markdown table, a row per size N/D/K (samples, dimensions, slices; one view, 17 knots). One measurement is what
a training step pays: drawing the directions, projecting, the statistic, and the gradient at the embeddings.
`projection alone` is the step without the statistic: what no kernel can save. `statistic` is the statistic alone, from
given projections to the gradient at them.

Time is the median of repeats that take turns (CPU time: of the whole process, all threads), after two calls of each as
warm-up. In brackets the minimum, which other work on the machine disturbs least; "faster" likewise.
Peak memory is what one step adds: on the CPU the growth of the resident set of a process that runs only this (Linux's
figure, after a step at a small size); on CUDA PyTorch's own maximum.
Every kernel's value and gradient are compared with the plain formula before they are timed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lejepa_med.errors import ConfigError
from lejepa_med.objective import characteristic, epps_pulley, random_directions

Statistic = Callable[[Tensor], Tensor]
SIZES = [f"{n}/{d}/{k}" for n in (256, 1024) for d in (64, 512) for k in (256, 1024)]
LARGER = ["2048/64/1024", "4096/64/256", "1024/64/4096"]
LARGER_CUDA = [*LARGER, "4096/64/1024", "16384/64/1024"]
KNOTS, T_MAX = 17, 3.0
PROJECTION = "projection alone"


@dataclass
class Timing:
    """Milliseconds per call: wall clock and CPU of all threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        wall, cpu = (f"{statistics.median(times):.2f} ({min(times):.2f})" for times in (self.wall, self.cpu))
        return f"{wall} | {cpu}"


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(_peak_of_this_process(options.peak_of, _parse(options.size[0])))
        return 0
    device = torch.device(options.device)
    kernels = _available(device)
    _print_machine(options, device)
    sizes = options.size or SIZES + (LARGER_CUDA if device.type == "cuda" else LARGER)
    print(
        "| N/D/K | kernel | step ms | CPU ms | statistic ms | CPU ms | peak MB | x N K 4 bytes | faster | less memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size in sizes:
        for row in _rows(size, kernels, device, options):
            print(row, flush=True)
    return 0


def plain(x: Tensor) -> Tensor:
    """The definition, all samples x slices x knots at once, differentiated by autograd."""
    knots = torch.linspace(0, T_MAX, KNOTS, device=x.device)
    gauss = torch.exp(-(knots**2) / 2)
    angles = x.unsqueeze(-1) * knots
    distance = (angles.cos().mean(-3) - gauss) ** 2 + angles.sin().mean(-3) ** 2
    return 2 * x.shape[-2] * torch.trapezoid(distance * gauss, knots, dim=-1)


def step(statistic: Statistic, embeddings: Tensor, num_slices: int) -> Tensor:
    """What a training step does; returns the gradient at the embeddings."""
    directions = random_directions(embeddings.shape[-1], num_slices, 0, 0).to(embeddings.device)
    return gradient(statistic, embeddings @ directions, embeddings)


def gradient(statistic: Statistic, projections: Tensor, at: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(statistic(projections).mean(), at)
    return result


def statistics_by_kernel(kernels: list[str]) -> dict[str, Statistic]:
    def on(kernel: str) -> Statistic:
        return lambda x: epps_pulley(x, KNOTS, T_MAX, kernel)  # type: ignore[arg-type]

    return {"plain": plain, PROJECTION: torch.Tensor.mean} | {kernel: on(kernel) for kernel in kernels}


def _one(name: str) -> Statistic:
    return statistics_by_kernel([] if name in ("plain", PROJECTION) else [name])[name]


def _rows(size: str, kernels: list[str], device: torch.device, options: argparse.Namespace) -> list[str]:
    """The table's rows of one size, plain formula first."""
    samples, dim, slices = _parse(size)
    embeddings = torch.randn(samples, dim, device=device).requires_grad_()
    projections = torch.randn(samples, slices, device=device).requires_grad_()
    ways = statistics_by_kernel(kernels)
    _check(ways, projections)
    whole = _times({name: partial(step, way, embeddings, slices) for name, way in ways.items()}, options.repeats)
    alone = _times(
        {name: partial(gradient, way, projections, projections) for name, way in ways.items()}, options.repeats
    )
    peaks = {name: _peak_bytes(name, size, device, options.threads) for name in ways}
    return [
        f"| {size} | {name} | {whole[name]} | {alone[name]} | {peaks[name] / 1e6:.1f} "
        f"| {peaks[name] / (4 * samples * slices):.1f} | {_faster(whole['plain'], whole[name])} "
        f"| {peaks['plain'] / max(peaks[name], 1):.0f}x |"
        for name in ways
    ]


def _faster(plain: Timing, kernel: Timing) -> str:
    median, least = (how(plain.wall) / how(kernel.wall) for how in (statistics.median, min))
    return f"{median:.1f}x ({least:.1f}x)"


def _times(calls: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, Timing]:
    """The calls in turn, `repeats` times."""
    timings = {name: Timing() for name in calls}
    for repeat in range(-2, repeats):
        for name, call in calls.items():
            _wait()
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            _wait()
            if repeat >= 0:
                timings[name].wall.append(1e3 * (time.perf_counter() - wall))
                timings[name].cpu.append(1e3 * (time.process_time() - cpu))
    return timings


def _check(ways: dict[str, Statistic], x: Tensor) -> None:
    """Stops the benchmark where a kernel is not the plain formula."""
    expected, expected_gradient = plain(x), gradient(plain, x, x)
    for name, statistic in ways.items():
        if name == PROJECTION:
            continue
        value, found = statistic(x), gradient(statistic, x, x)
        assert (value - expected).abs().max() < 1e-4 * expected.max(), name
        assert (found - expected_gradient).abs().max() < 1e-4 * expected_gradient.abs().max(), name


def _peak_bytes(name: str, size: str, device: torch.device, threads: int) -> int:
    if device.type == "cuda":
        return _peak_on_cuda(name, _parse(size), device)
    command = [sys.executable, __file__, "--peak-of", name, "--size", size, "--threads", str(threads)]
    # Every array of 64 kB and more comes from the system and goes back to it, so that the resident set shows it.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def _peak_on_cuda(name: str, size: tuple[int, int, int], device: torch.device) -> int:
    samples, dim, slices = size
    embeddings = torch.randn(samples, dim, device=device).requires_grad_()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step(_one(name), embeddings, slices)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_this_process(name: str, size: tuple[int, int, int]) -> int:
    """Growth of the resident set by one step, after a small step that loads and compiles everything."""
    samples, dim, slices = size
    statistic = _one(name)
    step(statistic, torch.randn(8, dim).requires_grad_(), 32)
    embeddings = torch.randn(samples, dim).requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")  # the largest size starts again from the present one
    before = _resident_bytes("VmRSS")
    step(statistic, embeddings, slices)
    return _resident_bytes("VmHWM") - before


def _resident_bytes(key: str) -> int:
    """VmRSS: now; VmHWM: the largest so far. Of this process, without the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def _available(device: torch.device) -> list[str]:
    """The kernels that run here; prints what compiling cost, the first call at a small size."""
    kernels = []
    for kernel in ("eager", "compiled", "cpp", "triton"):
        x = torch.randn(64, 64, device=device).requires_grad_()
        start = time.perf_counter()
        try:
            gradient(statistics_by_kernel([kernel])[kernel], x, x)
        except ConfigError as error:
            print(f"{kernel} is left out: {error}\n")
            continue
        _wait()
        print(f"{kernel}: first call {time.perf_counter() - start:.2f} s, compiling included\n")
        kernels.append(kernel)
    return kernels


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _parse(size: str) -> tuple[int, int, int]:
    samples, dim, slices = map(int, size.split("/"))
    return samples, dim, slices


def _print_machine(options: argparse.Namespace, device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    print(
        f"{name}, {options.threads} threads, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{datetime.date.today().isoformat()}, median of {options.repeats}; `auto` takes cpp from "
        f"{characteristic.CPP_FROM} projections on\n"
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="SIGReg: plain formula and every kernel, side by side")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", nargs="+", default=[], help="N/D/K, several allowed")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
