"""The projector between the backbone and the objective: linear-BatchNorm-GELU, twice, then linear."""

from __future__ import annotations

from torch import nn


def build_projector(in_dim: int, hidden: int, dim: int, layers: int, normalise_input: bool) -> nn.Sequential:
    """`layers` linear layers from `in_dim` to `dim`.

    `normalise_input` puts one BatchNorm in front, which a backbone that ends in LayerNorm needs.
    """
    modules: list[nn.Module] = [nn.BatchNorm1d(in_dim)] if normalise_input else []
    width = in_dim
    for _ in range(layers - 1):
        modules += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.GELU()]
        width = hidden
    return nn.Sequential(*modules, nn.Linear(width, dim))
