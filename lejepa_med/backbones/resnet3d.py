"""3D ResNets (He et al. 2016; Tran et al. 2018): MONAI's networks behind the `Backbone` protocol."""

from __future__ import annotations

import torch
from jaxtyping import Float
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from lejepa_med.backbones.protocol import Backbone
from lejepa_med.errors import ConfigError

_LAYERS = {10: ("basic", [1, 1, 1, 1]), 18: ("basic", [2, 2, 2, 2]), 34: ("basic", [3, 4, 6, 3])}
_LAYERS |= {50: ("bottleneck", [3, 4, 6, 3])}


class ResNet3d(Backbone):
    """ResNet-10/18/34/50. The stride-2 stem makes a CPU enough; `stem_stride=1` is the standard of MONAI."""

    def __init__(
        self, depth: int, in_channels: int, width: float, stem_stride: int, stem_pool: bool, norm: str
    ) -> None:
        super().__init__()
        block, layers = _LAYERS[depth]
        self.net = ResNet(
            block,
            layers,
            [64, 128, 256, 512],
            n_input_channels=in_channels,
            conv1_t_stride=stem_stride,
            no_max_pool=not stem_pool,
            widen_factor=width,
            feed_forward=False,
        )
        if norm == "group":
            _group_instead_of_batch(self.net)
        self.dim = self.token_dim = int(512 * width) * (4 if block == "bottleneck" else 1)
        self.spatial_dims, self.in_channels = 3, in_channels

    def stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        """Feature maps of the four stages."""
        x = self.net.act(self.net.bn1(self.net.conv1(images)))
        if not self.net.no_max_pool:
            x = self.net.maxpool(x)
        maps = []
        for stage in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            if _bf16_is_wrong_here(x):
                with torch.autocast("cpu", enabled=False):
                    x = stage(x.float())
            else:
                x = stage(x)
            maps.append(x)
        return maps

    def forward(self, images: Float[Tensor, "batch channel *spatial"]) -> Float[Tensor, "batch dim"]:
        return self.stages(images)[-1].flatten(2).mean(-1)

    def tokens(
        self, images: Float[Tensor, "batch channel *spatial"]
    ) -> tuple[Float[Tensor, "batch token token_dim"], tuple[int, ...]]:
        last = self.stages(images)[-1]
        return last.flatten(2).transpose(1, 2), tuple(last.shape[2:])

    def intermediate(
        self, images: Float[Tensor, "batch channel *spatial"], last: int = 2
    ) -> list[Float[Tensor, "batch _"]]:
        return [stage.flatten(2).mean(-1) for stage in self.stages(images)[-last:]]


def _group_instead_of_batch(net: nn.Module) -> None:
    """GroupNorm (Wu & He 2018), 8 groups, in the blocks too, where MONAI's `norm` leaves BatchNorm."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm3d):
            if module.num_features % 8:
                raise ConfigError(
                    f"model.norm group: {module.num_features} channels are no multiple of 8 groups; "
                    "take a multiple of 0.125 as model.width, or model.norm=batch"
                )
            net.set_submodule(name, nn.GroupNorm(8, module.num_features))


def _bf16_is_wrong_here(x: Tensor) -> bool:
    """bf16 conv3d on a CPU gives wrong values or gradients for maps of one or two voxels: stay in float32 there.

    Output 2 with kernel 3: weight gradients from uninitialised memory (torch 2.15, AVX512-BF16; see the test of this
    module). Output 1 with stride 2: wrong values with AMX (pytorch issue 169688).
    """
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and min(x.shape[2:]) <= 4
