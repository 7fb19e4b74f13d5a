"""What the diagnostics of a run cost: seconds of one measurement beside seconds of one step, in the same run.

    lejepa-med demo --out demo                      # or any pretraining config
    python benchmarks/diagnostics_cost.py demo/configs/pretrain.yaml

Trains for `--steps` steps in a temporary folder, measures every tenth of them, and prints medians and the share of the
run's time at `train.diagnostics_every` as the config has it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from demo_stages import machine

from lejepa_med import api
from lejepa_med.config import PretrainConfig, load_config
from lejepa_med.training import loop
from lejepa_med.training.log import read_log
from lejepa_med.training.monitor import Monitor

SECONDS: list[float] = []


class TimedMonitor(Monitor):
    """Keeps the seconds of every measurement."""

    def __call__(self, *arguments: Any) -> dict[str, int | float]:
        began = time.perf_counter()
        numbers = super().__call__(*arguments)
        SECONDS.append(time.perf_counter() - began)
        return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description="share of the diagnostics in the time of a run")
    parser.add_argument("config", type=Path, help="a pretraining config with its cache")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    every = load_config(PretrainConfig, options.config).train.diagnostics_every
    changes = [f"train.steps={options.steps}", f"train.diagnostics_every={max(1, options.steps // 10)}"]
    config = load_config(PretrainConfig, options.config, changes)
    source, preprocess = api.open_source(None, config)
    loop.Monitor = TimedMonitor  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        api.run_pretraining(config, source, preprocess, Path(folder) / "run")
        timing = read_log(Path(folder) / "run", "timing")
        names = ", ".join(read_log(Path(folder) / "run", "diagnostics")[0])
    step = median(config.train.batch_size / line["samples_per_s"] for line in timing[1:])
    once = median(SECONDS[1:])
    print(f"{machine()}\n\nmeasured: {names}\n")
    print("| step, ms | one measurement, ms | share of the run, one in " + f"{every} steps |\n|---:|---:|---:|")
    print(f"| {1000 * step:.0f} | {1000 * once:.0f} | {once / (every * step):.2%} |")


if __name__ == "__main__":
    main()
