"""3D ResNets (He et al. 2016; Tran et al. 2018): MONAI's networks behind the `Backbone` protocol."""

from __future__ import annotations

from jaxtyping import Float
from monai.networks.nets.resnet import ResNet
from torch import Tensor

from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.config import ModelConfig

LAYERS = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}
"""Depth to (block, blocks per stage)."""


class ResNet3d(StagedBackbone):
    """The stride-2 stem makes a CPU enough; `stem_stride=1` is the standard of MONAI."""

    stage_pattern = r"net\.layer(\d)\."
    first_stage = 0

    def __init__(self, depth: int, config: ModelConfig) -> None:
        super().__init__()
        block, layers = LAYERS[depth]
        self.net = ResNet(
            block,
            layers,
            [64, 128, 256, 512],
            n_input_channels=config.in_channels,
            conv1_t_stride=config.stem_stride,
            no_max_pool=not config.stem_pool,
            widen_factor=config.width,
            feed_forward=False,
        )
        self.stride = 8 * config.stem_stride * (2 if config.stem_pool else 1)
        expansion = 4 if block == "bottleneck" else 1
        self._finish(config.in_channels, int(512 * config.width) * expansion, config.norm)

    def _stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        x = self.net.act(self.net.bn1(self.net.conv1(images)))
        if not self.net.no_max_pool:
            x = self.net.maxpool(x)
        maps = []
        for stage in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            x = stage(x)
            maps.append(x)
        return maps
