"""Does it train whatever the network: one recipe, many architectures, and each against its own random init.

    python benchmarks/architectures.py --out runs/architectures              # about two hours on two cores
    python benchmarks/architectures.py --out runs/architectures --only resnet10_3d timm/resnet18 -- train.steps=50

The phantoms of `short_runs`, a short pretraining of every network in 3D and 2D with no setting changed between them but
its width (so that two cores can train it) and, where its norm would be InstanceNorm, `model.norm: group`. Prints a
Markdown table: effective rank and mean standard deviation of the backbone's embeddings of the test patients (collapsed:
rank 1 and deviation 0), and the frozen linear probe of the ventricle grade with all labels against the same network's
random init, paired over patients. A network that fails is a row that says how.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from short_runs import CONFIGS, HOLDOUT, ScanSet, open_set, train_to_the_end

from lejepa_med.backbones import Backbone
from lejepa_med.config import BenchmarkConfig, PretrainConfig, load_config, validate
from lejepa_med.data.cache import Cache
from lejepa_med.data.splits import is_held_out
from lejepa_med.evaluation.benchmark import run_benchmark
from lejepa_med.evaluation.features import extract_features
from lejepa_med.training.log import read_log
from lejepa_med.training.monitor import effective_rank
from lejepa_med.weights import load_backbone

QUARTER = "model.width=0.25"
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "resnet10_3d": (QUARTER,),
    "resnet18_3d": (QUARTER,),
    "resnet34_3d": (QUARTER,),
    "resnet50_3d": (QUARTER,),
    "resnet101_3d": (QUARTER,),
    "resnext50_3d": (),
    "seresnet50_3d": (),
    "seresnext50_3d": (),
    "densenet121_3d": (QUARTER,),
    "efficientnet_b0_3d": (),
    "efficientnet_b1_3d": (),
    "segresnet_3d": ("model.width=0.125",),
    "unet_3d": ("model.width=0.125",),
    "resenc_l_3d": (QUARTER, "model.norm=group"),
    "swinunetr_3d": (QUARTER,),
    "convnext_tiny_3d": (QUARTER,),
    "vit_tiny_3d": (),
    "vit_small_3d": (),
    "primus_s_3d": (),
    "timm/resnet18": (),
    "timm/resnet50": (),
    "timm/convnextv2_atto": (),
    "timm/convnext_nano": (),
    "timm/vit_tiny_patch16_224": (),
    "timm/vit_small_patch16_dinov3": (),
    "timm/efficientnet_b0": (),
    "timm/efficientnet_lite0": (),
    "timm/mobilenetv3_large_100": (),
    "timm/regnety_004": (),
    "timm/densenet121": (),
}
"""Networks, and what of them differs from their default."""


def main() -> None:
    """Parses the command line, trains what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES, metavar="NAME")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("overrides", nargs="*", default=[], help="key=value for every network, e.g. train.steps=50")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    phantoms = open_set("phantoms", None, options.out)
    results = {}
    for name in options.only:
        print(f"{name} ...", flush=True)
        results[name] = _train(phantoms, name, options.overrides, options.out / "runs" / name.replace("/", "_"))
    print(_table(results))


def _train(phantoms: ScanSet, name: str, overrides: list[str], out: Path) -> dict[str, Any]:
    summary = out / "summary.json"
    if not summary.exists():
        out.mkdir(parents=True, exist_ok=True)
        kind = "2d" if name.startswith("timm/") else "3d"
        scans = dataclasses.replace(phantoms, config=CONFIGS / f"short_architectures_{kind}.yaml")
        try:
            found = _measured(scans, [f"model.name={name}", *ARCHITECTURES[name], *overrides], out / "run")
        except Exception as error:  # a row of the table
            found = {"failed": f"{type(error).__name__}: {error}"}
        summary.write_text(json.dumps(found, indent=1))
    values: dict[str, Any] = json.loads(summary.read_text())
    return values


def _measured(scans: ScanSet, overrides: list[str], run: Path) -> dict[str, Any]:
    config = load_config(PretrainConfig, scans.config, [f"data.cache={scans.cache}", *overrides])
    started = time.perf_counter()
    train_to_the_end(config, run)
    seconds = time.perf_counter() - started
    lines = read_log(run, "metrics")[-max(1, config.train.steps // 10) :]
    found: dict[str, Any] = {part: float(np.mean([line[part] for line in lines])) for part in ("prediction", "sigreg")}
    backbone = load_backbone(run)
    found |= {"parameters": sum(parameter.numel() for parameter in backbone.parameters()), "dim": backbone.dim}
    found |= {"seconds": seconds, "steps": config.train.steps, **_spread(scans, backbone)}
    return found | _probe(scans, run, config.seed)


def _spread(scans: ScanSet, backbone: Backbone) -> dict[str, float]:
    """Effective rank and mean standard deviation per dimension of the embeddings of the test patients."""
    assert backbone.spec is not None
    cache = Cache.open(scans.cache)
    tested = is_held_out(cache.table["patient_key"], HOLDOUT["test_fraction"], int(HOLDOUT["seed"]))
    volumes = (cache.read(key) for key in cache.table["series_key"][tested])
    embeddings = torch.from_numpy(extract_features(backbone, volumes, backbone.spec.inference, layers=None))
    return {"rank": effective_rank(embeddings), "std": float(embeddings.std(0).mean())}


def _probe(scans: ScanSet, run: Path, seed: int) -> dict[str, Any]:
    """Balanced accuracy with all labels: the run, its random init, and their paired difference with its interval."""
    settings = {
        "data": {"cache": str(scans.cache), "index": str(scans.index)},
        "tasks": [scans.task],
        "encoders": [
            {"kind": "run", "name": "LeJEPA", "path": str(run)},
            {"kind": "random", "name": "random", "like": str(run), "seed": seed},
        ],
        "methods": ["linear"],
        "budgets": [],
        "seeds": 1,
        "holdout": HOLDOUT,
    }
    summary = run_benchmark(validate(BenchmarkConfig, settings, "benchmark"), run.parent / "benchmark").as_json()
    value = {row["encoder"]: row["value"] for row in summary["rows"]}
    if None in value.values():
        raise RuntimeError("; ".join(summary["messages"]))
    (difference,) = summary["differences"]
    ends = {end: difference[end] for end in ("difference", "low", "high")}
    return {"probe": value["LeJEPA"], "random": value["random"], **ends}


def _table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| network | M parameters | dim | ms/step | prediction | sigreg | rank | std | probe | random | difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        settings = ", ".join(text.removeprefix("model.") for text in ARCHITECTURES[name])
        title = f"`{name}`" + (f" {settings}" if settings else "")
        if "failed" in row:
            lines.append(f"| {title} | failed: {row['failed']} |" + " |" * 9)
            continue
        cells = [f"{row['parameters'] / 1e6:.1f}", str(row["dim"]), f"{1e3 * row['seconds'] / row['steps']:.0f}"]
        cells += [f"{row[key]:.3g}" for key in ("prediction", "sigreg", "rank", "std")]
        cells += [f"{100 * row[key]:.1f}" for key in ("probe", "random")]
        cells.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * row[key] for key in ("difference", "low", "high"))))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    ahead = sum(row.get("low", -1) > 0 for row in results.values())
    better = sum(row.get("difference", -1) > 0 for row in results.values())
    return "\n".join([*lines, "", f"{len(results)} networks; above random init: {better}, interval above 0: {ahead}"])


if __name__ == "__main__":
    main()
