"""Reads volumes: by key from an index, or from a file or folder that is in none."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data import dicom, images, nifti
from lejepa_med.data.dicom_assembly import assemble
from lejepa_med.data.dicom_header import NotAVolume
from lejepa_med.data.dicom_stack import Stack, stack
from lejepa_med.data.dicom_volume import read_volume
from lejepa_med.data.entries_dicom import drop_repeated_instances
from lejepa_med.data.entry import geometry_of
from lejepa_med.data.examine import Examined, examine
from lejepa_med.data.file_volume import BadFile
from lejepa_med.data.frame import Frame
from lejepa_med.data.volume import Volume
from lejepa_med.data.walk import walk
from lejepa_med.errors import DataError


class Archive:
    """An index folder, opened for reading volumes. `table` is `series.parquet`."""

    def __init__(self, table: pd.DataFrame, files: pd.DataFrame) -> None:
        self.table = table
        self._rows = {str(key): row for key, row in zip(table["series_key"], table.to_dict("records"), strict=True)}
        self._files = files[files["verdict"] != "rejected"].groupby("series_key", sort=False).indices
        self._all_files = files[files["verdict"] != "rejected"].reset_index(drop=True)

    @classmethod
    def open(cls, index_dir: Path) -> Archive:
        """The archive of an index folder; raises `DataError` where it is none."""
        tables = []
        for name in ("series.parquet", "files.parquet"):
            try:
                tables.append(pd.read_parquet(index_dir / name))
            except (OSError, ValueError):
                raise DataError(f"{index_dir}: no readable {name}; expected a folder written by `index`") from None
        return cls(*tables)

    def rows(self, verdicts: Sequence[str] = ("accepted", "flagged")) -> pd.DataFrame:
        """The rows of the table with these verdicts."""
        return self.table[self.table["verdict"].isin(verdicts)].reset_index(drop=True)

    def fingerprint(self, series_key: str) -> str:
        """Identity of the files of a series: their sizes, modification times and parts."""
        files = self._all_files.iloc[self._files[series_key]]
        identity = sorted(zip(files["size"].tolist(), files["mtime"].tolist(), files["part"].tolist(), strict=True))
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]

    def read(self, series_key: str) -> Volume:
        """The voxels of one accepted or flagged series; raises `DataError` that names the key."""
        row = self._rows.get(series_key)
        if row is None:
            raise DataError(f"series {series_key}: not in this index")
        if row["verdict"] == "rejected":
            raise DataError(f"series {series_key}: rejected by `index` ({row['reason']})")
        files = self._all_files.iloc[self._files[series_key]]
        try:
            volume = _read_dicom(files) if row["source"] == "dicom" else _read_file(files, row)
        except (OSError, NotAVolume, BadFile, ValueError):
            raise DataError(f"series {series_key}: {_GONE}") from None
        if _description(volume) != (row["shape"], row["spacing_mm"], row["orientation"]):
            raise DataError(f"series {series_key}: {_GONE}")
        return volume


_GONE = "its files are gone, damaged or changed since the index was made; run `index` again"


def _description(volume: Volume) -> tuple[str, str, str]:
    shape = ";".join(map(str, volume.array.shape))
    if volume.modality == "image":
        return shape, "", ""
    spacing, orientation = geometry_of(volume.affine, volume.array.ndim)
    return shape, ";".join(f"{length:.6g}" for length in spacing), orientation


def _read_file(files: pd.DataFrame, row: Mapping[Hashable, object]) -> Volume:
    record = files.iloc[0]
    path = Path(record["path"])
    if path.stat().st_size != record["size"]:
        raise ValueError("changed")
    if row["source"] == "image":
        return images.read(path, int(record["part"]))
    return nifti.read(path, int(record["part"]), str(row["modality"]))


def _read_dicom(files: pd.DataFrame) -> Volume:
    placed: list[tuple[int, Frame]] = []
    for record in files.to_dict("records"):
        path = Path(record["path"])
        if path.stat().st_size != record["size"]:
            raise ValueError("changed")
        frames = dicom.read_frames(path)
        for index, slot in zip(record["frames"], record["slots"], strict=True):
            if frames[index].series_uid != record["series_uid"]:
                raise ValueError("changed")
            placed.append((int(slot), frames[index]))
    placed.sort(key=lambda pair: pair[0])
    slots = tuple(slot for slot, _ in placed)
    built = stack([frame for _, frame in placed], slots[-1] + 1 - len(slots))
    if built.slots != slots:
        raise ValueError("changed")
    return read_volume(built)


def read_any(path: Path, modality: str | None = None) -> list[Volume]:
    """The volumes of one NIfTI file, one image, or one DICOM file or folder, by the rules of `index`.

    `modality` is that of a NIfTI file; DICOM brings its own. Raises `DataError` where there is no volume.
    """
    examined = [examine(found) for found in walk([path])]
    volumes = list(_file_volumes(path, examined, modality))
    frames = [frame for outcome in examined for frame in outcome.frames]
    stacks = _stacks(frames)
    try:
        volumes += [read_volume(built) for built in stacks]
    except ValueError:
        raise DataError(f"{path}: the pixels of a DICOM series cannot be decoded") from None
    if not volumes:
        reasons = sorted({outcome.reason for outcome in examined if outcome.reason})
        raise DataError(f"{path}: no volume in {len(examined)} files ({', '.join(reasons) or 'see `index`'})")
    return volumes


def _stacks(frames: Sequence[Frame]) -> list[Stack]:
    series: dict[tuple[str, str], list[Frame]] = {}
    for frame in frames:
        series.setdefault((frame.study_uid, frame.series_uid), []).append(frame)
    settings = IndexSettings(min_slices=1)
    return [
        candidate.stack
        for _, members in sorted(series.items())
        for candidate in assemble(drop_repeated_instances(members)[0], settings)
        if candidate.stack is not None and not candidate.reason
    ]


def _file_volumes(path: Path, examined: Sequence[Examined], modality: str | None) -> Iterator[Volume]:
    if path.is_dir():
        return
    for outcome in examined:
        for volume in outcome.volumes:
            if volume.problem:
                raise DataError(f"{path}: not a usable volume ({volume.problem})")
            if outcome.kind == "image":
                yield images.read(path, volume.part)
            else:
                yield nifti.read(path, volume.part, modality or "unknown")
