"""Whether the weights of a benchmark load: asked once on the CPU, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.view_sizes import require_sizes
from lejepa_med.config.evaluation import EncoderConfig, RandomEncoder, RunEncoder, ScratchEncoder, Timm2dEncoder
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.evaluation.encoders import fresh_backbone
from lejepa_med.evaluation.slices import load_timm2d
from lejepa_med.weights import load_backbone


def require_loadable(encoders: Sequence[EncoderConfig]) -> None:
    """Loads every network as its cells will, strictly, and forgets it; a file that several encoders name once.

    A `timm2d` encoder whose weights are not given is left alone: its rows say so.

    Raises:
        UserError: a file is missing, damaged or does not fit, or no such network exists; it names the encoder.
    """
    loaded: set[tuple[str, ...]] = set()
    for encoder in encoders:
        names = _network(encoder)
        if names in loaded:
            continue
        try:
            _load(encoder)
        except UserError as error:
            raise type(error)(f"encoder {encoder.name}: {error}") from None
        loaded.add(names)


def _network(encoder: EncoderConfig) -> tuple[str, ...]:
    """What decides whether an encoder's network can be made."""
    match encoder:
        case RunEncoder():
            return "run", str(encoder.path)
        case RandomEncoder() | ScratchEncoder():
            return "fresh", str(encoder.like)
        case Timm2dEncoder():
            return "timm2d", encoder.model, encoder.positions, str(encoder.weights), str(encoder.image_size)
        case _:
            return ("no network",)


def _load(encoder: EncoderConfig) -> None:
    match encoder:
        case RunEncoder():
            load_backbone(encoder.path)
        case RandomEncoder() | ScratchEncoder():
            fresh_backbone(encoder.like, encoder.seed)
        case Timm2dEncoder() if encoder.weights is not None:
            _require_size(load_timm2d(encoder), encoder)


def _require_size(network: Backbone, encoder: Timm2dEncoder) -> None:
    side = encoder.image_size
    try:
        require_sizes(network, [(side, side)], encoder.model)
    except ConfigError:
        raise ConfigError(
            f"{encoder.model} takes no image of {side} x {side} pixels; change image_size (DINOv2: a multiple of 14)"
        ) from None
