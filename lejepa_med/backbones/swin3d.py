"""The encoder of SwinUNETR (Hatamizadeh et al. 2022): MONAI's 3D Swin transformer (Liu et al. 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor

from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.config import ModelConfig
from lejepa_med.errors import ConfigError


class SwinUnetr3d(StagedBackbone):
    """Feature size 48 times `width`, windows of 7, patches of 2, two blocks in each of four stages.

    Maps are normalised over their channels, without parameters, as SwinUNETR's decoder takes them.
    """

    stage_pattern = r"net\.layers(\d)\."
    first_stage = 0
    stride = smallest = multiple = 32

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        features = int(48 * config.width)
        if features < 12 or features % 12:
            raise ConfigError(f"model.width {config.width:g}: swinunetr_3d takes multiples of 0.25 (its 3 to 24 heads)")
        wanted = torch.get_default_device()
        with torch.device("cpu"):  # it reads numbers from a tensor, which has none on `meta`, where `plan` builds
            net = SwinTransformer(
                in_chans=config.in_channels,
                embed_dim=features,
                window_size=(7, 7, 7),
                patch_size=(2, 2, 2),
                depths=(2, 2, 2, 2),
                num_heads=(3, 6, 12, 24),
            )
        self.net = net.to(wanted)
        self._finish(config.in_channels, 16 * features, config.norm)

    def _stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        maps: list[Tensor] = self.net(images)
        return maps
