"""Backbone and projector as one module: views of one size go through the backbone in one pass per micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.backbones import Backbone, build_projector
from lejepa_med.backbones.batchnorm import convert_batchnorm, one_value_refused
from lejepa_med.config import ProjectorConfig
from lejepa_med.distributed import num_ranks
from lejepa_med.training.micro_batch import embed_views


class Pretrainer(nn.Module):
    """`forward(views)` -> backbone features `[view, sample, dim]` and projections `[view, sample, proj]`.

    `micro_batch`: samples per pass of the backbone; the projector always sees the whole batch. On several ranks every
    BatchNorm takes its moments over all of them; on one, networks of the user are left as they are.
    """

    def __init__(self, backbone: Backbone, config: ProjectorConfig, micro_batch: int | None = None) -> None:
        super().__init__()
        ends_in_layernorm = any(isinstance(module, nn.LayerNorm) for module in backbone.modules())
        self.backbone = backbone
        self.projector = build_projector(
            backbone.dim, config.hidden, config.dim, config.layers, normalise_input=ends_in_layernorm
        )
        self.micro_batch = micro_batch
        if num_ranks() > 1:
            convert_batchnorm(self)

    def forward(
        self, views: Sequence[Float[Tensor, "_ sample _ ..."]]
    ) -> tuple[Float[Tensor, "all_views sample dim"], Float[Tensor, "all_views sample proj"]]:
        with one_value_refused():
            features = embed_views(self.backbone, views, self.micro_batch)
            projections = self.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return features, projections
