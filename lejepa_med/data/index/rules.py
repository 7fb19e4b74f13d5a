"""Which of the volumes that were read are used: the user's rules on a row of the index.

A rule looks at the row alone, so that other rules need no file again. The first rule that rejects names the reason; a
volume that was rejected before keeps its reason. Rules add flags and never take one away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.index.entries_files import slice_axis
from lejepa_med.data.index.entry import Entry

ROUNDING = 1e-3
"""Headers round positions and pixel sizes: 5.004 mm is not over a limit of 5 mm, 5.01 mm is."""

_KEPT_BY = (
    ("localizer", "keep_localizers"),
    ("derived_map", "keep_derived"),
    ("label_map", "accept_label_maps"),
    ("burned_in", "keep_burned_in"),
    ("reformatted", "keep_reformatted"),
    ("derived", "keep_marked_derived"),
    ("lossy", "keep_lossy"),
)
"""A flag, which is the reason too, and the setting without which volumes that have it are rejected."""


def judge(entry: Entry, settings: IndexSettings) -> Entry:
    """The entry with the first reason that the rules find against it, and with flags where they could not tell."""
    if entry.reason:
        return entry
    entry = entry.flagged(*_remarks(entry, settings))
    return next((entry.rejected(reason) for reason in _objections(entry, settings)), entry)


def _remarks(entry: Entry, settings: IndexSettings) -> Iterator[str]:
    if settings.body_parts is not None and not entry.body_part:
        yield "body_part_unknown"
    if settings.sequences is not None and entry.modality == "mri" and not entry.sequence:
        yield "sequence_unknown"


def _objections(entry: Entry, settings: IndexSettings) -> Iterator[str]:
    yield from _of_content(entry, settings)
    for flag, setting in _KEPT_BY:
        if flag in entry.flags and not getattr(settings, setting):
            yield flag
    if entry.source == "image":
        in_plane: tuple[int, ...] = tuple(range(len(entry.shape)))
    else:
        in_plane = tuple(axis for axis in range(len(entry.shape)) if axis != _across(entry))
        yield from _of_geometry(entry, in_plane, settings)
    if min((entry.shape[axis] for axis in in_plane), default=0) < settings.min_matrix:
        yield "matrix_too_small"
    if settings.max_voxels is not None and math.prod(entry.shape) > settings.max_voxels:
        yield "too_many_voxels"


def _of_content(entry: Entry, settings: IndexSettings) -> Iterator[str]:
    if settings.modalities is not None and entry.modality not in settings.modalities:
        yield "other_modality"
    if settings.body_parts is not None:
        if entry.body_part and entry.body_part not in settings.body_parts:
            yield "other_body_part"
        if not entry.body_part and settings.unknown_body_part == "reject":
            yield "body_part_unknown"
    if settings.sequences is not None and entry.modality == "mri":
        if entry.sequence and entry.sequence not in settings.sequences:
            yield "other_sequence"
        if not entry.sequence and settings.unknown_sequence == "reject":
            yield "sequence_unknown"


def _of_geometry(entry: Entry, in_plane: tuple[int, ...], settings: IndexSettings) -> Iterator[str]:
    if entry.num_slices < settings.min_slices:
        yield "too_few_slices"
    sides = [entry.spacing_mm[axis] for axis in in_plane]
    gap = entry.spacing_mm[_across(entry)]
    limits = (
        (min(sides), settings.min_in_plane_mm, max(sides), settings.max_in_plane_mm),
        (gap, settings.min_slice_distance_mm, gap, settings.max_slice_distance_mm),
    )
    for smallest, least, largest, most in limits:
        if (least is not None and _under(smallest, least)) or (most is not None and _under(most, largest)):
            yield "spacing_out_of_limits"
    if any(map(_under, extent_mm(entry), settings.min_extent_mm)):
        yield "extent_too_small"


def extent_mm(entry: Entry) -> tuple[float, float, float]:
    """Size of a volume along the patient's axes R, A and S, each by the array axis nearest to it; 0 where none is."""
    sizes = {
        code: length * count
        for code, length, count in zip(entry.orientation, entry.spacing_mm, entry.shape, strict=True)
    }
    right, front, top = (max(sizes.get(code, 0.0) for code in pair) for pair in ("RL", "AP", "SI"))
    return right, front, top


def _across(entry: Entry) -> int:
    """The axis across slices: the last of DICOM, that with the largest steps of files."""
    return len(entry.shape) - 1 if entry.source == "dicom" else slice_axis(entry.spacing_mm)


def _under(value: float, limit: float) -> bool:
    return value < limit * (1 - ROUNDING)
