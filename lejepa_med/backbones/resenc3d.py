"""The residual encoder of nnU-Net (Isensee et al. 2024, ResEnc; blocks of ResNet-D, He et al. 2019) in 3D.

Names are those of `dynamic_network_architectures` (Apache-2.0), of which nnU-Net builds it.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.config import ModelConfig

_BLOCKS = (1, 3, 4, 6, 6, 6)
_CHANNELS = (32, 64, 128, 256, 320, 320)


class ResEnc3d(StagedBackbone):
    """Six stages, InstanceNorm, leaky ReLU, convolutions with bias: what nnU-Net plans for cubic patches.

    Its presets M, L and XL plan larger patches and batches, not other channels.
    """

    stage_pattern = r"net\.stages\.(\d)\."
    num_stages = 6
    stride = smallest = 32

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = [int(count * config.width) for count in _CHANNELS]
        stem = nn.ModuleDict({"convs": nn.Sequential(_Unit(config.in_channels, channels[0], activate=True))})
        stages = nn.ModuleList()
        before = channels[0]
        for number, (depth, count) in enumerate(zip(_BLOCKS, channels, strict=True)):
            blocks = [ResidualBlock(before, count, 2 if number else 1)]
            blocks += [ResidualBlock(count, count, 1) for _ in range(depth - 1)]
            stages.append(nn.ModuleDict({"blocks": nn.Sequential(*blocks)}))
            before = count
        self.net = nn.Module()
        self.net.stem, self.net.stages = stem, stages
        for module in self.net.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self._finish(config.in_channels, channels[-1], config.norm)

    def _stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        stem, stages = self.net.stem, self.net.stages
        assert isinstance(stem, nn.ModuleDict) and isinstance(stages, nn.ModuleList)
        x, maps = stem["convs"](images), []
        for stage in stages:
            assert isinstance(stage, nn.ModuleDict)
            x = stage["blocks"](x)
            maps.append(x)
        return maps

    def nnunet_state_dict(self) -> dict[str, Tensor]:
        """The weights by the names of nnU-Net's network (`encoder.`), where each tensor has two: both are given."""
        state = {}
        for key, value in self.net.state_dict().items():
            unit, part, kind = key.rsplit(".", 2)
            state[f"encoder.{key}"] = value
            state[f"encoder.{unit}.all_modules.{('conv', 'norm').index(part)}.{kind}"] = value
        return state


class ResidualBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions; the shortcut averages before it projects.

    Where a side is odd, the last window of that average is cut off by the border, so that any view fits; for even
    sides it is nnU-Net's own.
    """

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _Unit(before, channels, stride=stride, activate=True)
        self.conv2 = _Unit(channels, channels)
        shortcut: list[nn.Module] = [nn.AvgPool3d(stride, stride, ceil_mode=True)] if stride > 1 else []
        if before != channels:
            shortcut.append(_Unit(before, channels, kernel=1))
        self.skip = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), 0.01)


class _Unit(nn.Module):
    """Convolution, norm and leaky ReLU; a projection (kernel 1) has no bias."""

    def __init__(self, before: int, channels: int, kernel: int = 3, stride: int = 1, activate: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, channels, kernel, stride, padding=kernel // 2, bias=kernel > 1)
        self.norm = nn.InstanceNorm3d(channels, affine=True)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return nn.functional.leaky_relu(x, 0.01) if self.activate else x
