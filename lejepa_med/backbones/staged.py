"""What networks of stages share: feature maps of falling resolution; the mean of the last one is the embedding."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from lejepa_med.backbones.convolution import keep_tiny_maps_in_float32
from lejepa_med.backbones.norms import Norm, has_instance_norm, set_norm
from lejepa_med.backbones.protocol import Backbone
from lejepa_med.errors import ConfigError


class StagedBackbone(Backbone):
    """A 3D network that gives one feature map per stage.

    `stride`: voxels per token. `smallest`: the shortest side of a view; `multiple`: sides are multiples of it.
    `stage_pattern` finds the number of a parameter's stage in its name, counted from 0 or 1, so that `first_stage` is
    added; what `last_stage_pattern` matches lies behind the stages and belongs to the last of `num_stages`.
    """

    stride: int
    smallest: int = 1
    multiple: int = 1
    stage_pattern: str
    last_stage_pattern: str = r"net\.norm\."
    first_stage: int = 1
    num_stages: int = 4

    @abstractmethod
    def _stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        """Feature maps, the deepest last."""

    def _finish(self, in_channels: int, dim: int, norm: Norm) -> None:
        """The last lines of every constructor: sizes, normalisation, and what bf16 needs on a CPU."""
        set_norm(self, norm)
        if has_instance_norm(self):
            self.smallest = max(self.smallest, self.stride + 1)
        keep_tiny_maps_in_float32(self)
        self.dim = self.token_dim = dim
        self.spatial_dims, self.in_channels = 3, in_channels

    def stages(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        """Feature maps of the stages, the deepest last.

        Raises:
            ConfigError: a view of a size that this network cannot take.
        """
        sides = tuple(images.shape[2:])
        refuse_sides(type(self).__name__, sides, self.smallest, (self.multiple,) * len(sides))
        return self._stages(images)

    def feature_maps(self, images: Float[Tensor, "batch channel *spatial"]) -> list[Float[Tensor, "batch _ *_grid"]]:
        return self.stages(images)

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


def refuse_sides(network: str, sides: tuple[int, ...], smallest: int, multiples: tuple[int, ...]) -> None:
    """Raises ConfigError unless every side of a view is long enough and a multiple of what the network divides by."""
    if min(sides) >= smallest and not any(side % of for side, of in zip(sides, multiples, strict=True)):
        return
    rules = [f"at least {smallest} voxels"] if min(sides) < smallest else []
    if any(side % of for side, of in zip(sides, multiples, strict=True)):
        rules.append(f"multiples of {' x '.join(map(str, multiples)) if len(set(multiples)) > 1 else multiples[0]}")
    raise ConfigError(
        f"{network}: a view of {' x '.join(map(str, sides))} voxels; sides must be {' and '.join(rules)}: change "
        "views.global_size and views.local_size, the window of inference, or take another model.name"
    )
