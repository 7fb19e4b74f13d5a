"""Whether a network takes views of a size, asked of shapes alone: nothing is computed and nothing stored."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.func import functional_call

from lejepa_med.backbones.protocol import Backbone
from lejepa_med.errors import ConfigError


def require_sizes(backbone: Backbone, sizes: Iterable[tuple[int, ...]], name: str) -> None:
    """Passes an image of each size, `[row, column]` or `[R, A, S]`, through the backbone on the meta device.

    An operation that has no shape rule, as a network of one's own may hold, is left to the first step.

    Raises:
        ConfigError: a size that it cannot take; `name` is its name in the config.
    """
    shapes = {key: value.to("meta") for key, value in (*backbone.named_parameters(), *backbone.named_buffers())}
    was_training = backbone.training
    backbone.eval()
    try:
        for size in dict.fromkeys(sizes):
            images = torch.empty(2, backbone.in_channels, *size, device="meta")
            try:
                with torch.no_grad():
                    functional_call(backbone, shapes, (images,), strict=False)
            except ConfigError:
                raise
            except AssertionError as error:  # how timm tells it
                raise ConfigError(
                    f"model {name}: takes no view of {' x '.join(map(str, size))} ({error}); change views.global_size "
                    "and views.local_size, the window of inference, or take another model.name"
                ) from None
            except Exception:  # no rule for shapes; real images will tell
                continue
    finally:
        backbone.train(was_training)
