"""One draw, every way: per item, batched, C++ or PyTorch, CPU or GPU, alone or inside a MONAI pipeline: to 1e-4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, ScaleIntensityd

from lejepa_med.config import ViewsConfig
from lejepa_med.views import BatchedMultiCrop, MultiCropd, SampleFacts, kernel

OFF_MRI = dict.fromkeys((f"{name}_probability" for name in ("gamma", "bias", "contrast", "noise", "gibbs")), 0)
OFF: dict[str, Any] = {
    "num_local": 2,
    "global_size": (12, 12, 12),
    "local_size": (7, 6, 6),
    "global_pitch_mm": None,
    "local_pitch_mm": None,
    "blur_probability": 0,
    "thick_slice_probability": 0,
    "mri": OFF_MRI,
    "ct": {"noise_probability": 0},
}
ALONE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "flips": {"flip_left_right": 1, "flip_other": 1},
    "blur": {"blur_probability": 1},
    "thick slices": {"thick_slice_probability": 1},
    "rot90": {"rot90_probability": 1, "rot90_axes": "any"},
    "tilt": {"tilt_probability": 1, "tilt_degrees": 30},
    "shear": {"tilt_probability": 1, "tilt_degrees": 0, "tilt_shear": 0.2},
    "gamma": {"mri": OFF_MRI | {"gamma_probability": 1}},
    "bias": {"mri": OFF_MRI | {"bias_probability": 1}},
    "contrast": {"mri": OFF_MRI | {"contrast_probability": 1}},
    "noise": {"mri": OFF_MRI | {"noise_probability": 1}, "ct": {"noise_probability": 1}},
    "gibbs": {"mri": OFF_MRI | {"gibbs_probability": 1}},
    "one pitch": {"scale": "physical_mm"},
}
ALONE["everything"] = {
    **{key: value for settings in ALONE.values() for key, value in settings.items() if key != "scale"},
    "blur_probability": 0.5,
    "thick_slice_probability": 0.5,
    "tilt_degrees": 30,
    "mri": dict.fromkeys(OFF_MRI, 1),
}


def config_of(name: str, axes: int = 3) -> ViewsConfig:
    sizes = {} if axes == 3 else {"global_size": (12, 12), "local_size": (7, 6)}
    return ViewsConfig.model_validate(OFF | sizes | ALONE[name])


def smooth(count: int, axes: int, ct: bool = False, channels: int = 1) -> torch.Tensor:
    """Base crops as stored, with structure at some voxels."""
    values = torch.rand(count, channels, *(26, 23, 20)[:axes], generator=torch.Generator().manual_seed(1))
    pool = torch.nn.functional.avg_pool3d if axes == 3 else torch.nn.functional.avg_pool2d
    values = pool(values, 3, 1, 1)
    return (values * 2000 - 1000).to(torch.int16) if ct else (values * 255).to(torch.uint8)


def spacing(axes: int) -> tuple[float, ...]:
    return (1.0, 1.2, 0.9)[:axes]


def batched(config: ViewsConfig, images: torch.Tensor, ct: bool = False, how: str = "auto") -> list[torch.Tensor]:
    crop = BatchedMultiCrop(config, kernel=how)  # type: ignore[arg-type]
    return crop(images, spacing(images.ndim - 2), torch.full((len(images),), ct), ("views", 0, 5))


@pytest.mark.parametrize("ct", [False, True])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", ALONE)
def test_item_by_item_equals_batched_and_cpp_equals_pytorch(name: str, axes: int, ct: bool) -> None:
    config, images = config_of(name, axes), smooth(3, axes, ct)
    views = batched(config, images, ct, "torch")
    if kernel.available():
        for one, other in zip(views, batched(config, images, ct, "cpp"), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    transform = MultiCropd("image", config, spacing(axes), is_ct=ct, draw_key="draw")
    for position, image in enumerate(images):
        item = transform({"image": image if ct else image.float() / 255, "draw": ("views", 0, 5, position)})
        torch.testing.assert_close(item["global_views"], views[0][:, position], rtol=0, atol=1e-4)
        torch.testing.assert_close(item["local_views"], views[1][:, position], rtol=0, atol=1e-4)


@pytest.mark.parametrize("ct", [False, True])
@pytest.mark.parametrize(("axes", "channels"), [(2, 2), (2, 3), (3, 2), (3, 3)])
@pytest.mark.parametrize("how", ["separate", "shared", "auto"])
def test_several_channels_and_a_sequence_agree_as_well(how: str, axes: int, channels: int, ct: bool) -> None:
    """Every augmentation on, of which intensity is per channel or shared; `flair` has settings of its own."""
    values = config_of("everything", axes).model_dump() | {"intensity_channels": how}
    config = ViewsConfig.model_validate(values | {"mri_by_sequence": {"flair": {"gamma": [2.0, 2.1]}}})
    images, facts = smooth(3, axes, ct, channels), SampleFacts(sequences=["t1", "flair", "flair"])
    views, made = [], torch.full((3,), ct)
    for kernels in ("torch", "cpp") if kernel.available() else ("torch",):
        crop = BatchedMultiCrop(config, kernel=kernels)  # type: ignore[arg-type]
        views.append(crop(images, spacing(axes), made, ("views", 0, 5), 0, facts))
    for one, other in zip(views[0], views[-1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    for position, sequence in enumerate(facts.sequences or []):
        transform = MultiCropd("image", config, spacing(axes), ct, "draw", sequence)
        image = images[position] if ct else images[position].float() / 255
        item = transform({"image": image, "draw": ("views", 0, 5, position)})
        torch.testing.assert_close(item["global_views"], views[0][0][:, position], rtol=0, atol=1e-4)
        torch.testing.assert_close(item["local_views"], views[0][1][:, position], rtol=0, atol=1e-4)


def test_every_probability_of_the_config_is_among_those_compared() -> None:
    """A new augmentation has to be added to ALONE."""
    config = config_of("everything")
    for settings in (config, config.mri, config.ct):
        for name in type(settings).model_fields:
            if name.endswith("_probability"):
                assert getattr(settings, name) > 0, name
    assert config.flip_left_right and config.flip_other and config.tilt_shear and config.tilt_degrees


@pytest.mark.parametrize("name", [name for name in ALONE if name not in ("nothing", "one pitch")])
def test_every_augmentation_changes_the_views(name: str) -> None:
    images = smooth(3, 3)
    plain, changed = (torch.cat([v.flatten() for v in batched(config_of(n), images)]) for n in ("nothing", name))
    assert float((plain - changed).abs().mean()) > 2e-3


@pytest.mark.gpu
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", ALONE)
def test_gpu_equals_cpu(name: str, axes: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    config, images = config_of(name, axes), smooth(3, axes)
    for one, other in zip(batched(config, images), batched(config, images.cuda()), strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", ["torch", "cpp"])
def test_channels_share_their_geometry(how: str) -> None:
    if how == "cpp" and not kernel.available():
        pytest.skip("needs a C++ compiler")
    config = config_of("everything").model_copy(update={"mri": config_of("nothing").mri})
    images = smooth(3, 3, channels=2)
    views = batched(config, images, how=how)
    for channel in range(2):
        alone = batched(config, images[:, channel : channel + 1].contiguous(), how=how)
        for group, one in zip(views, alone, strict=True):
            torch.testing.assert_close(group[:, :, channel : channel + 1], one, rtol=0, atol=1e-5)


def test_channels_look_different_unless_shared() -> None:
    same = smooth(2, 3).expand(-1, 2, -1, -1, -1).contiguous()
    config = config_of("gamma")
    separate = batched(config, same)[0]
    shared = batched(config.model_copy(update={"intensity_channels": "shared"}), same)[0]
    alone = batched(config, same[:, :1].contiguous())[0]
    torch.testing.assert_close(separate[:, :, :1], alone)  # the first channel does not depend on the others
    assert float((separate[:, :, 0] - separate[:, :, 1]).abs().mean()) > 0.01
    torch.testing.assert_close(shared[:, :, 0], shared[:, :, 1])
    colours = smooth(2, 2).expand(-1, 3, -1, -1).contiguous()
    picture = batched(config_of("gamma", 2), colours)[0]
    torch.testing.assert_close(picture[:, :, 0], picture[:, :, 2])  # grey stays grey


def test_new_augmentations_do_not_change_what_the_others_draw() -> None:
    base = ViewsConfig.model_validate(OFF | {"mri": {}, "flip_other": 0.5, "blur_probability": 0.5})
    more = base.model_copy(update={"rot90_probability": 0.0, "tilt_probability": 1.0, "tilt_degrees": 0.0})
    images = smooth(3, 3)
    crop, other = BatchedMultiCrop(base), BatchedMultiCrop(more)
    args = (tuple(images.shape[2:]), spacing(3), torch.zeros(3, dtype=torch.bool), torch.ones(3, 8, 8, 8))
    keys = [[torch.Generator().manual_seed(s) for s in range(3)] for _ in range(2)]
    one, two = crop.draw("local", keys[0], *args), other.draw("local", keys[1], *args)
    assert torch.equal(one.boxes.length, two.boxes.length)
    assert torch.equal(one.boxes.blur, two.boxes.blur)
    torch.testing.assert_close(one.boxes.start, two.boxes.start)
    assert torch.equal(one.intensity.gamma, two.intensity.gamma)
    assert torch.equal(one.intensity.bias, two.intensity.bias)


def test_spacing_and_sequence_per_sample() -> None:
    """A batch of two spacings and sequences equals two batches of one."""
    sequences = {"flair": {"gamma": [3.0, 3.1]}}
    config = ViewsConfig.model_validate(
        OFF | {"scale": "physical_mm", "mri": OFF_MRI | {"gamma_probability": 1}, "mri_by_sequence": sequences}
    )
    images, flags = smooth(2, 3), torch.zeros(2, dtype=torch.bool)
    grids = torch.tensor([[1.0, 1.0, 1.0], [0.8, 0.8, 1.6]])
    both = BatchedMultiCrop(config)(images, grids, flags, ("k",), 0, SampleFacts(sequences=["t1", "flair"]))
    for row, name in enumerate(("t1", "flair")):
        facts, own = SampleFacts(sequences=[name]), tuple(grids[row].tolist())
        alone = BatchedMultiCrop(config)(images[row : row + 1], own, flags[:1], ("k",), row, facts)
        for group, one in zip(both, alone, strict=True):
            torch.testing.assert_close(group[:, row], one[:, 0], rtol=0, atol=1e-5)
    as_t1 = BatchedMultiCrop(config)(images, grids, flags, ("k",))
    torch.testing.assert_close(as_t1[0][:, 0], both[0][:, 0])
    assert float((as_t1[0][:, 1] - both[0][:, 1]).mean()) > 0.05  # a stronger gamma is darker


def test_thick_slices_along_the_axis_of_acquisition() -> None:
    config, images = config_of("thick slices"), smooth(3, 3)
    facts = SampleFacts(slice_axis=torch.tensor([2, 0, -1]))
    keys = [torch.Generator().manual_seed(s) for s in range(3)]
    args = (tuple(images.shape[2:]), spacing(3), torch.zeros(3, dtype=torch.bool), torch.ones(3, 8, 8, 8))
    blur = BatchedMultiCrop(config).draw("local", keys, *args, facts=facts).boxes.blur
    assert bool((blur[0, :, 2] > 1).all() and (blur[0, :, :2] == 1).all())
    assert bool((blur[1, :, 0] > 1).all() and (blur[1, :, 1:] == 1).all())
    assert bool(((blur[2] > 1).sum(-1) == 1).all())


def pipeline(config: ViewsConfig) -> Compose:
    return Compose(
        [
            LoadImaged("image", reader="NibabelReader"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            ScaleIntensityd("image"),
            MultiCropd("image", config, spacing(3)),
        ]
    )


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # of LoadImaged, about a decoder not needed here
def test_monai_pipeline_with_loader_workers(tmp_path: Path) -> None:
    """Files, MONAI's own transforms and workers: reproducible, and the views are those of the oriented array."""
    files = []
    for number, image in enumerate(smooth(4, 3)):
        file = tmp_path / f"{number}.nii.gz"
        nib.save(nib.Nifti1Image(image[0].numpy().astype(np.float32), np.diag([-1.0, -1.0, 1.0, 1.0])), file)
        files.append({"image": str(file)})
    config, found = config_of("everything"), []
    for workers in (2, 2):
        transform = pipeline(config).set_random_state(seed=3)
        torch.manual_seed(0)
        loader = DataLoader(Dataset(files, transform), batch_size=2, num_workers=workers)
        found.append([batch["global_views"] for batch in loader])
    assert [tuple(views.shape) for views in found[0]] == [(2, 2, 1, 12, 12, 12)] * 2
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not torch.allclose(found[0][0][0], found[0][0][1])
    plain = pipeline(config_of("nothing")).set_random_state(seed=1)
    values = smooth(4, 3)[0].float().flip(1, 2)
    expected = MultiCropd("image", config_of("nothing"), spacing(3)).set_random_state(seed=1)
    scaled = (values - values.min()) / (values.max() - values.min())
    seed_of = plain.transforms[-1].R.get_state()[1]
    expected.R.set_state(plain.transforms[-1].R.get_state())
    assert (seed_of == expected.R.get_state()[1]).all()
    views = plain(files[0])["global_views"]
    torch.testing.assert_close(views, expected({"image": scaled})["global_views"], rtol=0, atol=1e-5)


def test_a_metatensor_gives_plain_tensors_of_the_same_values() -> None:
    image = smooth(1, 3)[0].float() / 255
    made = []
    for value in (image, MetaTensor(image)):
        transform = MultiCropd("image", config_of("everything"), spacing(3)).set_random_state(seed=5)
        made.append(transform({"image": value})["global_views"])
    assert type(made[1]) is torch.Tensor
    assert torch.equal(*made)
