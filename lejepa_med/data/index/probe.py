"""A cheap look at the pixels of a DICOM volume: three slices; all, if these are constant or one does not decode."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.dicom.listed import listed_frame, listed_stack
from lejepa_med.data.dicom.pixels import rescaled, stored_values
from lejepa_med.data.dicom.volume import read_volume
from lejepa_med.data.index.entry import Entry, FilePlace
from lejepa_med.data.index.pseudonyms import Pseudonyms
from lejepa_med.data.privacy import keyed_hash

_SHARES = (0.25, 0.5, 0.75)


class Probe(NamedTuple):
    """A reason to reject the volume, or none, the range of the values seen, a hash of them and their places, flags."""

    reason: str
    low: float
    high: float
    content: str
    flags: str = ""


_UNDECODABLE = Probe("undecodable", 0.0, 0.0, "")
CRASHED = Probe("crashed_reader", 0.0, 0.0, "")


class Probed(NamedTuple):
    """A volume to look at."""

    entry: Entry
    places: list[FilePlace]


def probe_many(salt: bytes, volumes: list[Probed]) -> list[Probe]:
    """The probes of a batch of volumes. Never raises."""
    names = Pseudonyms(salt)
    return [probe(volume.entry, volume.places, names) for volume in volumes]


def probe(entry: Entry, places: Sequence[FilePlace], names: Pseudonyms) -> Probe:
    """Decodes three slices of a volume."""
    values: list[NDArray[np.generic]] = []
    for share in _SHARES:
        try:
            frame = listed_frame(places, share)
            values.append(rescaled(frame, stored_values([frame])[0]))
        except Exception:
            continue
    if not values:
        return _UNDECODABLE
    if not all(np.isfinite(array).all() for array in values):
        return Probe("not_finite", 0.0, 0.0, "")
    low, high = min(float(array.min()) for array in values), max(float(array.max()) for array in values)
    if low < high and len(values) == len(_SHARES):
        return Probe("", low, high, _content(entry, values, names.salt))
    try:
        built = listed_stack(places, entry.series_hash, names)
        volume = read_volume(built)
    except Exception:
        return _UNDECODABLE
    flags = "undecodable_slices" if volume.filled_slices > built.missing else ""
    low, high = float(volume.array.min()), float(volume.array.max())
    # Without content: three empty slices, or two of three, are no proof that two volumes are one.
    return Probe("constant" if low == high else "", low, high, "", flags)


def _content(entry: Entry, values: Sequence[NDArray[np.generic]], salt: bytes) -> str:
    """A hash of slices and geometry, blind to encoding, compression and the text of numbers."""
    places = np.round(np.array(entry.affine), 3) + 0.0
    digest = hashlib.blake2b(f"{entry.modality} {entry.shape} {places.tolist()}".encode(), digest_size=16)
    for array in values:
        digest.update(np.ascontiguousarray(array, dtype=np.float64).data)
    return keyed_hash(salt, "dicom content", digest.hexdigest())
