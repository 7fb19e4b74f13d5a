"""Every config in `configs/pretrain/` makes its views from scans prepared as it says, and they show something."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from lejepa_med.config import PrepareConfig, PretrainConfig, load_config
from lejepa_med.data.dataset import Item, ListSource, StepDataset
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.sampler import StepSampler
from lejepa_med.data.synthetic import body_phantom, draw_body, draw_scan, draw_subject, head_phantom
from lejepa_med.data.training_source import base_size
from lejepa_med.data.volume import Volume
from lejepa_med.views import BatchedMultiCrop, SampleFacts

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted((CONFIGS / "pretrain").glob("*.yaml"))
SCANS = {
    "abdomen": ("trunk", "body_ct"),
    "chest": ("trunk", "body_ct"),
    "hippo": ("crop", "brain_mri_1mm"),
    "image": ("picture", "images_2d"),
}


@cache
def scan(kind: str) -> Item:
    """One prepared phantom: a head, a trunk, a small crop of a head or a picture of one."""
    prepare = next((name for scanned, name in SCANS.values() if scanned == kind), "brain_mri_1mm")
    spec = load_config(PrepareConfig, CONFIGS / "prepare" / f"{prepare}.yaml").preprocess
    if kind == "trunk":
        volume = body_phantom(draw_body(1), (3.0, 3.0, 3.0))
    else:
        volume = head_phantom(draw_subject(1), draw_scan(1, "T1w"), (2.0, 2.0, 2.0))
    if kind == "crop":
        sides = zip(volume.array.shape, (9, 16, 9), strict=True)
        middle = tuple(slice(side // 2 - 9, side // 2 + half) for side, half in sides)
        volume, spec = Volume(volume.array[middle], volume.affine, "mri"), spec.model_copy(update={"foreground": False})
    if kind == "picture":
        shade = volume.array[:, :, volume.array.shape[2] // 2]
        volume = Volume((shade / shade.max() * 255).astype(np.uint8), np.eye(4), "image")
    prepared = prepare_volume(volume, spec)
    spacing = prepared.spacing_mm or (1.0,) * prepared.array.ndim
    return Item(prepared.array[None], spacing, prepared.modality == "ct", kind)


def dataset_for(config: PretrainConfig, file: Path) -> StepDataset:
    item = scan(next((kind for start, (kind, _) in SCANS.items() if file.stem.startswith(start)), "head"))
    if config.data.kind == "slices":
        item = Item(item.array[..., item.array.shape[3] // 2], item.spacing_mm[:2], item.is_ct, item.key)
    source = ListSource([item])
    size = base_size(config, source)
    if config.views.base_crop_mm is not None:  # as of a cache: smaller scans are padded
        size = tuple(round(config.views.base_crop_mm / mm) for mm in item.spacing_mm)
    return StepDataset(source, StepSampler(source.patients, 2, config.seed), size, config.seed)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_makes_views_that_show_something(file: Path) -> None:
    config = load_config(PretrainConfig, file)
    batch = dataset_for(config, file)[0]
    views = BatchedMultiCrop(config.views)(
        batch.images, batch.spacing_mm, batch.is_ct, ("views", 0, 0), 0, SampleFacts(keys=batch.keys)
    )
    sizes = ((config.views.num_global, config.views.global_size), (config.views.num_local, config.views.local_size))
    assert [tuple(group.shape) for group in views] == [(number, 2, 1, *size) for number, size in sizes]
    for group in views:
        assert bool(torch.isfinite(group).all())
        shown = group.flatten(0, 1).flatten(1)
        assert float(shown.std(1).min()) > 0.01  # no view of air alone
        assert float((shown > 0.02).float().mean(1).median()) > 0.3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_ct_window_lies_between_lung_and_soft_tissue(file: Path) -> None:
    """It would show a silhouette: lung (-850 HU) black, fat (-100 HU) and all else white."""
    ct = load_config(PretrainConfig, file).views.ct
    (first, last), narrow = ct.window_centre_hu, ct.window_width_hu[0]
    centres = torch.linspace(first, last, 1000)
    between = (centres - narrow / 2 >= -820) & (centres + narrow / 2 <= -120)
    assert not between.any()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_contact_sheet_is_in_the_documentation(file: Path) -> None:
    docs = CONFIGS.parent / "docs"
    picture = docs / "images" / "views" / f"{file.stem}.png"
    assert picture.stat().st_size < 300_000, "python benchmarks/views_sheets.py --out docs/images/views"
    page = (docs / "views.md").read_text(encoding="utf-8")
    assert f"images/views/{picture.name}" in page and f"`{file.name}`" in page
