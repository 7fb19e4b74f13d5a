"""3D EfficientNets (Tan & Le 2019): MONAI's networks behind the `Backbone` protocol, without drop-connect."""

from __future__ import annotations

from jaxtyping import Float
from monai.networks.nets.efficientnet import EfficientNetBN, MBConvBlock
from torch import Tensor, nn

from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.config import ModelConfig

VARIANTS = tuple(f"b{number}" for number in range(8))
_LAST_OF_RESOLUTION = (0, 1, 2, 4)


class EfficientNet3d(StagedBackbone):
    """Five resolutions; the deepest one is the head's 1x1 convolution, as in classification."""

    stage_pattern = r"net\._blocks\.(\d)\."
    last_stage_pattern = r"net\._(?:conv_head|bn1)\."
    num_stages = 8
    stride = smallest = 32

    def __init__(self, variant: str, config: ModelConfig) -> None:
        super().__init__()
        name = f"efficientnet-{variant}"
        self.net = EfficientNetBN(name, pretrained=False, spatial_dims=3, in_channels=config.in_channels, num_classes=1)
        dim = self.net._fc.in_features
        del self.net._fc, self.net._dropout, self.net._avg_pooling
        self.net._swish = nn.SiLU()  # MONAI's own function of the same values cannot be exported
        for module in self.net.modules():
            if isinstance(module, MBConvBlock):
                module._swish, module.drop_connect_rate = nn.SiLU(), 0.0
        self._finish(config.in_channels, dim, config.norm)

    def _stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        net, maps = self.net, []
        x = net._swish(net._bn0(net._conv_stem(net._conv_stem_padding(images))))
        for number, stage in enumerate(net._blocks):
            x = stage(x)
            if number in _LAST_OF_RESOLUTION:
                maps.append(x)
        return [*maps, net._swish(net._bn1(net._conv_head(net._conv_head_padding(x))))]
