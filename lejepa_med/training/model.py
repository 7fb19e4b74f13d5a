"""Backbone and projector as one module: views of one size go through the backbone in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.backbones import Backbone, build_projector
from lejepa_med.config import ProjectorConfig


class Pretrainer(nn.Module):
    """`forward(views)` -> backbone features `[view, sample, dim]` and projections `[view, sample, proj]`."""

    def __init__(self, backbone: Backbone, config: ProjectorConfig) -> None:
        super().__init__()
        ends_in_layernorm = any(isinstance(module, nn.LayerNorm) for module in backbone.modules())
        self.backbone = backbone
        self.projector = build_projector(
            backbone.dim, config.hidden, config.dim, config.layers, normalise_input=ends_in_layernorm
        )

    def forward(
        self, views: Sequence[Float[Tensor, "_ sample _ ..."]]
    ) -> tuple[Float[Tensor, "all_views sample dim"], Float[Tensor, "all_views sample proj"]]:
        features = torch.cat([self.backbone(group.flatten(0, 1)).unflatten(0, group.shape[:2]) for group in views])
        projections = self.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return features, projections
