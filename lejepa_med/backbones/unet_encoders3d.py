"""Encoders of MONAI's segmentation networks: SegResNet (Myronenko 2018) and BasicUNet (Falk et al. 2019)."""

from __future__ import annotations

from jaxtyping import Float
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import Tensor, nn

from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.config import ModelConfig


class SegResNet3d(StagedBackbone):
    """The encoder of SegResNetDS as Auto3DSeg builds it: 32 to 512 channels, blocks 1, 2, 2, 4, 4; BatchNorm."""

    stage_pattern = r"net\.layers\.(\d)\."
    num_stages = 5
    stride = smallest = 16

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        filters = int(32 * config.width)
        self.net = SegResEncoder(
            spatial_dims=3, in_channels=config.in_channels, init_filters=filters, blocks_down=(1, 2, 2, 4, 4)
        )
        self._finish(config.in_channels, 16 * filters, config.norm)

    def _stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        maps: list[Tensor] = self.net(images)
        return maps


class UNet3d(StagedBackbone):
    """The encoder of BasicUNet: 32, 32, 64, 128, 256 channels, max-pooling.

    BatchNorm instead of its InstanceNorm, after which the mean of a channel over the whole view, and so the embedding,
    says next to nothing.
    """

    stage_pattern = r"net\.down_(\d)\."
    num_stages = 5
    stride = smallest = 16

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        features = [int(channels * config.width) for channels in (32, 32, 64, 128, 256, 32)]
        self.net = BasicUNet(spatial_dims=3, in_channels=config.in_channels, features=features)
        for number in range(1, 5):
            delattr(self.net, f"upcat_{number}")
        del self.net.final_conv
        norm = "batch" if config.norm == "auto" else config.norm
        self._finish(config.in_channels, features[4], norm)

    def _stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        levels: list[nn.Module] = [getattr(self.net, f"down_{number}") for number in range(1, 5)]
        maps = [self.net.conv_0(images)]
        for level in levels:
            maps.append(level(maps[-1]))
        return maps
