"""Layout and precision on a CPU: seconds of a forward and backward pass, one thread, all four ways in one run.

    python benchmarks/layouts.py

Which of them is fast depends on the network: dense convolutions gain from both, depthwise ones lose in bf16. The views
are those of `brain_tumour.py` (2D: 256 of 64 pixels, 512 of 32) and `hippocampus.py` (3D: 128 of 32 voxels, 384 of 16).
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from lejepa_med.backbones import Backbone, build
from lejepa_med.config import ModelConfig

NETWORKS: dict[str, dict[str, object]] = {
    "timm/resnet18": {},
    "timm/efficientnet_lite0": {},
    "timm/convnextv2_atto": {},
    "resnet10_3d": {"width": 0.25},
}
VIEWS = {2: ((256, 64), (512, 32)), 3: ((128, 32), (384, 16))}
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def seconds(backbone: Backbone, bf16: bool, passes: int) -> float:
    """Median of the passes behind the first."""
    dims = backbone.spatial_dims
    views = [torch.rand(count, 1, *(side,) * dims) for count, side in VIEWS[dims]]
    took = []
    for _ in range(1 + passes):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total = torch.stack([backbone(view).float().sum() for view in views]).sum()
        torch.autograd.backward(total)
        backbone.zero_grad()
        took.append(time.perf_counter() - began)
    return median(took[1:])


def main() -> None:
    """Prints a row per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | float32 | float32, channels last | bf16 | bf16, channels last |\n|---|---:|---:|---:|---:|")
    for name in options.only:
        row = []
        for bf16 in (False, True):
            for last in (False, True):
                torch.manual_seed(0)
                backbone = build(ModelConfig.model_validate({"name": name, **NETWORKS[name]})).train()
                if last:
                    backbone = backbone.to(memory_format=LAYOUTS[backbone.spatial_dims])
                row.append(f"{seconds(backbone, bf16, options.passes):.2f}")
        print(f"| `{name}` | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
