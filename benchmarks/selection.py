"""Does the loss tell which run is better? Short runs on phantoms, then `lejepa-med select` over them.

    python benchmarks/selection.py --out runs/selection

24 runs (--runs for more): half of them 200 steps long, half 400; lambda, learning rate and strength of augmentation are
balanced within each half and shuffled against each other by a fixed seed. Each run has a frozen linear probe of the
ventricle grade with all labels (RUN/probe/result.json). What `select` prints is the result: re-scored on kept-aside
patients with one view protocol, Spearman with intervals, over all runs and within runs of equal length.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from short_runs import open_set, run_all

from lejepa_med.cli.main import main as lejepa_med

LENGTHS = (200, 400)
LAMBDAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
RATES = (3e-4, 1e-3, 3e-3)
AUGMENTATION = {
    "weak": (
        "views.global_fraction=[0.8, 1.0]",
        "views.local_fraction=[0.4, 0.6]",
        "views.mri.gamma_probability=0",
        "views.mri.bias_probability=0",
        "views.mri.contrast_probability=0",
        "views.mri.noise_probability=0",
        "views.blur_probability=0",
        "views.thick_slice_probability=0",
    ),
    "middle": (),
    "strong": (
        "views.global_fraction=[0.3, 1.0]",
        "views.local_fraction=[0.1, 0.4]",
        "views.mri.gamma=[0.4, 2.5]",
        "views.mri.contrast=[0.3, 1.7]",
        "views.mri.noise_std=[0.0, 0.1]",
        "views.mri.bias_field=0.6",
        "views.blur_probability=0.6",
    ),
}


def designed(count: int) -> dict[str, tuple[str, ...]]:
    """Name -> overrides of `count` runs; every level of every factor as often as the others, within each length."""
    draw, runs = random.Random(0), {}
    for steps in LENGTHS:
        half = count // len(LENGTHS)
        columns = []
        for levels in (LAMBDAS, RATES, tuple(AUGMENTATION)):
            column = [levels[number % len(levels)] for number in range(half)]
            draw.shuffle(column)
            columns.append(column)
        for number, (lam, rate, strength) in enumerate(zip(*columns, strict=True)):
            runs[f"t{steps}_{number:02d}_lam{lam}_lr{rate}_{strength}"] = (
                f"train.steps={steps}",
                f"objective.lam={lam}",
                f"optim.lr={rate}",
                f"seed={len(runs)}",
                *AUGMENTATION[str(strength)],
            )
    return runs


def main() -> None:
    """Parses the command line, runs what is missing, ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    scans = open_set("phantoms", None, options.out)
    runs, folder = designed(options.runs), options.out / "phantoms" / "runs"
    run_all(scans, runs, folder, options.jobs)
    lejepa_med(["select", *[str(folder / name) for name in runs], "--out", str(options.out / "phantoms" / "selection")])


if __name__ == "__main__":
    main()
