"""The only place that reaches the network, and only when a setting asks for it: timm's pretrained weights by name."""

from __future__ import annotations

import timm
from torch import Tensor

from lejepa_med.errors import WeightsError


def fetch_timm_weights(name: str) -> dict[str, Tensor]:
    """The tensors of timm's model `NAME` or `NAME.TAG`, from the Hugging Face hub or its cache on this machine.

    Raises:
        WeightsError: timm names no weights for it, or they cannot be fetched.
    """
    if not timm.is_model_pretrained(name):
        raise WeightsError(f"init_download: timm names no weights for {name}; give a file as init_from")
    try:
        net = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's clients raise each their own
        raise WeightsError(
            f"init_download: the weights of timm/{name} cannot be fetched ({type(error).__name__}); fetch them on a "
            "machine with a network and give the file as init_from"
        ) from None
    return dict(net.state_dict())
