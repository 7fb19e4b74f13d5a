"""Draws docs/images/collapse.png: embeddings of a small network, trained with lam 0 and with the default.

    python docs/draw_collapse.py --out docs/images/collapse.png

64 synthetic heads at 6 mm, a quarter-width ResNet-10, 2 + 2 views, about a minute on one CPU core. Each panel shows the
projections of one view of every head on the first two dimensions, and SIGReg (the mean Epps-Pulley statistic).
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lejepa_med.backbones import build
from lejepa_med.config import ModelConfig, ProjectorConfig, ViewsConfig
from lejepa_med.data.synthetic import draw_scan, draw_subject, head_phantom
from lejepa_med.objective import GAUSSIAN_REFERENCE, LeJEPALoss, SIGReg, resolve_lam
from lejepa_med.training.model import Pretrainer
from lejepa_med.views import BatchedMultiCrop
from lejepa_med.viz.style import BLUE, VERMILION, new_figure, tidy

NUM_HEADS, STEPS, DIM, SPACING_MM, SIDE = 64, 150, 16, 6.0, 28


def heads() -> Tensor:
    """`[head, 1, side, side, side]` in [0, 255], one per synthetic patient."""
    volumes = []
    for number in range(NUM_HEADS):
        volume = head_phantom(draw_subject(number), draw_scan(number, "T1w"), (SPACING_MM,) * 3, (SIDE, SIDE, SIDE))
        array = torch.from_numpy(volume.array.copy()).float()
        volumes.append((255 * array / array.quantile(0.995)).clamp(0, 255))
    return torch.stack(volumes)[:, None]


def trained(images: Tensor, lam: float) -> tuple[Tensor, float]:
    """Projections of one view of every head `[head, dim]`, and SIGReg of them, after the training."""
    torch.manual_seed(0)
    views = ViewsConfig(
        num_local=2, global_size=(20, 20, 20), local_size=(12, 12, 12), base_crop_mm=SIDE * SPACING_MM,
        global_pitch_mm=None, local_pitch_mm=None, global_fraction=(0.4, 1.0), local_fraction=(0.15, 0.4),
    )  # fmt: skip
    crop = BatchedMultiCrop(views)
    model = Pretrainer(build(ModelConfig(name="resnet10_3d", width=0.25)), ProjectorConfig(hidden=128, dim=DIM))
    loss = LeJEPALoss(num_slices=256, lam=lam)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    is_ct = torch.zeros(len(images), dtype=torch.bool)
    spacing = torch.full((len(images), 3), SPACING_MM)
    for step in range(STEPS):
        _, projections = model(crop(images, spacing, is_ct, ("collapse", step)))
        parts = loss(projections, num_global=2, step=step)
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
    one_view = projections[0].detach()
    return one_view, float(SIGReg(num_slices=256)(one_view[None], step=STEPS))


def main() -> None:
    """Two trainings, one picture."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    out: Path = arguments.parse_args().out
    images = heads()
    lam = resolve_lam("sqrt", NUM_HEADS)
    figure = new_figure(7.0, 3.6)
    axes = figure.subplots(1, 2)
    for axis, value, colour, name in zip(axes, (0.0, lam), (VERMILION, BLUE), ("Collapsed", "Healthy"), strict=True):
        points, statistic = trained(images, value)
        print(f"lam {value:.3f}: SIGReg {statistic:.2f}, mean standard deviation {float(points.std(0).mean()):.4f}")
        axis.scatter(points[:, 0], points[:, 1], s=14, color=colour, alpha=0.75, linewidths=0)
        title = f"{name}: lam = {value:.2g}\nEpps-Pulley {statistic:.2f}, a Gaussian has {GAUSSIAN_REFERENCE:.2f}"
        tidy(axis, title, "dimension 1", "dimension 2")
        axis.set_xlim(-3.5, 3.5)
        axis.set_ylim(-3.5, 3.5)
        axis.set_aspect("equal")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=130, metadata={"Software": None})
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.open(stream).convert("RGB").quantize(128).save(out, optimize=True)


if __name__ == "__main__":
    main()
