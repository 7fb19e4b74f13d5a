"""nnU-Net raw data sets (version 1 and 2): dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, imagesTs.

Each channel is a series of its own, of the same patient and study.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lejepa_med.data.collections.item import (
    NIFTI,
    PICTURES,
    Collection,
    CollectionItem,
    files_in,
    kind_of_channel,
    modality_of,
    read_json,
    section,
)
from lejepa_med.errors import DataError

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def matches(folder: Path) -> bool:
    """The Decathlon, too, has dataset.json and imagesTr, but no channel number in its file names."""
    names = files_in(folder / "imagesTr")
    return (folder / "dataset.json").is_file() and any(_CHANNEL.fullmatch(name) for name in names)


def read(folder: Path) -> Collection:
    """Raises DataError where dataset.json is not one of nnU-Net, or files are of a kind that is not read."""
    content = read_json(folder / "dataset.json", "nnunet")
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending.lower() not in (*NIFTI, *PICTURES):
        readable = ", ".join((*NIFTI, *PICTURES))
        raise DataError(f"nnunet: file_ending {ending} is not read; convert the images to one of {readable}")
    channels = section(content, "channel_names" if "channel_names" in content else "modality", "nnunet")
    items = [*_cases(folder, "Tr", "train", channels), *_cases(folder, "Ts", "test", channels)]
    return Collection("nnunet", items, mask_labels(section(content, "labels", "nnunet")))


def mask_labels(labels: Mapping[str, Any]) -> dict[int, str]:
    """Value -> name, of nnU-Net 2 (name -> value, or values of a region) and of the Decathlon (value -> name).

    Regions overlap: a value that only regions name is called by the smallest of them.
    """
    names: dict[int, tuple[int, str]] = {}
    try:
        for key, given in labels.items():
            pairs = [(int(key), str(given))] if str(key).isdigit() else [(value, str(key)) for value in _listed(given)]
            for value, name in pairs:
                if value not in names or len(pairs) < names[value][0]:
                    names[value] = len(pairs), name
    except (TypeError, ValueError):
        raise DataError("dataset.json: `labels` must hold names and whole numbers") from None
    return {value: names[value][1] for value in sorted(names)}


def _listed(given: Any) -> list[int]:
    return [int(value) for value in given] if isinstance(given, list) else [int(given)]


def _cases(folder: Path, part: str, split: str, channels: Mapping[str, Any]) -> Iterator[CollectionItem]:
    images, masks = files_in(folder / f"images{part}"), files_in(folder / f"labels{part}")
    cases: set[str] = set()
    for name, image in images.items():
        found = _CHANNEL.fullmatch(name)
        case, number = (found[1], int(found[2])) if found else (name, 0)
        modality, sequence = kind_of_channel(str(channels.get(str(number), "")))
        problem = ""
        if case not in masks and part == "Tr":
            problem = "mask missing"
        elif str(number) not in channels:
            problem = f"channel not in dataset.json: {number}"
        cases.add(case)
        yield CollectionItem(
            name=f"images{part}/{name}",
            image=image,
            patient=case,
            study=case,
            mask=masks.get(case),
            modality=modality_of(image, modality),
            sequence=sequence,
            split=split,
            problem=problem,
        )
    for case in masks.keys() - cases:
        missing = folder / f"images{part}" / f"{case}_0000"
        yield CollectionItem(f"images{part}/{case}", missing, case, case, problem="image missing", split=split)
