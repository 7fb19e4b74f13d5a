"""3D DenseNets (Huang et al. 2017): MONAI's networks behind the `Backbone` protocol."""

from __future__ import annotations

from jaxtyping import Float
from monai.networks.nets.densenet import DenseNet
from torch import Tensor, nn

from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.config import ModelConfig

LAYERS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
"""Depth to layers per dense block."""


class DenseNet3d(StagedBackbone):
    """`width` is a factor on the growth rate (32) and on the channels of the stem (64)."""

    stage_pattern = r"net\.features\.(?:denseblock|transition|norm)(\d)"
    first_stage = 0

    def __init__(self, depth: int, config: ModelConfig) -> None:
        super().__init__()
        self.net = DenseNet(
            spatial_dims=3,
            in_channels=config.in_channels,
            out_channels=1,
            init_features=int(64 * config.width),
            growth_rate=int(32 * config.width),
            block_config=LAYERS[depth],
        )
        del self.net.class_layers
        self.net.features.conv0.stride = (config.stem_stride,) * 3
        if not config.stem_pool:
            self.net.features.pool0 = nn.Identity()
        self.stride = self.smallest = 8 * config.stem_stride * (2 if config.stem_pool else 1)
        self._finish(config.in_channels, self.net.features.norm5.num_features, config.norm)

    def _stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        """Before the transitions; the last one normalised."""
        x, maps = images, []
        for name, module in self.net.features.named_children():
            x = module(x)
            if name.startswith("denseblock"):
                maps.append(x)
        return [*maps[:-1], nn.functional.relu(x)]
