"""BatchNorm statistics of another geometry: training sees crops, inference sees windows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lejepa_med.backbones.batchnorm import one_value_refused


@torch.no_grad()
def reestimate_batchnorm(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces running means and variances by their average over `batches` of images, `[batch, channel, *spatial]`.

    Nothing else changes: dropout and the like stay off, weights stay as they are. Without BatchNorm, or without a
    batch, it does nothing.

    Raises:
        UserError: a batch with one value per channel, which has no variance.
    """
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    iterator = iter(batches)
    first = next(iterator, None) if norms else None
    if first is None:
        return
    modes = [(module, module.training) for module in backbone.modules()]
    momenta = [norm.momentum for norm in norms]
    device = next(backbone.parameters()).device
    backbone.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: cumulative average
        norm.training = True
    with one_value_refused():
        backbone(first.to(device))
        for batch in iterator:
            backbone(batch.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in modes:
        module.training = training
