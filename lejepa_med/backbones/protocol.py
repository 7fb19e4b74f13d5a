"""What every backbone offers: embeddings, patch tokens on a grid, and pooled last layers for probes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.spec import Spec


class Backbone(nn.Module, ABC):
    """A network from `[batch, channel, *spatial]` (values in [0, 1]) to features.

    `dim` is the length of the embedding, `token_dim` that of a patch token, `spatial_dims` 2 or 3. `spec` says for
    which preprocessing and inference it was trained; None for fresh weights.
    """

    dim: int
    token_dim: int
    spatial_dims: int
    in_channels: int
    spec: Spec | None = None

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch channel *spatial"]) -> Float[Tensor, "batch dim"]:
        """One embedding per image."""

    @abstractmethod
    def tokens(
        self, images: Float[Tensor, "batch channel *spatial"]
    ) -> tuple[Float[Tensor, "batch token token_dim"], tuple[int, ...]]:
        """Patch tokens (no class token), row-major over the returned grid."""

    @abstractmethod
    def intermediate(
        self, images: Float[Tensor, "batch channel *spatial"], last: int = 2
    ) -> list[Float[Tensor, "batch _"]]:
        """Pooled features of the last blocks (ViT: class token and mean patch) or stages (CNN), the deepest last."""

    def feature_maps(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        """Every stage of a network that has some, else the map of patch tokens; the deepest last."""
        tokens, grid = self.tokens(images)
        return [tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)]
