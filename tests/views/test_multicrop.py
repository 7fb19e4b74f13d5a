"""One draw, two ways: a batch equals its items, mixed modalities equal pure ones, and a view has one cause only."""

from __future__ import annotations

import pytest
import torch
from monai.transforms import Compose, Lambdad

from lejepa_med.config import ViewsConfig
from lejepa_med.views import BatchedMultiCrop, MultiCropd

SPACING = (1.0, 1.2, 0.9)
TINY_3D = ViewsConfig.model_validate(
    {
        "num_global": 2,
        "num_local": 3,
        "global_size": (12, 11, 10),
        "local_size": (6, 5, 7),
        "global_pitch_mm": None,
        "local_pitch_mm": None,
        "flip_left_right": 0.5,
        "flip_other": 0.5,
        "blur_probability": 0.5,
        "mri": {"noise_probability": 1},
        "ct": {"noise_probability": 1},
    }
)
TINY_2D = TINY_3D.model_copy(update={"global_size": (12, 11), "local_size": (6, 5)})


def base_crops(count: int, axes: int = 3, ct: bool = False, seed: int = 0) -> torch.Tensor:
    values = torch.rand(count, 1, *(24, 20, 18)[:axes], generator=torch.Generator().manual_seed(seed))
    return (values * 2000 - 1000).to(torch.int16) if ct else (values * 255).to(torch.uint8)


def make(config: ViewsConfig, images: torch.Tensor, ct: bool = False, step: int = 0, first: int = 0, seed: int = 0):  # type: ignore[no-untyped-def]
    flags, axes = torch.full((len(images),), ct), images.ndim - 2
    return BatchedMultiCrop(config)(images, SPACING[:axes], flags, ("views", seed, step), first)


@pytest.mark.parametrize(("config", "ct"), [(TINY_3D, False), (TINY_3D, True), (TINY_2D, False)])
def test_shapes_and_range(config: ViewsConfig, ct: bool) -> None:
    views = make(config, base_crops(5, len(config.global_size), ct), ct)
    assert [tuple(v.shape) for v in views] == [(2, 5, 1, *config.global_size), (3, 5, 1, *config.local_size)]
    for group in views:
        assert group.dtype == torch.float32
        assert 0 <= float(group.min()) < 0.2
        assert 0.6 < float(group.max()) <= 1


@pytest.mark.parametrize(("config", "ct"), [(TINY_3D, False), (TINY_3D, True), (TINY_2D, False)])
def test_batched_equals_per_item(config: ViewsConfig, ct: bool) -> None:
    axes = len(config.global_size)
    images = base_crops(6, axes, ct)
    batched = make(config, images, ct, step=7)
    transform = MultiCropd("image", config, SPACING, is_ct=ct, draw_key="draw")
    for position, image in enumerate(images):
        values = image.float() if ct else image.float() / 255
        item = transform({"image": values, "draw": ("views", 0, 7, position)})
        torch.testing.assert_close(item["global_views"], batched[0][:, position])
        torch.testing.assert_close(item["local_views"], batched[1][:, position])


def test_views_do_not_depend_on_the_rest_of_the_batch() -> None:
    images = base_crops(9)
    whole = make(TINY_3D, images)
    parts = [make(TINY_3D, images[:2]), make(TINY_3D, images[2:], first=2)]
    for kind in range(2):
        together = torch.cat([part[kind] for part in parts], dim=1)
        torch.testing.assert_close(whole[kind], together, rtol=0, atol=1e-6)


def test_views_depend_on_seed_step_and_position_and_on_no_global_state() -> None:
    images = base_crops(1).expand(2, -1, -1, -1, -1)
    torch.manual_seed(1)
    first = make(TINY_3D, images)
    torch.manual_seed(2)
    again = make(TINY_3D, images)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.allclose(first[0][:, 0], first[0][:, 1])
    assert not torch.allclose(first[0], make(TINY_3D, images, step=1)[0])
    assert not torch.allclose(first[0], make(TINY_3D, images, seed=1)[0])
    alone = make(TINY_3D, images[1:], first=1)[0][:, 0]
    torch.testing.assert_close(first[0][:, 1], alone, rtol=0, atol=1e-6)


def test_mixed_batch_of_mri_and_ct_equals_separate_batches() -> None:
    flags = torch.tensor([True, False, False, True, False])
    mri, ct = base_crops(5).float(), base_crops(5, ct=True).float()
    mixed = torch.where(flags.view(-1, 1, 1, 1, 1), ct, mri)
    views = BatchedMultiCrop(TINY_3D)(mixed, SPACING, flags, ("views", 0, 0))
    as_mri, as_ct = make(TINY_3D, mri), make(TINY_3D, ct, ct=True)
    for kind in range(2):
        expected = torch.where(flags.view(1, -1, 1, 1, 1, 1), as_ct[kind], as_mri[kind])
        torch.testing.assert_close(views[kind], expected)


def test_stored_types_give_the_same_views() -> None:
    images = base_crops(3)
    for stored, as_float in zip(make(TINY_3D, images), make(TINY_3D, images.float()), strict=True):
        assert torch.equal(stored, as_float)


def test_2d_views_equal_3d_views_of_their_draw_on_one_slice() -> None:
    """The picture as the only slice of a slab: one matrix more, the same weights, the same values."""
    quiet = dict.fromkeys(("gamma_probability", "bias_probability", "contrast_probability", "noise_probability"), 0)
    config = TINY_2D.model_copy(update={"mri": TINY_2D.mri.model_copy(update=quiet)})
    deep = config.model_copy(update={"global_size": (*config.global_size, 1)})
    images, crop = base_crops(2, axes=2), BatchedMultiCrop(config)
    flags, cells = torch.zeros(2, dtype=torch.bool), torch.ones(2, 8, 8)
    keys = [torch.Generator().manual_seed(position) for position in range(2)]
    flat = crop.draw("global", keys, tuple(images.shape[2:]), SPACING[:2], flags, cells)
    ones = torch.ones(2, 2, 1)
    boxes = type(flat.boxes)(
        torch.cat([flat.boxes.start, 0 * ones], -1),
        torch.cat([flat.boxes.length, ones], -1),
        torch.cat([flat.boxes.blur, ones], -1),
    )
    slab = BatchedMultiCrop(deep).apply(images[..., None], type(flat)(boxes, flat.intensity), "global", flags)
    torch.testing.assert_close(slab[..., 0], crop.apply(images, flat, "global", flags))


def test_without_local_views_there_is_one_group() -> None:
    assert len(make(TINY_3D.model_copy(update={"num_local": 0}), base_crops(2))) == 1


def test_monai_pipeline_with_its_own_random_state() -> None:
    transform = MultiCropd("image", TINY_3D, SPACING)
    pipeline = Compose([Lambdad("image", lambda x: x / 255), transform])
    item = {"image": base_crops(1)[0].float(), "name": "kept"}
    pipeline.set_random_state(seed=3)
    first, second = pipeline(item), pipeline(item)
    pipeline.set_random_state(seed=3)
    again = pipeline(item)
    assert torch.equal(first["global_views"], again["global_views"])
    assert not torch.allclose(first["global_views"], second["global_views"])
    assert first["name"] == "kept"
    assert item.keys() == {"image", "name"}
