"""`plan`: memory, disk and hours of a run before anything starts; exit code 1 if it cannot run as it is."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from lejepa_med.cli.progress import duration
from lejepa_med.config import PlanConfig, load_config
from lejepa_med.training.bottleneck import in_words
from lejepa_med.training.planning import Plan, share_of_batch
from lejepa_med.training.planning_probe import make_plan
from lejepa_med.training.planning_verdict import verdict

_STOPS = ("does_not_fit", "disk")


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """The plan of a config of `pretrain`; the section `plan` describes another machine, or an archive to come."""
    config = load_config(PlanConfig, options.config, options.overrides)
    if not options.json and sys.stderr.isatty():
        print("planning; measuring some steps takes up to a minute ...", file=sys.stderr, flush=True)
    made = make_plan(config)
    said = verdict(made)
    code = int(any(stop in said for stop in _STOPS))
    return as_numbers(made) | {"verdict": said, "exit_code": code} | ({} if options.json else {"text": in_text(made)})


def as_numbers(plan: Plan) -> dict[str, Any]:
    """The plan for programs; bytes, FLOPs and seconds."""
    return {
        "model": {"name": plan.config.model.name, **dataclasses.asdict(plan.cost)},
        "device": dataclasses.asdict(plan.device),
        "archive": dataclasses.asdict(plan.archive),
        "memory": {**plan.memory.parts, "total": plan.memory.total},
        "fits": plan.fits,
        "largest_micro_batch": plan.largest_micro_batch,
        "disk": {**dataclasses.asdict(plan.disk), "total": plan.disk.total, "free": plan.disk_free},
        "flops": {
            "per_volume": plan.flops_per_volume,
            "per_step": plan.flops_per_volume * plan.config.train.batch_size,
            "peak": plan.speed.peak_flops,
        },
        "time": {
            "how": plan.speed.how,
            "seconds_per_volume": plan.seconds_per_volume,
            "loading_seconds_per_volume": plan.speed.loading_s,
            "hours": plan.hours,
        },
        "epochs": plan.epochs,
    }


def in_text(plan: Plan) -> str:
    """The plan for people."""
    train, cost = plan.config.train, plan.cost
    lines = [
        f"model    {plan.config.model.name}: {cost.parameters / 1e6:,.1f} M parameters with the projector",
        f"device   {plan.device.name}{_times(plan.config.plan.devices)}, {'bf16' if plan.device.bf16 else 'float32'}",
        _archive(plan),
        f"compute  {_flops(plan.flops_per_volume)} per volume, {_flops(plan.flops_per_volume * train.batch_size)} per "
        f"step of {train.batch_size}",
        f"memory   {in_words(plan.memory.total)} on a device with {share_of_batch(plan.config)} volumes, "
        f"{plan.memory.samples} to a pass",
        *(f"           {name:<24} {in_words(size):>12}" for name, size in plan.memory.parts.items() if size),
        f"disk     {in_words(plan.disk.total)}: checkpoints {in_words(plan.disk.checkpoints)} "
        f"({in_words(plan.disk.checkpoint)} each), weights {in_words(plan.disk.weights)}, "
        f"logs {in_words(plan.disk.logs)}",
        f"time     {_time(plan)}",
    ]
    if plan.largest_micro_batch:
        lines.append(f"fits     up to {plan.largest_micro_batch} volumes to a pass (train.micro_batch)")
    return "\n".join([*lines, "", *verdict(plan).values()])


def _times(devices: int) -> str:
    return f" x {devices}" if devices > 1 else ""


def _archive(plan: Plan) -> str:
    archive = plan.archive
    if archive.volumes is None:
        return "archive  not there yet"
    whose = f" of {archive.patients:,} patients" if archive.is_there else ""
    size = "" if archive.cache_bytes is None else f", {in_words(archive.cache_bytes)} in the cache"
    most = "" if archive.is_there else " at most"
    seen = "" if plan.epochs is None else f"; each seen {_few_digits(plan.epochs)} times"
    return f"archive  {archive.volumes:,} volumes{whose} to train on{size}{most}{seen}"


def _few_digits(number: float) -> str:
    """`0.0363`, `2.5`, `1,760`: three digits, never a power of ten."""
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


def _flops(flops: float) -> str:
    return f"{flops / 1e12:,.2f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:,.1f} GFLOP"


def _time(plan: Plan) -> str:
    seconds, hours = plan.seconds_per_volume, plan.hours
    if seconds is None or hours is None:
        return plan.speed.how
    step = seconds * plan.config.train.batch_size
    steps = f"{plan.config.train.steps:,} steps of {_few_digits(step)} s"
    rate = f"{duration(3600 * hours)} for {steps}, {1 / seconds:.3g} volumes/s"
    return f"{rate} ({plan.speed.how})"
