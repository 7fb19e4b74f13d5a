"""Wall time, CPU time and peak memory of each stage of the demo, each in a process of its own.

    python benchmarks/demo_stages.py --out demo_stages [--size smoke]

Runs the commands that `lejepa-med demo` names, with its settings, and prints a Markdown table. Peak memory is the
largest resident set of one process of the stage (processes of a pool are not added up). This process imports nothing
heavy: Linux counts the memory of the process that starts another towards the peak of the other.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_SETTINGS = """
import sys
from pathlib import Path
from lejepa_med.cli import demo
out, size = Path(sys.argv[1]), sys.argv[2]
demo._write_configs(out, size, ())
(out / "index").mkdir()
(out / "index" / "salt").write_bytes(demo._SALT)
(out / "index" / "salt").chmod(0o600)
print(demo._SUBJECTS[size], demo.ARCHIVE_SEED)
"""
_ARCHIVE = """
import sys
from pathlib import Path
from lejepa_med.data.synthetic import write_archive
write_archive(Path(sys.argv[1]), subjects=int(sys.argv[2]), seed=int(sys.argv[3]))
"""


@dataclass(frozen=True)
class Measured:
    """One stage: seconds of wall and CPU (all its processes), and bytes."""

    stage: str
    wall_s: float
    cpu_s: float
    peak_bytes: int


def main() -> int:
    options = _options()
    out: Path = options.out
    if out.exists() and any(out.iterdir()):
        print(f"demo_stages {out}: the folder is not empty; choose another --out, or remove it", file=sys.stderr)
        return 2
    settings = [sys.executable, "-c", _SETTINGS, str(out), options.size]
    subjects = subprocess.run(settings, check=True, capture_output=True, text=True).stdout.split()
    commands = _commands(out, subjects)
    rows = [measure(stage, command) for stage, command in commands.items()]
    print(table(rows, options.size))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="time and memory of each stage of the demo")
    parser.add_argument("--out", type=Path, default=Path("demo_stages"), help="folder to write (default: demo_stages)")
    parser.add_argument("--size", choices=("full", "smoke"), default="full", help="smoke: a few subjects and steps")
    return parser.parse_args()


def _commands(out: Path, subjects: list[str]) -> dict[str, list[str]]:
    """What runs, by stage; the same words as the demo prints."""
    configs = out / "configs"
    verb = [sys.executable, "-m", "lejepa_med"]
    return {
        "archive": [sys.executable, "-c", _ARCHIVE, str(out / "archive"), *subjects],
        "index": [
            *(*verb, "index", str(out / "archive")),
            *("--out", str(out / "index"), "--config", str(configs / "index.yaml")),
        ],
        "prepare": [
            *(*verb, "prepare", str(out / "index")),
            *("--out", str(out / "cache"), "--config", str(configs / "prepare.yaml")),
        ],
        "pretrain": [*verb, "pretrain", str(configs / "pretrain.yaml"), "--out", str(out / "run")],
        "benchmark": [*verb, "benchmark", str(configs / "benchmark.yaml"), "--out", str(out / "benchmark")],
        "report": [*verb, "report", str(out / "benchmark"), "--out", str(out / "report")],
    }


def measure(stage: str, command: list[str]) -> Measured:
    """Runs one command; exits with its code if it fails."""
    print(f"{stage} ...", file=sys.stderr, flush=True)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"demo_stages: stage {stage} ended with exit code {process.returncode}: {' '.join(command)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(stage, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def table(rows: list[Measured], size: str) -> str:
    """The Markdown table, with the machine it was made on."""
    total = Measured(
        "total", sum(row.wall_s for row in rows), sum(row.cpu_s for row in rows), max(row.peak_bytes for row in rows)
    )
    lines = [f"`python benchmarks/demo_stages.py --size {size}`; {machine()}", ""]
    lines += ["| stage | wall, s | CPU, s | peak memory, GB |", "|---|---:|---:|---:|"]
    lines += [
        f"| {row.stage} | {row.wall_s:.1f} | {row.cpu_s:.1f} | {row.peak_bytes / 1e9:.2f} |" for row in (*rows, total)
    ]
    return "\n".join(lines)


def machine() -> str:
    """Processor, cores, versions and date."""
    threads = os.environ.get("OMP_NUM_THREADS")
    parts = [cpu_model(), f"{os.cpu_count()} cores"]
    parts += [f"OMP_NUM_THREADS={threads}"] if threads else []
    parts += [f"torch {version('torch')}", f"Python {platform.python_version()}", f"lejepa-med {version('lejepa-med')}"]
    return ", ".join([*parts, datetime.datetime.now(tz=datetime.UTC).date().isoformat()])


def cpu_model() -> str:
    """The name of the processor, as the system tells it."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
