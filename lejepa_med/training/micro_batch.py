"""Batches larger than memory, exactly: the backbone takes a few samples at a time, the loss takes all of them.

SIGReg is not a sum over samples, so losses of micro-batches cannot be added up. Instead (gradient caching, Gao et al.
2021, arXiv 2101.06983): the features of every micro-batch are computed and its activations forgotten; projector and
loss see the whole batch; once the gradient at the features is known, each micro-batch is run again, and goes backward.
That is what activation checkpointing of one micro-batch does, so autograd keeps the order: one micro-batch lives at a
time, parameters get their gradient once, and DistributedDataParallel talks once per step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from lejepa_med.distributed import largest_over_ranks


def embed_views(
    backbone: nn.Module, views: Sequence[Float[Tensor, "_ sample _ ..."]], micro_batch: int | None
) -> Float[Tensor, "all_views sample dim"]:
    """Backbone features of views in groups of one size; a group goes through in one pass per micro-batch.

    `micro_batch` is the largest number of samples of one rank in a pass, with all their views of that size; None is the
    whole batch. When a micro-batch is run again, random numbers (dropout) are replayed and running statistics rest.
    All ranks run equally many micro-batches, some of them empty if need be, since BatchNorm may talk in each.
    """
    samples = views[0].shape[1]
    parts = 1 if micro_batch is None else -(-largest_over_ranks(samples, views[0].device) // micro_batch)
    if parts == 1:
        return torch.cat([_embed(backbone, group, 0, samples) for group in views])
    bounds = list(itertools.pairwise(samples * part // parts for part in range(parts + 1)))
    parted = [[_embed_twice(backbone, group, *ends) for ends in bounds] for group in views]
    return torch.cat([torch.cat(features, dim=1) for features in parted])


def _embed(
    backbone: nn.Module, group: Float[Tensor, "view sample channel *spatial"], start: int, stop: int
) -> Float[Tensor, "view part dim"]:
    features: Tensor = backbone(group[:, start:stop].flatten(0, 1))
    return features.view(len(group), stop - start, features.shape[1])


def _embed_twice(backbone: nn.Module, group: Tensor, start: int, stop: int) -> Tensor:
    """As `_embed`, but nothing is kept for the backward pass, which runs it again."""

    def embed(group: Tensor) -> Tensor:  # cut inside: the flattened copy of the views is forgotten too
        device = group.device.type
        # Without its cache autocast casts a weight anew in each micro-batch; else their gradients would add up in bf16.
        with torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        ):
            return _embed(backbone, group, start, stop)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_at_rest(backbone)

    features: Tensor = checkpoint(embed, group, use_reentrant=False, context_fn=contexts)
    return features


@contextmanager
def _running_statistics_at_rest(backbone: nn.Module) -> Iterator[None]:
    """Running means and variances keep their values, although the networks are in training mode."""
    norms = [norm for norm in backbone.modules() if isinstance(norm, _NormBase)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, tracked in before:
        norm.momentum = 0.0  # not track_running_stats = False: autograd would then save fewer tensors than before
        norm.num_batches_tracked = None if tracked is None else tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, tracked in before:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
