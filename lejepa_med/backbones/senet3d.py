"""3D SE-ResNets, SE-ResNeXts (Hu et al. 2018) and ResNeXts (Xie et al. 2017): MONAI's SENet, with or without SE."""

from __future__ import annotations

from jaxtyping import Float
from monai.networks.blocks.squeeze_and_excitation import SEBlock
from monai.networks.nets.senet import SENet
from torch import Tensor, nn

from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.config import ModelConfig

NETWORKS = {
    "resnext50": ("se_resnetxt_bottleneck", [3, 4, 6, 3], False),
    "resnext101": ("se_resnetxt_bottleneck", [3, 4, 23, 3], False),
    "seresnet50": ("se_resnet_bottleneck", [3, 4, 6, 3], True),
    "seresnet101": ("se_resnet_bottleneck", [3, 4, 23, 3], True),
    "seresnet152": ("se_resnet_bottleneck", [3, 8, 36, 3], True),
    "seresnext50": ("se_resnetxt_bottleneck", [3, 4, 6, 3], True),
    "seresnext101": ("se_resnetxt_bottleneck", [3, 4, 23, 3], True),
}
"""Name to (MONAI's block, blocks per stage, squeeze and excitation). ResNeXts are 32x4d."""


class SENet3d(StagedBackbone):
    """Bottlenecks with 512 x 4 channels in the last stage."""

    stage_pattern = r"net\.layer(\d)\."
    first_stage = 0
    smallest = 4

    def __init__(self, name: str, config: ModelConfig) -> None:
        super().__init__()
        block, layers, squeeze = NETWORKS[name]
        self.net = SENet(
            spatial_dims=3,
            in_channels=config.in_channels,
            block=block,
            layers=layers,
            groups=32 if "resnext" in name else 1,
            reduction=16,
            dropout_prob=None,
            inplanes=64,
            downsample_kernel_size=1,
            input_3x3=False,
        )
        del self.net.last_linear, self.net.adaptive_avg_pool
        if not squeeze:
            for module in self.net.modules():
                if isinstance(module, SEBlock):
                    module.se_layer = nn.Identity()
        self.net.layer0.conv1.stride = (config.stem_stride,) * 3
        if not config.stem_pool:
            self.net.layer0.pool = nn.Identity()
        self.stride = 8 * config.stem_stride * (2 if config.stem_pool else 1)
        self._finish(config.in_channels, 2048, config.norm)

    def _stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        x = self.net.layer0(images)
        maps = []
        for stage in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            x = stage(x)
            maps.append(x)
        return maps
