"""What no view can be cut from is one sentence that names the series; what can is what one would expect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lejepa_med.config import ViewsConfig
from lejepa_med.errors import DataError
from lejepa_med.views import BatchedMultiCrop, MultiCropd, SampleFacts, kernel

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


STORED = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64, torch.bool)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("how", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", [*STORED, *FLOATS])
def test_every_real_type_gives_the_views_of_its_values(dtype: torch.dtype, how: str) -> None:
    if how == "cpp" and not kernel.available():
        pytest.skip("needs a C++ compiler")
    values = (torch.rand(2, 1, 24, 24, 24, generator=torch.Generator().manual_seed(2)) * 120).to(dtype)
    for one, other in zip(views(values, how=how), views(values.to(torch.float32), how=how), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_complex_values_are_refused() -> None:
    with pytest.raises(DataError, match="series aa11: complex values; take their magnitude"):
        views(torch.zeros(2, 1, 24, 24, 24, dtype=torch.complex64))


CUBE = np.random.default_rng(0).random((1, 24, 24, 24), dtype=np.float32)


def item_views(image: Any, named: bool = True, ct: bool = False) -> Any:
    transform = MultiCropd("image", CONFIG, is_ct=ct).set_random_state(seed=1)
    return transform({"image": image, "series_key": "cc33"} if named else {"image": image})["global_views"]


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (CUBE[:, :9], "a base crop of 9 x 24 x 24 voxels is smaller than a view of 12 x 12 x 12"),
        (CUBE[..., :1], "a base crop of 24 x 24 x 1 voxels is smaller than a view"),
        (CUBE[0], "2D, but the views are 3D; set views and model, or add the axis of channels"),
        (CUBE[0, 0, 0], "0D, but the views are 3D"),
        (np.float32(3), "MRI and images are expected in"),
        (np.where(CUBE > 0.99, np.nan, CUBE), "NaN or infinite values"),
        (np.where(CUBE > 0.99, -np.inf, CUBE), "NaN or infinite values"),
        (CUBE * 255, r"MRI and images are expected in \[0, 1\]; scale them first"),
        ((CUBE * 255).astype(np.uint8), r"MRI and images are expected in \[0, 1\]; scale them first"),
        (CUBE.astype(np.complex64), "complex values"),
        (np.array(["a"]), "expected an array of numbers, got a ndarray"),
        (None, "expected an array of numbers, got a NoneType"),
    ],
)
def test_an_item_that_cannot_be_used_is_one_sentence_with_its_key(image: Any, text: str) -> None:
    for named, name in ((True, "series cc33: "), (False, "the sample: ")):
        with pytest.raises(DataError, match=name + text) as caught:
            item_views(image, named)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ct", [False, True])
def test_a_constant_item_gives_constant_or_noisy_views_in_range(ct: bool) -> None:
    made = item_views(np.full((1, 24, 24, 24), -1000.0 if ct else 0.0), ct=ct)
    assert bool(torch.isfinite(made).all())
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    assert float(made.std()) < 0.1


def test_arrays_in_any_order_of_bytes_and_axes_give_the_same_views() -> None:
    expected = item_views(torch.from_numpy(CUBE))
    for image in (CUBE, CUBE.astype(">f4"), CUBE[:, ::-1].copy()[:, ::-1], CUBE.astype(np.float64), CUBE.tolist()):
        torch.testing.assert_close(item_views(image), expected)


def test_values_a_little_outside_are_clipped() -> None:
    """As percentiles leave them: a few bright voxels beyond 1."""
    image = CUBE.copy()
    image[CUBE > 0.995] = 3.0
    made = item_views(image)
    assert float(made.min()) >= 0 and float(made.max()) <= 1
