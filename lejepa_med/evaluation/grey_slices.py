"""A colour network as a backbone for grey slices, so that it is segmented with like the backbones pretrained here."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.timm2d import Timm2d
from lejepa_med.config.evaluation import Timm2dEncoder
from lejepa_med.evaluation.slices import colour_input, load_timm2d
from lejepa_med.spec import InferenceSpec, Spec


class GreySlices(Backbone):
    """`network` on `[slice, 1, row, column]` in [0, 1]; windows of `config.image_size` in the first of its planes."""

    def __init__(self, network: Timm2d, config: Timm2dEncoder) -> None:
        super().__init__()
        self.network = network
        self.dim, self.token_dim = network.dim, network.token_dim
        self.spatial_dims, self.in_channels = 2, 1
        side, plane = config.image_size, config.used_planes[0]
        self.spec = Spec.model_validate(
            {
                "preprocess": None,
                "inference": InferenceSpec.model_validate(
                    {"window": (side, side), "planes": (plane,), "ct_window_hu": config.used_window_hu}
                ),
            }
        )

    def forward(self, images: Float[Tensor, "batch channel *spatial"]) -> Float[Tensor, "batch dim"]:
        embeddings: Tensor = self.network(colour_input(self.network, images))
        return embeddings

    def tokens(
        self, images: Float[Tensor, "batch channel *spatial"]
    ) -> tuple[Float[Tensor, "batch token token_dim"], tuple[int, ...]]:
        return self.network.tokens(colour_input(self.network, images))

    def intermediate(
        self, images: Float[Tensor, "batch channel *spatial"], last: int = 2
    ) -> list[Float[Tensor, "batch _"]]:
        return self.network.intermediate(colour_input(self.network, images), last)

    def feature_maps(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        return self.network.feature_maps(colour_input(self.network, images))


def load_grey_slices(config: Timm2dEncoder) -> GreySlices:
    """With the weights at `config.weights`, loaded strictly. Raises WeightsError if they do not fit."""
    return GreySlices(load_timm2d(config), config).eval()
