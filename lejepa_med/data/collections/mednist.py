"""A folder per class with its pictures, as MONAI's MedNIST: AbdomenCT/000000.jpeg, Hand/000001.jpeg, ..."""

from __future__ import annotations

from pathlib import Path

from lejepa_med.data.collections.item import PICTURES, Collection, CollectionItem, files_in


def matches(folder: Path) -> bool:
    """At least two folders that hold pictures, and none that holds volumes."""
    classes = [found for found in map(files_in, _folders(folder)) if found]
    return len(classes) > 1 and all(
        file.name.lower().endswith(PICTURES) for found in classes for file in found.values()
    )


def read(folder: Path) -> Collection:
    """The class is the name of the folder. Nothing says whose a picture is."""
    items = [
        CollectionItem(
            f"{place.name}/{name}",
            file,
            f"{place.name}/{name}",
            f"{place.name}/{name}",
            modality="image",
            labels={"label": place.name},
        )
        for place in _folders(folder)
        for name, file in files_in(place).items()
    ]
    return Collection("mednist", items)


def _folders(folder: Path) -> list[Path]:
    return [place for place in sorted(folder.iterdir()) if place.is_dir() and not place.name.startswith(".")]
