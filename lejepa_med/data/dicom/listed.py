"""From the files of one DICOM volume, as an index lists them, to its slices in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.header_pass import read_frames
from lejepa_med.data.dicom.stack import Stack, stack
from lejepa_med.data.index.entry import FilePlace
from lejepa_med.data.index.pseudonyms import Pseudonyms


def listed_stack(places: Sequence[FilePlace], series_hash: str, names: Pseudonyms) -> Stack:
    """The stack that `index` made of these files; raises ValueError where they hold another series or geometry."""
    placed: list[tuple[int, Frame]] = []
    for place in places:
        frames = read_frames(Path(place.path))
        for index, slot in zip(place.frames, place.slots, strict=True):
            if index >= len(frames) or names.series(frames[index].series_uid, place.relative) != series_hash:
                raise ValueError("changed")
            placed.append((slot, frames[index]))
    placed.sort(key=lambda pair: pair[0])
    slots = tuple(slot for slot, _ in placed)
    built = stack([frame for _, frame in placed], slots[-1] + 1 - len(slots))
    if built.slots != slots:
        raise ValueError("changed")
    return built


def listed_frame(places: Sequence[FilePlace], share: float) -> Frame:
    """One slice: the one at this share of the way from the first to the last."""
    order = sorted(
        (slot, place.path, index) for place in places for slot, index in zip(place.slots, place.frames, strict=True)
    )
    _, path, index = order[int(share * len(order))]
    return read_frames(Path(path))[index]
