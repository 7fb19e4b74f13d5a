"""Which lambda for which batch: batches 16-128 under three rules, three seeds, equal numbers of steps.

    python benchmarks/small_batches.py phantoms --out runs/small_batches
    python benchmarks/small_batches.py hippocampus --data FOLDER --out runs/small_batches

T carries the factor N, so a fixed lambda weighs SIGReg less in a small batch. The rules: lambda .05 whatever N; `auto`,
lambda N / (1 - lambda) as at .05 and N = 256; `sqrt`, lambda sqrt(N) / (1 - lambda) as there, half way between. Prints
a Markdown table: loss parts over the last tenth of the steps, effective rank of the backbone's embeddings of the test
patients, frozen linear probe with all labels (mean and standard deviation over seeds), against random init.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from short_runs import open_set, run_all

from lejepa_med.objective import resolve_lam

BATCHES = (16, 32, 64, 128)
SEEDS = (0, 1, 2)


def lam_of(rule: str, batch: int) -> float:
    """The lambda of a rule at a global batch."""
    return 0.05 if rule == "fixed" else resolve_lam("auto" if rule == "auto" else "sqrt", batch)


def main() -> None:
    """Parses the command line, runs what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("phantoms", "hippocampus"))
    parser.add_argument("--data", type=Path, default=os.environ.get("LEJEPA_MED_REAL_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    scans = open_set(options.set, options.data and Path(options.data), options.out)
    cells = [(batch, rule, seed) for seed in SEEDS for batch in BATCHES for rule in ("fixed", "sqrt", "auto")]
    runs = {
        f"n{batch}_{rule}_s{seed}": (
            f"train.batch_size={batch}",
            f"objective.lam={lam_of(rule, batch):.4f}",
            f"seed={seed}",
            f"train.steps={options.steps}",
        )
        for batch, rule, seed in cells
    }
    done = run_all(scans, runs, options.out / scans.name / "runs", options.jobs)
    print(f"{scans.name}, {scans.task['name']}, {options.steps} steps, {len(SEEDS)} seeds\n")
    print("| batch | rule | lambda | prediction | sigreg | rank of features | probe | random init | pixels + PCA |")
    print("|---|---|---|---|---|---|---|---|---|")
    for batch in BATCHES:
        for rule in ("fixed", "sqrt", "auto"):
            group = [done[f"n{batch}_{rule}_s{seed}"] for seed in SEEDS]
            columns = [_cell(group, key) for key in ("prediction", "sigreg", "feature_rank")]
            columns += [_cell(group, key, 3) for key in ("probe_run", "probe_random", "probe_pixels")]
            print(f"| {batch} | {rule} | {lam_of(rule, batch):.3f} | " + " | ".join(columns) + " |")


def _cell(group: list[dict[str, Any]], key: str, digits: int = 2) -> str:
    values = [summary[key] for summary in group]
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


if __name__ == "__main__":
    main()
