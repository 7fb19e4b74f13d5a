"""BIDS: sub-*/[ses-*/]anat/*.nii.gz with participants.tsv; collections of many such (OpenMind); FOMO's sub_1/ses_1/.

Structural images only: other folders than anat/, masks and derivatives are counted as left out.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lejepa_med.config.preparing import SourceConfig
from lejepa_med.data.collections.item import NIFTI, Collection, CollectionItem, kind_of_channel, without_suffix
from lejepa_med.errors import DataError

_SUBJECT = re.compile(r"sub[-_]([A-Za-z0-9]+)")
_SESSION = re.compile(r"ses[-_]([A-Za-z0-9]+)")
_TYPES = ("anat", "dwi", "func", "fmap", "perf", "pet", "meg", "eeg", "ieeg", "swi", "micr", "nirs", "beh", "motion")
_NO_IMAGES = ("mask", "dseg", "probseg", "defacemask", "seg", "label")
_USUAL = ("age", "sex", "group")
_DEEPEST = 8


def matches(folder: Path) -> bool:
    """A folder of subjects, or of data sets that hold some."""
    places = [folder, *(place for place in sorted(folder.iterdir()) if place.is_dir())]
    return any(_SUBJECT.fullmatch(inner.name) and inner.is_dir() for place in places for inner in place.iterdir())


def read(folder: Path, settings: SourceConfig) -> Collection:
    """Raises DataError where participants.tsv is no table, or lacks a column that is named."""
    items: list[CollectionItem] = []
    left_out: Counter[str] = Counter()
    tables: dict[Path, dict[str, dict[str, str]]] = {}
    for file, root in _files(folder):
        item = _item(folder, root, file, left_out)
        if item is None:
            continue
        if root not in tables:
            tables[root] = _participants(root / "participants.tsv", settings)
        known = tables[root].get(_subject(root, file), {})
        site = known.get(settings.site_column or "site", "")
        labels = {name: value for name, value in known.items() if name in {*_USUAL, *settings.label_columns}}
        items.append(CollectionItem(**{**vars(item), "labels": labels, "site": site}))
    return Collection("bids", items, left_out=dict(left_out))


def _files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """NIfTI files below a subject's folder, and the data set that the subject belongs to."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        parts = here.relative_to(folder).parts
        folders[:] = [] if len(parts) > _DEEPEST else sorted(n for n in folders if n != "derivatives" and n[0] != ".")
        number = next((at for at, part in enumerate(parts) if _SUBJECT.fullmatch(part)), None)
        if number is not None:
            root = folder.joinpath(*parts[:number])
            yield from ((here / name, root) for name in sorted(names) if name.endswith(NIFTI) and name[0] != ".")


def _subject(root: Path, file: Path) -> str:
    return file.relative_to(root).parts[0]


def _item(folder: Path, root: Path, file: Path, left_out: Counter[str]) -> CollectionItem | None:
    parts = file.relative_to(root).parts[:-1]
    name = without_suffix(file.name)
    end = name.rpartition("_")[2].lower()
    kind = next((part for part in parts if part in _TYPES), "anat")
    if kind != "anat":
        left_out[f"not structural ({kind})"] += 1
        return None
    if end in _NO_IMAGES or re.search(r"_(desc|label)-[A-Za-z0-9]*[mM]ask", name):
        left_out["mask"] += 1
        return None
    modality, sequence = kind_of_channel(end)
    data_set = "/".join(root.relative_to(folder).parts)
    subject = f"{data_set}/{parts[0]}" if data_set else parts[0]
    session = next((part for part in parts if _SESSION.fullmatch(part)), "")
    return CollectionItem(
        name=str(file.relative_to(folder)),
        image=file,
        patient=subject,
        study=f"{subject}/{session}",
        modality="mri" if modality == "unknown" else modality,
        sequence=sequence,
    )


def _participants(file: Path, settings: SourceConfig) -> dict[str, dict[str, str]]:
    """Columns by `sub-01`; empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError):
        raise DataError("bids: participants.tsv is no table of tab-separated columns") from None
    if "participant_id" not in table:
        raise DataError("bids: participants.tsv has no column `participant_id`")
    wanted = {*settings.label_columns, *([settings.site_column] if settings.site_column else [])}
    if missing := sorted(wanted - set(table.columns)):
        raise DataError(f"bids: participants.tsv has no column `{missing[0]}`; check source.label_columns")
    rows = table.replace("n/a", "").to_dict("records")
    return {_canonical(str(row["participant_id"])): {str(k): str(v) for k, v in row.items()} for row in rows}


def _canonical(participant: str) -> str:
    return participant if _SUBJECT.fullmatch(participant) else f"sub-{participant}"
