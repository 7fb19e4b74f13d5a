"""Small runs on one or several gloo ranks, undisturbed, killed or stopped. Started as a program: torch is
imported once, and every rank of every run is a fork of it."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import small_runs
import torch
from small_runs import small_run, sums_of
from torch.distributed.tensor import DTensor

from lejepa_med import distributed
from lejepa_med.backbones import Backbone
from lejepa_med.data.dataset import StepDataset
from lejepa_med.errors import UserError
from lejepa_med.training.state import TrainingState

CONTEXT = multiprocessing.get_context("fork")
STEPS, EVERY, APART = 30, 3, 6
LIMIT_S = 300


def launch(out: Path, world: int, options: dict[str, Any]) -> list[Any]:
    """The processes of one run: as torchrun starts them."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [CONTEXT.Process(target=work, args=(rank, world, port, out, options)) for rank in range(world)]
    for process in ranks:
        process.start()
    return ranks


def work(rank: int, world: int, port: int, out: Path, options: dict[str, Any]) -> None:
    """One rank; what it says goes to a file beside the run."""
    torch.set_num_threads(1)
    if world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
    options = dict(options)
    if options.pop("full", False):
        fill_disk(out)
    if options.pop("undivided", False):
        StepDataset.share_of = lambda self, samples: slice(0, samples)  # type: ignore[method-assign]
    if "patience_s" in options:
        lose_patience(options.pop("patience_s"))
    if options.pop("weighed", False):
        weigh_gathered(out.parent / f"{out.name}.gathered{rank}")
    train = {"steps": STEPS, "batch_size": 5, "checkpoint_every": EVERY, "diagnostics_every": 7}
    options["train"] = train | options.pop("train", {})
    with (out.parent / f"{out.name}.rank{rank}").open("a") as said:
        try:
            small_run(out, **options)
        except UserError as error:
            said.write(f"{error}\n")
            raise SystemExit(2) from None
        except Exception:
            said.write(traceback.format_exc())
            raise


def fill_disk(run: Path) -> None:
    """As if the disk were full for the second checkpoint."""
    flush = os.fsync

    def full(number: int) -> None:
        there = Path(f"/proc/self/fd/{number}").readlink().parent.name == "checkpoints"
        if there and (run / "checkpoints" / "latest").exists():
            raise OSError(errno.ENOSPC, "full")
        flush(number)

    os.fsync = full


def lose_patience(seconds: int) -> None:
    """Ranks give each other so long; each probe takes twice as long."""
    distributed.TIMEOUT = timedelta(seconds=seconds)

    def slow(backbone: Backbone, check: Callable[[], None]) -> list[dict[str, Any]]:
        time.sleep(2 * seconds)
        return sums_of(backbone, check)

    small_runs.sums_of = slow  # type: ignore[assignment]


def weigh_gathered(file: Path) -> None:
    """Writes the most bytes of gathered tensors that were alive at once: during checkpoints, and in the whole run."""
    gather, save = DTensor.full_tensor, TrainingState.save
    alive, most = 0, {"saving": 0, "any time": 0}
    saving = False

    def freed(size: int) -> None:
        nonlocal alive
        alive -= size

    def full_tensor(self: DTensor, **options: Any) -> torch.Tensor:
        nonlocal alive
        full = gather(self, **options)
        if full.dim() == 0:  # the norm of the gradient
            return full
        alive += full.nbytes
        weakref.finalize(full, freed, full.nbytes)
        for name in ("saving", "any time") if saving else ("any time",):
            most[name] = max(most[name], alive)
        file.write_text(json.dumps(most))
        return full

    def weighed_save(self: TrainingState, done: int) -> int:
        nonlocal saving
        saving = True
        saved = save(self, done)
        saving = False
        return saved

    DTensor.full_tensor = full_tensor  # type: ignore[method-assign]
    TrainingState.save = weighed_save  # type: ignore[method-assign]


def finish(ranks: list[Any]) -> list[int]:
    """Exit codes of all ranks; none hangs."""
    for process in ranks:
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in ranks]


def whole(out: Path, world: int, **options: Any) -> list[int]:
    return finish(launch(out, world, options))


def steps_written(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def disturbed(out: Path, worlds: list[int], times: int, signals: list[str], **options: Any) -> list[int]:
    """A run that is killed (all ranks) or stopped (a signal to one of them) some times on its way, and resumed.

    Returns the exit codes of the runs that were stopped. Moments and signals are drawn, moments so far apart that every
    run makes steps of its own. Numbers of ranks take turns.
    """
    draw, codes = random.Random(times + worlds[0]), []
    train = options.get("train", {})
    steps, every = train.get("steps", STEPS), train.get("checkpoint_every", EVERY)
    apart = options.pop("apart", APART)
    for number, place in enumerate(sorted(draw.sample(range(1, steps // apart - 1), times))):
        moment = apart * place + draw.randrange(every)
        by = getattr(signal, draw.choice(signals)) if len(signals) > 1 else getattr(signal, signals[0])
        world = worlds[number % len(worlds)]
        ranks = launch(out, world, options | {"resume": (out / "config.yaml").exists()})
        deadline = time.monotonic() + LIMIT_S
        while steps_written(out) < moment and time.monotonic() < deadline and ranks[0].is_alive():
            time.sleep(0.001)
        time.sleep(0.01 * draw.random())
        for process in ranks if by == signal.SIGKILL else [draw.choice(ranks)]:
            os.kill(process.pid, by)
        told = "killed" if by == signal.SIGKILL else "stopped"
        with (out.parent / f"{out.name}.disturbed").open("a") as said:
            said.write(f"{told} on {world} at {steps_written(out)}\n")
        ended = finish(ranks)
        codes += ended if by == signal.SIGTERM else []
        assert (out / "STOPPED").exists() == (by == signal.SIGTERM), (out, moment)
    world = worlds[times % len(worlds)]
    assert whole(out, world, **options, resume=True) == [0] * world
    return codes


def go_back(run: Path, out: Path) -> None:
    """A copy of a finished run that still has its last steps before it."""
    shutil.copytree(run, out)
    (out / "DONE").unlink()
    (out / "checkpoints" / "latest").write_text(f"step_{STEPS - EVERY}.pt")


def main(folder: Path, plan: list[dict[str, Any]]) -> None:
    """Runs what the plan lists; writes the exit codes."""
    codes = {}
    for job in plan:
        job = dict(job)
        out, world = folder / job.pop("out"), job.pop("world")
        if "from" in job:
            go_back(folder / job.pop("from"), out)
        by, times = job.pop("by", None), job.pop("times", 0)
        if by is None:
            codes[out.name] = whole(out, world, **job)
        else:
            worlds = world if isinstance(world, list) else [world]
            codes[out.name] = disturbed(out, worlds, times, by if isinstance(by, list) else [by], **job)
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
