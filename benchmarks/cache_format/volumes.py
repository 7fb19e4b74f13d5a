"""Real and synthetic prepared volumes, and the boxes that training reads from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cache_format.formats import Array, Box

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@dataclass(frozen=True)
class VolumeSet:
    """Prepared volumes of one kind, and the pretraining config whose base crops and views are read from them."""

    name: str
    arrays: list[Array]
    spacing_mm: float
    config: str


def real_sets(data: Path, work: Path) -> Iterator[VolumeSet]:
    """Through the project's own `index` and `prepare`."""
    from lejepa_med.config import IndexSettings, PrepareConfig, load_config, validate
    from lejepa_med.data import preparing
    from lejepa_med.data.cache import Cache
    from lejepa_med.data.index import archive

    plan = [
        ("heads, 1 mm, uint8", ["open_ms_longitudinal", "dicom_t1_studyforrest"], "mri", "brain_mri_1mm", 1.0),
        ("hippocampus, 1 mm, uint8", ["hippocampus_msd/images"], "mri", "brain_mri_1mm", 1.0),
        ("lung CT, 1.5 mm, int16", ["pyradiomics_cases"], "ct", "body_ct", 1.5),
        ("lung CT, 1 mm, int16", ["pyradiomics_cases"], "ct", "body_ct", 1.0),
    ]
    for name, folders, modality, prepare, spacing in plan:
        place = work / "real" / name.replace(", ", "_").replace(" ", "_")
        settings = validate(IndexSettings, {"modality": modality, "compute": {"workers": 1}}, "index")
        archive.index([data / folder for folder in folders], place / "index", settings)
        overrides = ["compute.workers=1", f"preprocess.spacing_mm=[{spacing}, {spacing}, {spacing}]"]
        config = load_config(PrepareConfig, CONFIGS / "prepare" / f"{prepare}.yaml", overrides)
        preparing.prepare(place / "index", place / "cache", config)
        cache = Cache.open(place / "cache")
        arrays = [np.array(cache.read(key).array) for key in cache.table["series_key"]]
        yield VolumeSet(name, arrays, spacing, "brain_mri_resnet3d" if modality == "mri" else "chest_ct_resnet3d")


def synthetic_sets(work: Path) -> Iterator[VolumeSet]:
    """Phantoms of the package on 256^3 voxels: heads as uint8, trunks as int16, with the noise of its scanners."""
    from lejepa_med.data.preprocess import body_mask, to_hu, to_unit_range
    from lejepa_med.data.synthetic import body_phantom, draw_body, draw_scan, draw_subject, head_phantom
    from lejepa_med.spec import PreprocessSpec

    def head(seed: int) -> Array:
        image = head_phantom(draw_subject(seed), draw_scan(seed), (0.8, 0.8, 0.8), (256, 256, 256)).array
        return to_unit_range(image, body_mask(image, "mri"), PreprocessSpec())

    def trunk(seed: int) -> Array:
        return to_hu(body_phantom(draw_body(seed), (1.5, 1.5, 1.5), (256, 256, 256)).array, PreprocessSpec())

    for name, make, count, spacing, config in (
        ("synthetic 256^3, uint8", head, 3, 1.0, "brain_mri_resnet3d"),
        ("synthetic 256^3, int16", trunk, 2, 1.5, "chest_ct_resnet3d"),
    ):
        file = work / f"synthetic_{make.__name__}.npy"
        if not file.exists():
            np.save(file, np.stack([make(seed) for seed in range(count)]))
        yield VolumeSet(name, list(np.load(file)), spacing, config)


_BOXES: dict[tuple[str, str, int, int], list[Box]] = {}


def boxes_of(access: str, volumes: VolumeSet, index: int, seed: int) -> list[Box]:
    """The boxes that one item of a batch reads; the same for every format."""
    key = (access, volumes.name, index, seed)
    if key not in _BOXES:
        _BOXES[key] = _draw_boxes_of(access, volumes, index, seed)
    return _BOXES[key]


def _draw_boxes_of(access: str, volumes: VolumeSet, index: int, seed: int) -> list[Box]:
    array, rng = volumes.arrays[index], np.random.default_rng([seed, index])
    planes = {"sagittal": 0, "coronal": 1, "axial": 2}
    if access in planes:
        box = [slice(0, side) for side in array.shape]
        place = int(rng.uniform(0.15, 0.85) * array.shape[planes[access]])
        box[planes[access]] = slice(place, place + 1)
        return [tuple(box)]
    if access == "whole":
        return [tuple(slice(0, side) for side in array.shape)]
    base = base_side(volumes)
    low = [int(rng.integers(0, max(0, side - base) + 1)) for side in array.shape]
    crop = tuple(slice(a, a + min(base, side)) for a, side in zip(low, array.shape, strict=True))
    return [crop] if access == "base crop" else view_boxes(volumes, array, crop, seed * 1000 + index)


def base_side(volumes: VolumeSet) -> int:
    from lejepa_med.config import PretrainConfig, load_config

    config = load_config(PretrainConfig, CONFIGS / "pretrain" / f"{volumes.config}.yaml")
    assert config.views.base_crop_mm is not None
    return round(config.views.base_crop_mm / volumes.spacing_mm)


def view_boxes(volumes: VolumeSet, array: Array, crop: Box, seed: int) -> list[Box]:
    """Voxels of 2 global and 6 local views as the package draws them; a view that meets only air needs none."""
    import torch

    from lejepa_med.config import PretrainConfig, load_config
    from lejepa_med.views.geometry import body_cells, draw_boxes

    views, base = load_config(PretrainConfig, CONFIGS / "pretrain" / f"{volumes.config}.yaml").views, base_side(volumes)
    have = np.array([s.stop - s.start for s in crop])
    margin = (base - have) // 2  # where the volume is smaller than the base crop, it is centred in air
    mask = np.zeros((base,) * 3, bool)
    inside = tuple(slice(m, m + h) for m, h in zip(margin, have, strict=True))
    mask[inside] = array[crop] > (25 if array.dtype == np.uint8 else -500)
    body, generator = body_cells(torch.from_numpy(mask)[None]), torch.Generator().manual_seed(seed)
    boxes: list[Box] = []
    for which in ("global", "local"):
        drawn = draw_boxes(views, which, [generator], (base,) * 3, (volumes.spacing_mm,) * 3, body)
        ends = torch.stack([drawn.start, drawn.start + drawn.length])[:, 0].sort(0).values
        low, high = np.floor(ends[0].numpy()).astype(int) - 1, np.ceil(ends[1].numpy()).astype(int) + 1
        offset = np.array([s.start for s in crop]) - margin
        stop = np.array([s.stop for s in crop])
        for a, b in zip(low + offset, high + offset, strict=True):
            a, b = np.maximum(a, stop - have), np.minimum(b, stop)
            if (b > a).all():
                boxes.append(tuple(slice(int(x), int(y)) for x, y in zip(a, b, strict=True)))
    return boxes
