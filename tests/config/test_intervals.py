"""Bounds that contradict each other, or that no scan has, are one sentence."""

from __future__ import annotations

import pytest

from lejepa_med.config import ConfigError, IndexSettings, PrepareConfig, load_config
from lejepa_med.spec import InferenceSpec, PreprocessSpec


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("preprocess.ct_range_hu=[5, 1]", "`preprocess.ct_range_hu`: the lower bound comes first, got 5 and 1"),
        ("preprocess.ct_range_hu=[5, 5]", "the lower bound comes first"),
        ("preprocess.ct_range_hu=[-1024, 1e6]", "`preprocess.ct_range_hu.1`: input should be less than or equal to"),
        ("preprocess.ct_range_hu=[-.inf, 5]", "`preprocess.ct_range_hu.0`"),
        ("preprocess.mri_percentiles=[99.5, 0.5]", "the lower bound comes first, got 99.5 and 0.5"),
        ("preprocess.mri_percentiles=[0.5, 101]", "`preprocess.mri_percentiles.1`"),
        ("preprocess.spacing_mm=[1, 1, .inf]", "`preprocess.spacing_mm.2`: input should be a finite number"),
        ("preprocess.spacing_mm=[1, 1, .nan]", "`preprocess.spacing_mm.2`"),
        ("preprocess.foreground_margin_mm=.inf", "`preprocess.foreground_margin_mm`"),
    ],
)
def test_prepare(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(PrepareConfig, None, [override])
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["min_in_plane_mm=2", "max_in_plane_mm=1"],
        ["min_slice_distance_mm=.inf"],
        ["max_in_plane_mm=.nan"],
        ["min_extent_mm=[0, 0, .inf]"],
        ["min_extent_mm=[0, 0, -1]"],
        ["decode=some"],
    ],
)
def test_index(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="config overrides"):
        load_config(IndexSettings, None, overrides)


@pytest.mark.parametrize(
    "values", [{"ct_window_hu": (240, -160)}, {"window": (96,)}, {"window": (0, 96)}, {"planes": ()}]
)
def test_inference(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        InferenceSpec.model_validate(values)


def test_the_defaults_and_their_key_are_as_before() -> None:
    """Entries of a cache are addressed by this key."""
    assert PreprocessSpec().key() == "693feb1368d95882" == PreprocessSpec(ct_range_hu=(-1024, 3071)).key()
    assert PreprocessSpec.model_validate(PreprocessSpec().model_dump(mode="json")) == PreprocessSpec()
