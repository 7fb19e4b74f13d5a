"""Reads volumes: by key from an index, or from a file or folder that is in none."""

from __future__ import annotations

import bisect
import functools
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.assembly import Candidate, assemble
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.header import NotAVolume
from lejepa_med.data.dicom.listed import listed_stack
from lejepa_med.data.dicom.volume import UndecodableError, read_volume
from lejepa_med.data.files import images, nifti
from lejepa_med.data.files.file_volume import BadFile
from lejepa_med.data.files.storage import size
from lejepa_med.data.files.walk import walk
from lejepa_med.data.index.entries_dicom import drop_repeated_instances
from lejepa_med.data.index.entry import FilePlace, geometry_of
from lejepa_med.data.index.examine import Examined, examine
from lejepa_med.data.index.pseudonyms import Pseudonyms
from lejepa_med.data.privacy import read_salt
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError


class Archive:
    """An index folder, opened for reading volumes. `table` is `series.parquet`.

    Files are looked up when a series is read: `files.parquet` is as long as the archive, and a pickled archive is
    only the name of its folder.
    """

    def __init__(self, folder: Path, table: pd.DataFrame) -> None:
        self.table = table
        self._folder = folder
        self._rows = {str(key): row for key, row in zip(table["series_key"], table.to_dict("records"), strict=True)}
        self._files = _FileTable(folder / "files.parquet")

    @classmethod
    def open(cls, index_dir: Path) -> Archive:
        """The archive of an index folder; raises `DataError` where it is none."""
        name = "series.parquet"
        try:
            table = pd.read_parquet(index_dir / name)
            name = "files.parquet"
            return cls(index_dir, table)
        except (OSError, ValueError):
            raise DataError(f"{index_dir}: no readable {name}; expected a folder written by `index`") from None

    def __reduce__(self) -> tuple[Callable[..., Archive], tuple[Path, int]]:
        return _opened_once, (self._folder, _time_of(self._folder))

    def rows(self, verdicts: Sequence[str] = ("accepted", "flagged")) -> pd.DataFrame:
        """The rows of the table with these verdicts."""
        return self.table[self.table["verdict"].isin(verdicts)].reset_index(drop=True)

    def fingerprint(self, series_key: str) -> str:
        """Identity of the files of a series: their sizes, modification times and parts."""
        files = self._files.of(series_key)
        identity = sorted((file["size"], file["mtime"], file["part"]) for file in files)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]

    def read(self, series_key: str) -> Volume:
        """The voxels of one accepted or flagged series; raises `DataError` that names the key.

        It is an `UndecodableScanError` where the files are as they were, and their pixels cannot be decoded.
        """
        row = self._rows.get(series_key)
        if row is None:
            raise DataError(f"series {series_key}: not in this index")
        if row["verdict"] == "rejected":
            raise DataError(f"series {series_key}: rejected by `index` ({row['reason']})")
        try:
            volume = _read(self._files.of(series_key), row, self._names())
        except UndecodableError as error:
            raise UndecodableScanError(f"series {series_key}: {_undecodable(error)}") from None
        except (OSError, NotAVolume, BadFile, ValueError):
            raise DataError(f"series {series_key}: {_GONE}") from None
        if _description(volume) != (row["shape"], row["spacing_mm"], row["orientation"]):
            raise DataError(f"series {series_key}: {_GONE}")
        return volume

    def _names(self) -> Pseudonyms:
        return Pseudonyms(read_salt(self._folder))


class UndecodableScanError(DataError):
    """Too many slices of a series do not decode."""


def _undecodable(error: UndecodableError) -> str:
    return (
        f"its pixel data cannot be decoded: {error.lost} of {error.total} slices; restore their files, or run `index` "
        "with decode=all into a new folder, which leaves such slices out"
    )


class _FileTable:
    """The private table of an index, read a few rows at a time: it is sorted by series."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        names = self._file.schema_arrow.names
        if "series_hash" not in names:
            raise ValueError("written by another version")
        column = names.index("series_key")
        groups = (self._file.metadata.row_group(group) for group in range(self._file.num_row_groups))
        self._last_keys = [group.column(column).statistics.max for group in groups]
        self._known: tuple[str, list[dict[str, Any]]] = ("", [])

    def of(self, series_key: str) -> list[dict[str, Any]]:
        """The rows of one series."""
        if self._known[0] != series_key:
            # A series may end in one group of rows and go on in the next.
            start = bisect.bisect_left(self._last_keys, series_key)
            stop = bisect.bisect_right(self._last_keys, series_key) + 1
            groups = list(range(len(self._last_keys)))[start:stop]
            rows = self._file.read_row_groups(groups)
            self._known = series_key, rows.filter(pc.equal(rows["series_key"], series_key)).to_pylist()
        return self._known[1]


@functools.lru_cache(maxsize=1)
def _opened_once(folder: Path, time: int) -> Archive:
    """An archive in a worker process, which gets it with every piece of work."""
    return Archive.open(folder)


def _time_of(folder: Path) -> int:
    return (folder / "series.parquet").stat().st_mtime_ns


_GONE = "its files are gone, damaged or changed since the index was made; run `index` again"


def _description(volume: Volume) -> tuple[str, str, str]:
    shape = ";".join(map(str, volume.array.shape))
    if volume.modality == "image":
        return shape, "", ""
    spacing, orientation = geometry_of(volume.affine, volume.array.ndim)
    return shape, ";".join(f"{length:.6g}" for length in spacing), orientation


def _read(files: Sequence[dict[str, Any]], row: Mapping[Hashable, Any], names: Pseudonyms) -> Volume:
    if any(size(file["path"]) != file["size"] for file in files):
        raise ValueError("changed")
    first = files[0]
    if row["source"] == "dicom":
        places = [FilePlace(*(file[name] for name in FilePlace._fields)) for file in files]
        return read_volume(listed_stack(places, first["series_hash"], names))
    if row["source"] == "image":
        return images.read(Path(first["path"]), first["part"])
    return nifti.read(Path(first["path"]), first["part"], str(row["modality"]))


def read_any(path: Path, modality: str | None = None) -> list[Volume]:
    """The volumes of one NIfTI file, one image, or one DICOM file or folder, by the rules of `index`.

    `modality` is that of a NIfTI file; DICOM brings its own. Raises `DataError` where there is no volume.
    """
    examined = [(found.path, examine(found)) for found in walk([path])]
    volumes = list(_file_volumes(path, examined, modality))
    candidates = _candidates([frame for _, outcome in examined for frame in outcome.frames])
    try:
        usable = (candidate.stack for candidate in candidates if not candidate.reason)
        volumes += [read_volume(built) for built in usable if built is not None]
    except UndecodableError as error:
        counts = f"{error.lost} of {error.total} slices"
        raise DataError(f"{path}: the pixel data of a DICOM series cannot be decoded: {counts}") from None
    except ValueError:
        raise DataError(f"{path}: a DICOM series cannot be read") from None
    if not volumes:
        reasons = {outcome.reason for _, outcome in examined} | {candidate.reason for candidate in candidates}
        listed = ", ".join(sorted(reasons - {""}))
        raise DataError(f"{path}: no volume in {len(examined)} files ({listed or 'see `index`'})")
    return volumes


def _candidates(frames: Sequence[Frame]) -> list[Candidate]:
    series: dict[tuple[str, str, str], list[Frame]] = {}
    for frame in frames:
        series.setdefault((frame.patient_id, frame.study_uid, frame.series_uid), []).append(frame)
    settings = IndexSettings(min_slices=1)
    return [
        candidate
        for _, members in sorted(series.items())
        for candidate in assemble(drop_repeated_instances(members)[0], settings)
    ]


def _file_volumes(path: Path, examined: Sequence[tuple[str, Examined]], modality: str | None) -> Iterator[Volume]:
    if path.is_dir():
        return
    for place, outcome in examined:
        for volume in outcome.volumes:
            if volume.problem:
                raise DataError(f"{path}: not a usable volume ({volume.problem})")
            if outcome.kind == "image":
                yield images.read(Path(place), volume.part)
            else:
                yield nifti.read(Path(place), volume.part, modality or "unknown")
