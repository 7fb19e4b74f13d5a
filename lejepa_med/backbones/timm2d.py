"""Any timm model that gives features, in 2D; DINOv2 and DINOv3 by its definition, weights by path (see `weights`)."""

from __future__ import annotations

import difflib

import timm
import torch
from jaxtyping import Float
from torch import Tensor

from lejepa_med.backbones.convolution import keep_tiny_maps_in_float32
from lejepa_med.backbones.positions2d import PositionRule, follow_rule
from lejepa_med.backbones.protocol import Backbone
from lejepa_med.errors import ConfigError


class Timm2d(Backbone):
    """A timm network without its classifier. ViTs take any image size that is a multiple of the patch.

    `positions` says how learnt positions of a ViT are resized to an image's grid (see `positions2d`).
    """

    def __init__(self, name: str, in_channels: int, positions: PositionRule = "timm") -> None:
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=4))
            raise ConfigError(f"model timm/{name}: timm has no model of this name; near it: {near or 'none'}")
        sizes = {"dynamic_img_size": True} if _is_vit(name) else {}
        self.net = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **sizes)
        keep_tiny_maps_in_float32(self.net)
        if positions != "timm" and not follow_rule(self.net, positions):
            raise ConfigError(f"model.positions {positions}: timm/{name} has no learnt positions to resize; use timm")
        self.positions: PositionRule = positions
        self.dim, self.token_dim = self.net.head_hidden_size, self.net.num_features
        self.has_class_token = getattr(self.net, "num_prefix_tokens", 0) > 0
        self.spatial_dims, self.in_channels = 2, in_channels

    def forward(self, images: Float[Tensor, "batch channel *spatial"]) -> Float[Tensor, "batch dim"]:
        features: Tensor = self.net.forward_features(images)
        if self.has_class_token:
            return features[:, 0]
        pooled: Tensor = self.net.forward_head(features, pre_logits=True)  # with the norm that some networks have there
        return pooled

    def tokens(
        self, images: Float[Tensor, "batch channel *spatial"]
    ) -> tuple[Float[Tensor, "batch token token_dim"], tuple[int, ...]]:
        features = self.net.forward_features(images)
        if features.ndim == 3:
            patch = self.net.patch_embed.patch_size
            grid = tuple(size // side for size, side in zip(images.shape[2:], patch, strict=True))
            return features[:, self.net.num_prefix_tokens :], grid
        features = self._map(features)
        return features.flatten(2).transpose(1, 2), tuple(features.shape[2:])

    def intermediate(
        self, images: Float[Tensor, "batch channel *spatial"], last: int = 2
    ) -> list[Float[Tensor, "batch _"]]:
        if self.has_class_token:
            outputs = self.net.forward_intermediates(
                images, indices=last, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
            )
            return [torch.cat([prefix[:, 0], patches.mean(1)], dim=-1) for patches, prefix in outputs]
        stages = self.net.forward_intermediates(images, intermediates_only=True)
        return [stage.flatten(2).mean(-1) for stage in stages[-last:]]

    def feature_maps(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        """Every stage where stages differ in resolution, else the map of patch tokens."""
        if len({stage["reduction"] for stage in self.net.feature_info}) == 1:
            return super().feature_maps(images)
        maps: list[Tensor] = self.net.forward_intermediates(images, intermediates_only=True)
        return maps

    def pooled_and_tokens(
        self, images: Float[Tensor, "batch channel *spatial"], last: int = 2
    ) -> tuple[list[Float[Tensor, "batch _"]], Float[Tensor, "batch token token_dim"]]:
        """What `intermediate` and `tokens` give, of one pass."""
        if self.has_class_token:
            features, outputs = self.net.forward_intermediates(
                images, indices=last, return_prefix_tokens=True, norm=True, output_fmt="NLC"
            )
            pooled = [torch.cat([prefix[:, 0], patches.mean(1)], dim=-1) for patches, prefix in outputs]
            return pooled, features[:, self.net.num_prefix_tokens :]
        features, stages = self.net.forward_intermediates(images)
        pooled = [stage.flatten(2).mean(-1) for stage in stages[-last:]]
        if features.ndim == 3:
            return pooled, features[:, getattr(self.net, "num_prefix_tokens", 0) :]
        return pooled, self._map(features).flatten(2).transpose(1, 2)

    def _map(self, features: Float[Tensor, "batch a b c"]) -> Float[Tensor, "batch _ _ _"]:
        """Channels first, also for networks that compute channels last."""
        return features if features.shape[1] == self.token_dim else features.movedim(-1, 1)


def _is_vit(name: str) -> bool:
    return name.startswith("vit_")
