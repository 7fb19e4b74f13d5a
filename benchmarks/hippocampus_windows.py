"""In which windows to show a hippocampus crop to a frozen network: chosen on training persons, by cross-validation.

    python benchmarks/hippocampus_windows.py --out runs/hippocampus_study

R2 of ridge regression on frozen features, five folds by person, for each run there and for fresh weights. The persons
that `hippocampus.py` tests are not read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hippocampus import HOLDOUT
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.data.cache import Cache, CachedVolume
from lejepa_med.data.inference import windows
from lejepa_med.data.splits import is_held_out
from lejepa_med.evaluation.encoders import fresh_backbone
from lejepa_med.evaluation.features import extract_features
from lejepa_med.spec import InferenceSpec
from lejepa_med.weights import load_backbone

WINDOWS = {"32^3 at 1 mm, several": ((32, 32, 32), 1.0), "48 x 64 x 48 at 1 mm": ((48, 64, 48), 1.0),
           "32 x 40 x 32 at 1.5 mm": ((32, 40, 32), 1.5)}  # fmt: skip


def r_squared(features: NDArray[np.floating], target: NDArray[np.float64], persons: NDArray[np.str_]) -> float:
    """Of predictions for the fold left out, over all rows."""
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=(1, 10, 100, 1000, 10_000)))
    found = cross_val_predict(model, features, target, groups=persons, cv=GroupKFold(5))
    return float(1 - ((found - target) ** 2).sum() / ((target - target.mean()) ** 2).sum())


def normalised(backbone: Backbone, volumes: list[CachedVolume], inference: InferenceSpec) -> Backbone:
    """Fresh weights with BatchNorm statistics of these windows."""
    seen = torch.cat([windows(volume, inference).images for volume in volumes[:40]])
    reestimate_batchnorm(backbone, torch.split(seen, 16))
    return backbone.eval()


def main() -> None:
    """A table: windows and networks by targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="of hippocampus.py, with its cache and runs")
    out = parser.parse_args().out
    cache, labels = Cache.open(out / "cache"), pd.read_csv(out / "labels.csv")
    table = labels.merge(cache.table[["series_key", "patient_key"]], on="series_key")
    table = table[~is_held_out(table["patient_key"].to_numpy(), HOLDOUT["test_fraction"], int(HOLDOUT["seed"]))]
    volumes = [cache.read(key) for key in table["series_key"]]
    persons = table["patient_key"].to_numpy(dtype=str)
    print(f"{len(volumes)} scans of {len(set(persons))} training persons; R2 of anterior fraction, volume")
    runs = sorted(file.parent for file in (out / "runs").glob("*/DONE"))
    for name, (window, pitch) in WINDOWS.items():
        networks = {run.name: load_backbone(run) for run in runs} | {"random init": fresh_backbone(runs[0], 0)}
        for network, backbone in networks.items():
            assert backbone.spec is not None
            inference = backbone.spec.inference.model_copy(update={"window": window, "pitch_mm": pitch})
            if network == "random init":
                backbone = normalised(backbone, volumes, inference)
            features = extract_features(backbone, volumes, inference)
            found = [
                r_squared(features, table[column].to_numpy(float), persons)
                for column in ("anterior_fraction", "volume_mm3")
            ]
            print(f"{name:24} {network:12} " + "  ".join(f"{value:6.3f}" for value in found), flush=True)


if __name__ == "__main__":
    main()
