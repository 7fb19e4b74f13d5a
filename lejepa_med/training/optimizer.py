"""AdamW and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from lejepa_med.config import OptimConfig


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Linear warm-up, then a cosine from `lr` to `lr * final_fraction` at the last step."""
    warmup = max(1, round(steps * config.warmup_fraction))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    low = config.lr * config.final_fraction
    return low + (config.lr - low) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Gives every group the learning rate of a step, and returns it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW without weight decay on norms, biases and tokens (parameters with fewer than two axes)."""
    decay = config.weight_decay
    if decay == "auto":  # ViT, Swin, ConvNeXt; ResNet and the like
        decay = 5e-2 if any(isinstance(part, nn.LayerNorm | nn.RMSNorm) for part in module.modules()) else 5e-4
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if _axes(p) >= 2]
    vectors = [p for p in trained if _axes(p) < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def _axes(parameter: nn.Parameter) -> int:
    """Those longer than one; of the whole parameter, also where this rank holds a shard."""
    return sum(side > 1 for side in parameter.shape)
