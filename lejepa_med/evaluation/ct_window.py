"""The CT window of encoders that bring none: that of the first run of ours, so that none wins by a wider window."""

from __future__ import annotations

from lejepa_med.config.evaluation import (
    BenchmarkConfig,
    EncoderConfig,
    PixelsEncoder,
    RunEncoder,
    ShapeEncoder,
    Timm2dEncoder,
    role_of,
)
from lejepa_med.errors import WeightsError
from lejepa_med.spec import InferenceSpec, Spec
from lejepa_med.weights import find_weights, read_description


def with_ct_windows(config: BenchmarkConfig) -> BenchmarkConfig:
    """The same benchmark with `ct_window_hu` filled in wherever it is null; what is given stays.

    Raises:
        WeightsError: the first run has no readable weight file.
    """
    runs = sorted(  # stable: the run that the others are compared with comes first
        (one for one in config.encoders if isinstance(one, RunEncoder)), key=lambda one: role_of(one) != "ours"
    )
    window = window_of(runs[0]) if runs else InferenceSpec().ct_window_hu
    encoders = tuple(_with_window(encoder, window) for encoder in config.encoders)
    return config.model_copy(update={"encoders": encoders})


def window_of(run: RunEncoder) -> tuple[float, float]:
    """What the weights of a run say of CT, in HU."""
    try:
        description = read_description(find_weights(run.path))
    except WeightsError as error:
        raise WeightsError(f"encoder {run.name}: {error}") from None
    return Spec.model_validate(description["spec"]).inference.ct_window_hu


def _with_window(encoder: EncoderConfig, window: tuple[float, float]) -> EncoderConfig:
    if isinstance(encoder, PixelsEncoder | ShapeEncoder | Timm2dEncoder) and encoder.ct_window_hu is None:
        return encoder.model_copy(update={"ct_window_hu": window})
    return encoder
