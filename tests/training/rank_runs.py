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
from pathlib import Path
from typing import Any

import torch
from small_runs import small_run

from lejepa_med.errors import UserError

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
    """As if the disk were full once the first checkpoint is written."""
    flush = os.fsync

    def full(number: int) -> None:
        if (run / "checkpoints" / "latest").exists():
            raise OSError(errno.ENOSPC, "full")
        flush(number)

    os.fsync = full


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


def disturbed(out: Path, world: int, times: int, by: int, **options: Any) -> list[int]:
    """A run that is killed (all ranks) or stopped (a signal to one of them) some times on its way, and resumed.

    Returns the exit codes of the runs that were stopped. Moments are drawn, so far apart that every run
    makes steps of its own.
    """
    draw, codes = random.Random(times + world), []
    steps = options.get("train", {}).get("steps", STEPS)
    for place in sorted(draw.sample(range(1, steps // APART - 1), times)):
        moment = APART * place + draw.randrange(EVERY)
        ranks = launch(out, world, options | {"resume": (out / "config.yaml").exists()})
        deadline = time.monotonic() + LIMIT_S
        while steps_written(out) < moment and time.monotonic() < deadline and ranks[0].is_alive():
            time.sleep(0.001)
        time.sleep(0.01 * draw.random())
        for process in ranks if by == signal.SIGKILL else [draw.choice(ranks)]:
            os.kill(process.pid, by)
        ended = finish(ranks)
        codes += ended if by == signal.SIGTERM else []
        assert (out / "STOPPED").exists() == (by == signal.SIGTERM), (out, moment)
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
            codes[out.name] = disturbed(out, world, times, getattr(signal, by), **job)
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
