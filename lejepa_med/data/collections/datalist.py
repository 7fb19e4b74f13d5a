"""Lists of files in JSON: the Medical Segmentation Decathlon's dataset.json, and MONAI's datalists.

    {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior"},
     "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}], "test": ["./imagesTs/b.nii.gz"]}

A 4D image of several modalities becomes one series per modality. A `label` that is a number or a list of numbers, as of
classification, goes to labels.csv.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lejepa_med.data.collections.item import (
    Collection,
    CollectionItem,
    is_scan,
    kind_of_channel,
    modality_of,
    read_json,
    without_suffix,
)
from lejepa_med.data.collections.nnunet import mask_labels
from lejepa_med.errors import DataError

_LISTS = {"training": "train", "train": "train", "validation": "val", "val": "val", "testing": "test", "test": "test"}


def matches(file: Path) -> bool:
    """Whether a JSON file is such a list."""
    try:
        content = read_json(file, "datalist")
    except DataError:
        return False
    return any(isinstance(content.get(name), list) for name in _LISTS)


def read(file: Path, kind: str) -> Collection:
    """Paths are relative to the file. Raises DataError where there is no list, or an entry is none."""
    content = read_json(file, kind)
    channels = content.get("modality", content.get("channel_names", {}))
    channels = channels if isinstance(channels, dict) else {}
    items: list[CollectionItem] = []
    for name, split in _LISTS.items():
        entries = content.get(name, [])
        if not isinstance(entries, list):
            raise DataError(f"{kind}: `{name}` of {file.name} is no list")
        for number, entry in enumerate(entries):
            items += _items(file.parent, f"{kind}: entry {number} of `{name}`", entry, split, channels)
    if not items:
        raise DataError(
            f"{kind}: {file.name} lists no image; expected one of {', '.join(_LISTS)} with {{image, label}}"
        )
    values = content.get("labels")
    return Collection(kind, items, mask_labels(values) if isinstance(values, dict) else {})


def _items(folder: Path, where: str, entry: Any, split: str, channels: Mapping[str, Any]) -> Iterator[CollectionItem]:
    entry = entry if isinstance(entry, dict) else {"image": entry}
    images = entry.get("image")
    images = images if isinstance(images, list) else [images]
    if not images or not all(isinstance(image, str) and image for image in images):
        raise DataError(f"{where} has no `image`; expected a path, or a list of paths")
    patient = str(entry.get("patient") or entry.get("subject") or entry.get("patient_id") or images[0])
    mask, labels = _label(folder, entry)
    several = len(channels) > 1 and len(images) == 1
    for number, image in enumerate(images * (len(channels) if several else 1)):
        path = folder / image
        modality, sequence = kind_of_channel(str(channels.get(str(number), next(iter(channels.values()), ""))))
        problem = "" if path.is_file() else "image missing"
        if mask is not None and not mask.is_file():
            problem = problem or "mask missing"
        yield CollectionItem(
            name=f"{image}#{number}" if several else image,
            image=path,
            patient=patient,
            study=str(images[0]),
            part=number if several else 0,
            mask=mask,
            modality=modality_of(path, modality),
            sequence=sequence,
            split=split,
            labels=labels,
            problem=problem,
        )


def _label(folder: Path, entry: Mapping[str, Any]) -> tuple[Path | None, dict[str, str]]:
    """The mask, or the labels of a classification."""
    given = entry.get("label", entry.get("mask"))
    if isinstance(given, str) and is_scan(Path(given).name) and without_suffix(given):
        return folder / given, {}
    if isinstance(given, Sequence) and not isinstance(given, str):
        return None, {f"label_{number}": str(value) for number, value in enumerate(given)}
    return None, {} if given is None else {"label": str(given)}
