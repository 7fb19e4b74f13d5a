"""What no view can be cut from is one sentence that names the series; what can is what one would expect."""

from __future__ import annotations

import pytest
import torch

from lejepa_med.config import ViewsConfig
from lejepa_med.errors import DataError
from lejepa_med.views import BatchedMultiCrop, SampleFacts, kernel

CONFIG = ViewsConfig.model_validate(
    {
        "num_local": 2,
        "global_size": (12, 12, 12),
        "local_size": (6, 6, 6),
        "global_pitch_mm": None,
        "local_pitch_mm": None,
        "tilt_probability": 0.5,
    }
)
FACTS = SampleFacts(keys=["aa11", "bb22"])


def views(images: torch.Tensor, channels: int | None = 1, ct: bool = False, how: str = "auto") -> list[torch.Tensor]:
    crop = BatchedMultiCrop(CONFIG, channels, how)  # type: ignore[arg-type]
    flags = torch.full((len(images),), ct)
    return crop(images, (1.0,) * (images.ndim - 2), flags, ("bad",), 0, FACTS)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2, 1, 24, 24, 9), "series aa11: a base crop of 24 x 24 x 9 voxels is smaller than a view of 12 x 12 x 12"),
        ((2, 1, 24, 24, 1), "series aa11: a base crop of 24 x 24 x 1 voxels is smaller than a view"),
        ((2, 4, 24, 24, 24), "series aa11: 4 channels, but 1 expected"),
        ((2, 1, 24, 24), "series aa11: 2D, but the views are 3D"),
    ],
)
def test_wrong_shapes(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        views(torch.zeros(shape, dtype=torch.uint8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_volume_with_nan_is_named(value: float) -> None:
    images = torch.rand(2, 1, 24, 24, 24)
    images[1, 0, 3, 4, 5] = value
    with pytest.raises(DataError, match="series bb22: NaN or infinite"):
        views(images)


@pytest.mark.parametrize("how", ["torch", "cpp"])
@pytest.mark.parametrize("value", [0, 77, -1000])
def test_a_constant_volume_gives_finite_views(value: int, how: str) -> None:
    if how == "cpp" and not kernel.available():
        pytest.skip("needs a C++ compiler")
    for group in views(torch.full((2, 1, 24, 24, 24), value, dtype=torch.int16), ct=value < 0, how=how):
        assert bool(torch.isfinite(group).all())
        assert float(group.min()) >= 0 and float(group.max()) <= 1


def test_lung_counts_as_body_and_air_does_not() -> None:
    """Half of the base crop is air: views leave it for lung of -850 HU as they do for tissue."""
    config = CONFIG.model_copy(update={"min_body": 1.0, "redraws": 20, "num_local": 8, "tilt_probability": 0.0})
    config = config.model_copy(update={"blur_probability": 0.0, "thick_slice_probability": 0.0})
    config = config.model_copy(update={"ct": config.ct.model_copy(update={"noise_probability": 0.0})})
    wide = config.ct.model_copy(update={"noise_probability": 0.0, "window_centre_hu": (-900.0, -900.0)})
    config = config.model_copy(update={"ct": wide.model_copy(update={"window_width_hu": (400.0, 400.0)})})
    shares = []
    for inside in (-850, 40, -1000):
        images = torch.full((40, 1, 32, 32, 32), -1000, dtype=torch.int16)
        images[:, :, :16] = inside
        made = BatchedMultiCrop(config)(images, (1.0,) * 3, torch.ones(40, dtype=torch.bool), ("lung",))[1]
        shares.append(float((made > 0.3).float().mean()))  # air shows as .25
    assert shares[0] == pytest.approx(shares[1], abs=0.02)
    assert shares[0] > 0.9
    assert shares[2] == 0


def test_without_facts_nan_reaches_the_views_where_training_stops_on_it() -> None:
    images = torch.rand(1, 1, 24, 24, 24) * 255
    images[0, 0, 8:16, 8:16, 8:16] = float("nan")
    (first, _) = BatchedMultiCrop(CONFIG, kernel="torch")(images, (1.0,) * 3, torch.tensor([False]), ("bad",))
    assert bool(first.isnan().any())
    if kernel.available():
        (first, _) = BatchedMultiCrop(CONFIG, kernel="cpp")(images, (1.0,) * 3, torch.tensor([False]), ("bad",))
        assert bool(first.isnan().any())
