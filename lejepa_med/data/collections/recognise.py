"""Which layout a folder or file has, and its items; one `match` over the kinds."""

from __future__ import annotations

from pathlib import Path

from lejepa_med.config.preparing import CollectionKind, SourceConfig
from lejepa_med.data.collections import bids, datalist, folder, medmnist, mednist, nnunet, table
from lejepa_med.data.collections.item import Collection
from lejepa_med.errors import DataError

_INDEX = ("series.parquet", "files.parquet", "scan.sqlite")


def is_index(place: Path) -> bool:
    """Whether a folder was, at least partly, written by `index`."""
    return any((place / name).exists() for name in _INDEX)


def layout_of(place: Path, settings: SourceConfig) -> CollectionKind | None:
    """The layout that is named, or the one that lies there; None if it is none of the known ones."""
    if settings.kind != "auto":
        return settings.kind
    if place.is_file():
        return "medmnist" if place.suffix == ".npz" else "datalist" if place.suffix == ".json" else None
    if not place.is_dir():
        return None
    if nnunet.matches(place):
        return "nnunet"
    if datalist.matches(place / "dataset.json"):
        return "decathlon"
    if medmnist.matches(place):
        return "medmnist"
    if bids.matches(place):
        return "bids"
    if folder.matches(place, settings):
        return "folder"
    if _datalists(place):
        return "datalist"
    return "mednist" if mednist.matches(place) else None


def read(place: Path, kind: CollectionKind, settings: SourceConfig) -> Collection:
    """All items of a layout. Raises DataError, in one sentence, where it is not laid out as it should be."""
    if not place.exists():
        raise DataError(f"{kind}: {place} does not exist")
    root = place.parent if place.is_file() else place
    found = table.joined(_read(place, kind, settings), root, settings)
    if not found.items:
        raise DataError(f"{kind}: no image found in {place}")
    return found


def _read(place: Path, kind: CollectionKind, settings: SourceConfig) -> Collection:
    match kind:
        case "nnunet":
            return nnunet.read(place)
        case "decathlon":
            return datalist.read(place if place.is_file() else place / "dataset.json", kind)
        case "datalist":
            return datalist.read(place if place.is_file() else _only_datalist(place), kind)
        case "bids":
            return bids.read(place, settings)
        case "medmnist":
            return medmnist.read(place if place.is_file() else medmnist.file_of(place))
        case "mednist":
            return mednist.read(place)
    return folder.read(place, settings)


def _datalists(place: Path) -> list[Path]:
    return [file for file in sorted(place.glob("*.json")) if datalist.matches(file)]


def _only_datalist(place: Path) -> Path:
    files = _datalists(place)
    if len(files) != 1:
        raise DataError(f"datalist: {place} holds {len(files)} lists in JSON; name one: `prepare {place}/NAME.json`")
    return files[0]
