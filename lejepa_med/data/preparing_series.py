"""One series from its files to its entry in the cache; whatever goes wrong is a reason in its row, not a crash.

The mask of a series is made together with its volume, whose crop it shares.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data import cache as cache_store
from lejepa_med.data.cache_entry import Written
from lejepa_med.data.collections.store import CollectionStore
from lejepa_med.data.masks import checked_mask, prepare_mask
from lejepa_med.data.preprocess import Prepared, prepare_volume
from lejepa_med.data.reading import Archive
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.spec import PreprocessSpec
from lejepa_med.whole_files import DiskError, write_atomically

_CLEARLY_WIDER = 1.5  # a voxel side that says which way the slices were cut
_DEFECT = "it could not be prepared, by a defect of lejepa-med; please report it"


Scans = Archive | CollectionStore
"""What is read by key: an index, or a published layout."""


class SourcePlace(NamedTuple):
    """Where a worker finds the scans; `stamp` changes when they are listed anew."""

    folder: Path
    is_collection: bool
    stamp: int

    @classmethod
    def of(cls, folder: Path, is_collection: bool) -> SourcePlace:
        table = folder / ("files.parquet" if is_collection else "series.parquet")
        return cls(folder.resolve(), is_collection, table.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(place: SourcePlace) -> Scans:
    """Once per process and version."""
    return CollectionStore.open(place.folder) if place.is_collection else Archive.open(place.folder)


def prepare_batch(
    place: SourcePlace, out: Path, preprocess: PreprocessSpec, rows: list[dict[Any, Any]]
) -> list[dict[str, Any]]:
    """Manifest rows; `reason` is empty unless one failed."""
    source = _opened(place)
    return [_prepare_one(source, row, out, preprocess) for row in rows]


def manifest_row(row: dict[Any, Any]) -> dict[str, Any]:
    """What is known of a series before it is prepared."""
    return {name: row.get(name, "") for name in cache_store.ALL_COLUMNS} | {"reason": "", "mask_values": []}


def _prepare_one(source: Scans, row: dict[Any, Any], out: Path, preprocess: PreprocessSpec) -> dict[str, Any]:
    """No message of another library is passed on."""
    key = str(row["series_key"])
    result = manifest_row(row) | {"entry": "", "reused": False}
    try:
        return result | _made(source, row, out, preprocess)
    except DiskError as error:
        return result | {"reason": "disk", "disk": error.reason}
    except DataError as error:
        return result | {"reason": str(error).removeprefix(f"series {key}: ")}
    except MemoryError:
        return result | {"reason": "too large for the memory of this machine"}
    except Exception:
        return result | {"reason": _DEFECT}


def _made(source: Scans, row: dict[Any, Any], out: Path, preprocess: PreprocessSpec) -> dict[str, Any]:
    key = str(row["series_key"])
    store = source if isinstance(source, CollectionStore) else None
    entry, mask_entry = cache_store.entry_name(key, source.fingerprint(key), preprocess), ""
    if store is not None and (of_mask := store.mask_fingerprint(key)):
        mask_entry = cache_store.entry_name(key, f"{entry} {of_mask}", preprocess)
    shape = _known_shape(out, entry, row["known"])
    reused = shape is not None and (not mask_entry or _known_shape(out, mask_entry, row["known_mask"]) == shape)
    written: list[Written] = []
    if not reused:
        volume = source.read(key)
        prepared = _prepared(volume, row, preprocess)
        shape = prepared.array.shape
        mask = _mask(store, key, volume, prepared, preprocess) if store is not None and mask_entry else None
        _write_filled(out, entry, volume.filled_slices)
        del volume
        written = [cache_store.write_entry(out, entry, prepared.array)]
        if mask is not None:
            written.append(cache_store.write_entry(out, mask_entry, mask))
    entries = [entry, mask_entry] if mask_entry else [entry]
    written = written or [_as_stored(out, name) for name in entries]
    plain = row["modality"] == "image"
    return {
        "reused": reused,
        "entry": entry,
        "shape": list(shape or ()),
        "spacing_mm": None if plain else list(preprocess.spacing_mm),
        "sha256": written[0].sha256,
        "bytes": written[0].bytes,
        "filled_slices": _filled(out, entry),
        "slice_axis": slice_axis(row if store is None or plain else store.geometry(key)),
        "mask_entry": mask_entry,
        "mask_sha256": written[1].sha256 if mask_entry else "",
        "mask_values": _values_of(out, mask_entry) if mask_entry else [],
    }


def _prepared(volume: Volume, row: dict[Any, Any], preprocess: PreprocessSpec) -> Prepared:
    if row.get("as_is"):
        return Prepared(volume.array, None, np.eye(4), "image")
    return prepare_volume(Volume(volume.array, volume.affine, row["modality"]), preprocess)


def _mask(
    store: CollectionStore, key: str, volume: Volume, prepared: Prepared, preprocess: PreprocessSpec
) -> NDArray[np.uint8]:
    """The mask on the prepared grid. Raises DataError where it does not fit its image, or the labels of the layout."""
    classes = checked_mask(store.read_mask(key), volume)
    known = store.mask_labels
    present = set(np.flatnonzero(np.bincount(classes.ravel(), minlength=256)).tolist()) - {0}
    if known and (strange := sorted(present - known.keys())):
        raise DataError(f"mask value without a label: {', '.join(map(str, strange[:5]))}")
    return prepare_mask(classes, volume, prepared, preprocess)


def _values_of(out: Path, mask_entry: str) -> list[int]:
    mask = np.load(cache_store.entry_path(out, mask_entry), allow_pickle=False)
    values: list[int] = np.unique(mask).tolist()
    return values


def _as_stored(out: Path, entry: str) -> Written:
    path = cache_store.entry_path(out, entry)
    return Written(cache_store.file_digest(path), path.stat().st_size)


def slice_axis(row: dict[Any, Any]) -> int:
    """The axis (R, A or S) along which the slices of a scan lie; -1 where its voxels do not tell."""
    spacing = [float(side) for side in str(row["spacing_mm"]).split(";") if side]
    if len(spacing) != 3 or len(str(row["orientation"])) != 3:
        return -1
    widest = max(range(3), key=spacing.__getitem__)
    if spacing[widest] < _CLEARLY_WIDER * sorted(spacing)[1]:
        return -1
    return next(axis for axis, ends in enumerate(("RL", "AP", "SI")) if str(row["orientation"])[widest] in ends)


def _write_filled(out: Path, entry: str, slices: int) -> None:
    """A trace that a kill leaves too: the manifest comes only at the end."""
    file = out / "filled" / entry
    if slices:
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, str(slices).encode())
    else:
        file.unlink(missing_ok=True)


def _filled(out: Path, entry: str) -> int:
    try:
        return int((out / "filled" / entry).read_bytes())
    except (OSError, ValueError):
        return 0


def _known_shape(out: Path, entry: str, known: str) -> tuple[int, ...] | None:
    """The shape of an entry that is there and, where its checksum is known, as it was written; else None."""
    path = cache_store.entry_path(out, entry)
    known_entry, _, checksum = known.partition(" ")
    try:
        if known_entry == entry and cache_store.file_digest(path) != checksum:
            return None
        return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape)
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError):
        return None
