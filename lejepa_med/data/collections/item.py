"""What every reader of a published layout yields: one item per image, with its mask, labels and split.

Items hold paths and names; they stay in memory and in CACHE/private (see `store`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lejepa_med.errors import DataError

NIFTI = (".nii.gz", ".nii")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CollectionItem:
    """One image to prepare.

    `name` tells it from all others of the collection, `part` is the volume of a 4D file or the row of `array`, an array
    of an .npz file. `problem` says what is known to be wrong with it without opening a file.
    """

    name: str
    image: Path
    patient: str
    study: str
    part: int = 0
    array: str = ""
    mask: Path | None = None
    modality: str = "unknown"
    sequence: str = ""
    split: str = ""
    site: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Collection:
    """All items of a layout. `mask_labels`: what values of masks stand for; empty if the layout does not say."""

    kind: str
    items: Sequence[CollectionItem]
    mask_labels: Mapping[int, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


# Words of channel names and of the ends of BIDS names, in small letters without signs.
_SEQUENCES = {
    "t1": "t1", "t1w": "t1", "t1gd": "t1", "t1ce": "t1", "t1c": "t1", "t1n": "t1", "t1kc": "t1", "t1km": "t1",
    "t1wce": "t1", "mprage": "t1", "mp2rage": "t1", "unit1": "t1",
    "t2": "t2", "t2w": "t2", "t2star": "t2star", "t2starw": "t2star", "pd": "pd", "pdw": "pd",
    "flair": "flair", "t2f": "flair", "t2flair": "flair", "t2wflair": "flair", "stir": "stir",
    "dwi": "dwi", "bold": "bold", "swi": "swi", "tof": "tof", "angio": "tof", "perf": "perfusion", "asl": "perfusion",
}  # fmt: skip
_MODALITIES = {"ct": "ct", "cta": "ct", "mr": "mri", "mri": "mri", "pet": "pet", "adc": "mri"}


def kind_of_channel(name: str) -> tuple[str, str]:
    """(modality, sequence) of a channel name such as `T1w`, `CT` or `MRI`; ("unknown", "") if it is no such word."""
    word = "".join(letter for letter in name.lower() if letter.isalnum())
    if word in _SEQUENCES:
        return "mri", _SEQUENCES[word]
    return _MODALITIES.get(word, "unknown"), ""


def without_suffix(name: str) -> str:
    """A file name without the ending of a scan or picture."""
    ending = next((end for end in (*NIFTI, *PICTURES) if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)]


def is_scan(name: str) -> bool:
    return without_suffix(name) != name and not name.startswith(".")


def modality_of(path: Path, modality: str) -> str:
    """Pictures have no other modality."""
    return "image" if path.name.lower().endswith(PICTURES) else modality


def files_in(folder: Path) -> dict[str, Path]:
    """Scans of a folder by their names without suffix, in order; empty if there is no such folder."""
    if not folder.is_dir():
        return {}
    return {without_suffix(file.name): file for file in sorted(folder.iterdir()) if is_scan(file.name)}


def read_json(file: Path, layout: str) -> dict[str, Any]:
    """A JSON object. Raises DataError if the file is none."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{layout}: {file.name} cannot be read as JSON") from None
    if not isinstance(content, dict):
        raise DataError(f"{layout}: {file.name} holds a {type(content).__name__}, expected an object of names")
    return content


def section(content: Mapping[str, Any], name: str, layout: str) -> dict[str, Any]:
    """An object inside an object. Raises DataError if it is something else."""
    found = content.get(name)
    if not isinstance(found, dict):
        raise DataError(f"{layout}: `{name}` of its JSON file is missing or no object of names")
    return found
