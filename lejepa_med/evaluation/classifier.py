"""The network that fine-tuning trains: a backbone, its windows of a volume made one row, and a linear layer.

Windows of a volume are averaged. Slices of a volume, seen by a 2D network, are gathered by attention instead (one query
per head, as for frozen tokens), as in AnyMC3D and Medical Slice Transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.backbones import Backbone
from lejepa_med.evaluation.attention import AttentionPool

_WIDTH, _HEADS = 128, 4
_IMAGES_PER_PASS = 64
Colouring = Callable[[Tensor], Tensor]


class Classifier(nn.Module):
    """`colour` turns windows into what the backbone sees; `slices`: windows are slices of volumes."""

    def __init__(
        self, backbone: Backbone, outputs: int, *, slices: bool = False, colour: Colouring | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.slices, self._colour = backbone, slices, colour
        self.norm = nn.LayerNorm(backbone.dim) if slices else nn.Identity()
        self.pool = AttentionPool(backbone.dim, _WIDTH, _HEADS) if slices else None
        self.head = nn.Linear(_WIDTH if slices else backbone.dim, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, images: Float[Tensor, "window channel *size"], counts: Sequence[int]
    ) -> Float[Tensor, "volume output"]:
        return self.from_features(self.features(images), counts)

    def features(self, images: Float[Tensor, "window channel *size"]) -> Float[Tensor, "window dim"]:
        """Of every window."""
        embedded: Tensor = self.backbone(self.coloured(images))
        return embedded

    def coloured(self, images: Float[Tensor, "window channel *size"]) -> Float[Tensor, "window colour *size"]:
        """What the backbone sees."""
        return images if self._colour is None else self._colour(images)

    def from_features(
        self, features: Float[Tensor, "window dim"], counts: Sequence[int]
    ) -> Float[Tensor, "volume output"]:
        """The head on windows of several volumes in a row."""
        if self.pool is None:
            outputs: Tensor = self.head(torch.stack([rows.mean(0) for rows in torch.split(features, list(counts))]))
            return outputs
        padded = nn.utils.rnn.pad_sequence(list(torch.split(self.norm(features), list(counts))), batch_first=True)
        present = torch.arange(padded.shape[1]) < torch.tensor(list(counts))[:, None]
        outputs = self.head(self.pool(padded, present.to(padded.device)))
        return outputs

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "window channel *size"], counts: Sequence[int]) -> Tensor:
        """As `forward`, a few windows at a time."""
        device = next(self.parameters()).device
        parts = [self.features(piece.to(device)) for piece in torch.split(images, _IMAGES_PER_PASS)]
        return self.from_features(torch.cat(parts), counts)

    def passes(self, counts: Sequence[int]) -> list[slice]:
        """Volumes that train in one pass: all of a batch, or for slices as many as make 64 images, at least one."""
        if not self.slices:
            return [slice(0, len(counts))]
        found, start, images = [], 0, 0
        for number, count in enumerate(counts):
            if images and images + count > _IMAGES_PER_PASS:
                found.append(slice(start, number))
                start, images = number, 0
            images += count
        return [*found, slice(start, len(counts))]
