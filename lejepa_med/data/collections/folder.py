"""A folder of images, and one of masks with the same names: images/a.nii.gz, labels/a.nii.gz (or masks/).

An image without a mask is prepared without one.
"""

from __future__ import annotations

from pathlib import Path

from lejepa_med.config.preparing import SourceConfig
from lejepa_med.data.collections.item import Collection, CollectionItem, files_in, modality_of
from lejepa_med.errors import DataError

_MASK_FOLDERS = ("labels", "masks")


def matches(folder: Path, settings: SourceConfig) -> bool:
    return bool(files_in(folder / settings.images))


def read(folder: Path, settings: SourceConfig) -> Collection:
    """Raises DataError where a folder that is named is not there."""
    images = files_in(folder / settings.images)
    if not images:
        raise DataError(f"folder: no NIfTI file or picture in its folder `{settings.images}`; set source.images")
    names = _MASK_FOLDERS if settings.masks is None else (settings.masks,)
    masks = next((found for name in names if (found := files_in(folder / name))), {})
    if settings.masks is not None and not masks:
        raise DataError(f"folder: no NIfTI file or picture in its folder `{settings.masks}`; set source.masks")
    items = [
        CollectionItem(name, image, name, name, mask=masks.get(name), modality=modality_of(image, "unknown"))
        for name, image in images.items()
    ]
    items += [
        CollectionItem(name, folder / settings.images / name, name, name, problem="image missing")
        for name in sorted(masks.keys() - images.keys())
    ]
    return Collection("folder", items, settings.mask_labels)
