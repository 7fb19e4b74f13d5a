"""Runs of a second, for the tests of diagnostics and advice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lejepa_med.api import Run, run_pretraining
from lejepa_med.backbones import Backbone
from lejepa_med.config import PretrainConfig
from lejepa_med.data.dataset import DatasetSource
from lejepa_med.training.run import Hooks, execute

SETTINGS: dict[str, Any] = {
    "data": {"monitor_fraction": 0.0},
    "projector": {"hidden": 16, "dim": 4, "layers": 2},
    "objective": {"num_slices": 16},
    "optim": {"lr": 3e-3},
    "views": {
        "num_global": 2,
        "num_local": 2,
        "global_size": [8, 8, 8],
        "local_size": [8, 8, 8],
        "global_fraction": [0.8, 1.0],
        "local_fraction": [0.5, 0.8],
        "global_pitch_mm": None,
        "local_pitch_mm": None,
        "min_body": 0.0,
        "redraws": 1,
    },
    "train": {"steps": 4, "batch_size": 4, "precision": "float32", "device": "cpu", "diagnostics_every": 1},
    "logging": {},
    "online_probe": {},
}


SMALLEST: dict[str, Any] = {
    "views": {"num_local": 0, "global_size": [4, 4, 4], "local_size": [4, 4, 4]},
    "logging": {"tensorboard": False},
}
"""Changes for runs of many steps: some 8 ms each."""

NAN_STEPS = (3, 5)
NAN_PASSES = tuple(2 * step + part for step in NAN_STEPS for part in (1, 2))


class Patterns(torch.utils.data.Dataset[Tensor]):
    """Smooth random volumes; `patients[i]` alone decides volume i, but for noise. `poison` is NaN; `deadly` kills the
    loader process that reads it, as the system does when memory runs out."""

    def __init__(self, patients: list[str], poison: int | None = None, deadly: int | None = None) -> None:
        self.patients, self.poison, self.deadly = patients, poison, deadly

    def __len__(self) -> int:
        return len(self.patients)

    def __getitem__(self, index: int) -> Tensor:
        if index == self.deadly and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.poison:
            return torch.full((1, 10, 10, 10), torch.nan)
        number = sorted(set(self.patients)).index(self.patients[index])
        coarse = torch.rand(1, 1, 3, 3, 3, generator=torch.Generator().manual_seed(number))
        noise = torch.rand(1, 10, 10, 10, generator=torch.Generator().manual_seed(10_000 + index))
        return 0.97 * nn.functional.interpolate(coarse, size=(10, 10, 10), mode="trilinear")[0] + 0.03 * noise


class Network(Backbone):
    """Convolution, BatchNorm and dropout, which draws from torch's global state; `kind` makes it fail in one way."""

    dim = token_dim = 24
    spatial_dims, in_channels = 3, 1

    def __init__(self, kind: str = "healthy") -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv3d(1, 24, 4, stride=4)
        self.norm = {"no norm": nn.Identity(), "group": nn.GroupNorm(4, 24)}.get(kind) or nn.BatchNorm3d(24)
        self.dropout = nn.Dropout(0.1 if kind == "dropout" else 0.0)
        self.trained_passes = 0

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        features: Tensor = self.dropout(self.norm(maps).relu()).flatten(2).mean(-1)
        match self.kind:
            case "rank one":
                return features.sum(1, keepdim=True) * torch.ones(24)
            case "constant":
                return 5.0 + 1e-6 * features
            case "half dead":
                return torch.cat([features[:, :12], 0 * features[:, 12:]], 1)
            case "nan" if torch.is_grad_enabled():  # two passes a step; first the running statistics are spoiled, too
                self.trained_passes += 1
                if self.trained_passes in NAN_PASSES:
                    return self.norm(maps * torch.nan).flatten(2).mean(-1)
        return features

    def tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        maps = self.conv(images)
        return maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:])

    def intermediate(self, images: Tensor, last: int = 2) -> list[Tensor]:
        return [self(images)]


def settings(**changes: Any) -> PretrainConfig:
    sections = {key: {**value, **changes.get(key, {})} for key, value in SETTINGS.items()}
    plain = {name: changes[name] for name in ("seed", "init_from") if name in changes}
    return PretrainConfig.model_validate(sections | plain)


def small_run(out: Path, patients: int = 8, scans: int = 1, kind: str = "healthy", **changes: Any) -> Run:
    """A run on `patients` with `scans` volumes each, probed every `probe` steps; `warn`, `resume` are handed on."""
    probe, network = changes.pop("probe", None), changes.pop("network", None)
    extra = {key: changes.pop(key) for key in ("warn", "resume") if key in changes}
    bad = {key: changes.pop(key, None) for key in ("poison", "deadly")}
    names = [f"patient {number}" for number in range(patients) for _ in range(scans)]
    torch.manual_seed(0)
    source = DatasetSource(Patterns(names, **bad), names)
    own = network or Network(kind)
    if probe is None:
        return run_pretraining(settings(**changes), source, None, out, own=own, **extra)
    task = {"name": "sums", "labels": "none.csv", "column": "none"}
    config = settings(**changes, online_probe={"tasks": [task], "every": probe})
    return execute(config, source, None, out, own=own, hooks=Hooks(probe=sums_of))


def sums_of(backbone: Backbone, check: Callable[[], None]) -> list[dict[str, Any]]:
    """In place of an online probe: numbers that tell which weights and running statistics were measured."""
    check()
    state = backbone.state_dict()
    return [
        {"task": "sums", "linear": float(state["conv.weight"].sum()), "knn": float(state["norm.running_var"].sum())}
    ]
