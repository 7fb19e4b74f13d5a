"""Writes the volumes of an index as NIfTI files.

OUT/<series_key>.nii.gz   one per accepted or flagged volume, affine in RAS+ millimetres; its `descrip` is a fingerprint
                          of the files that it was made from, so that a changed scan is converted again
    series.csv            their rows, with columns `converted` (yes, or the reason why not; "not yet" while the first
                          run is under way), `filled_slices` (interpolated: missing, or not decodable) and `fingerprint`
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.compute import spread
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data.files.own_output import check_out
from lejepa_med.data.reading import Archive, UndecodableScanError
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.whole_files import DiskError, remove_abandoned, whole_file, write_atomically

_BATCH = 4
_VERSION = 3
"""Raised whenever the same scan gives another file."""
_QFORM_MM = 0.005
_DISK = "disk: "  # how a worker says that nothing more can be written
_FILLED = " filled "  # in the description of a file
_VOLUME_S = 1800.0  # a decoder that takes longer hangs

Progress = Callable[[str, int, int], None]


class Outcome(NamedTuple):
    """What stands in these columns."""

    converted: str
    fingerprint: str = ""
    filled_slices: str = ""


_COLUMNS = ("converted", "filled_slices", "fingerprint")


def convert(
    index_dir: Path,
    out: Path,
    progress: Progress = lambda stage, done, total: None,
    compute: ComputeConfig | None = None,
) -> int:
    """Converts what is not yet in `out`, or has changed; returns how many volumes are there.

    Raises:
        DataError: `index_dir` is no index, `out` holds other files, or the disk is full.
    """
    rows = Archive.open(index_dir).rows()
    check_out("convert", out, "converted")
    out.mkdir(parents=True, exist_ok=True)
    remove_abandoned([out])
    if not (out / "series.csv").exists():  # also what the folder is known by
        _write_table(out, rows, [Outcome("not yet")] * len(rows))
    work = partial(_convert_batch, index_dir.resolve(), out.resolve())
    outcomes: list[Outcome] = []
    keys = [str(key) for key in rows["series_key"]]
    for _, results in spread(work, keys, compute or ComputeConfig(), _lost, _BATCH, _VOLUME_S):
        if disk := next((text for text, *_ in results if text.startswith(_DISK)), ""):
            raise DataError(f"{out}: {disk.removeprefix(_DISK)}")
        outcomes += results
        progress("volumes", len(outcomes), len(rows))
    _write_table(out, rows, outcomes)
    return [outcome.converted for outcome in outcomes].count("yes")


def _write_table(out: Path, rows: pd.DataFrame, outcomes: list[Outcome]) -> None:
    columns = {name: [getattr(outcome, name) for outcome in outcomes] for name in _COLUMNS}
    text = rows.assign(**columns).to_csv(index=False, lineterminator="\n")
    write_atomically(out / "series.csv", text.encode())


def _lost(key: str) -> Outcome:
    del key
    return Outcome("crashed_reader")


@lru_cache(maxsize=1)
def _archive(index_dir: Path, stamp: int) -> Archive:
    """The index, opened once per process and version."""
    return Archive.open(index_dir)


def _convert_batch(index_dir: Path, out: Path, keys: list[str]) -> list[Outcome]:
    archive = _archive(index_dir, (index_dir / "series.parquet").stat().st_mtime_ns)
    return [_convert(archive, key, out / f"{key}.nii.gz") for key in keys]


def _convert(archive: Archive, key: str, target: Path) -> Outcome:
    """No message of another library is passed on, nor a file that is there but was made from other files."""
    try:
        fingerprint = f"{archive.fingerprint(key)}-{_VERSION}"
        made_from, _, filled = _description(target).partition(_FILLED)
        if made_from != fingerprint:
            volume = archive.read(key)
            filled = str(volume.filled_slices)
            write_nifti(volume, target, f"{fingerprint}{_FILLED}{filled}")
        return Outcome("yes", fingerprint, filled)
    except DiskError as error:
        return Outcome(f"{_DISK}{error.reason}")
    except UndecodableScanError:
        outcome = "undecodable"
    except DataError:
        outcome = "unreadable"
    except Exception:
        outcome = "not_understood"
    target.unlink(missing_ok=True)
    return Outcome(outcome)


def _description(target: Path) -> str:
    """The fingerprint in a converted file, and how many slices are filled; empty where there is no such file."""
    try:
        with gzip.open(target) as stream:
            text: bytes = nibabel.Nifti1Header.from_fileobj(stream, check=False)["descrip"].item()
    except Exception:
        return ""
    return text.decode(errors="replace")


def write_nifti(volume: Volume, target: Path, description: str = "") -> None:
    """Writes a volume, whole or not at all; the sform is its affine, and so is the qform where that can say it.

    A qform has no shear, and its quaternion in 32 bits loses a tenth of a millimetre over some scans.
    The type of its numbers is kept. The same volume gives the same bytes.
    """
    array = volume.array if volume.array.ndim == 3 else volume.array[:, :, None]
    image = nibabel.Nifti1Image(array, volume.affine)
    image.set_sform(volume.affine, 1)
    image.set_qform(volume.affine, 1)
    if _distance_mm(image.get_qform(), volume.affine, array.shape) > _QFORM_MM:
        image.set_qform(None, 0)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description
    with whole_file(target) as stream:
        if target.suffix != ".gz":
            image.to_stream(stream)
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=stream, mtime=0) as zipped:
            image.to_stream(zipped)


def _distance_mm(found: NDArray[np.float64], wanted: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """How far apart two affines put the corners of a volume, at most."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*[(0, size - 1) for size in shape])], dtype=float)
    return float(np.linalg.norm((corners @ (found - wanted).T)[:, :3], axis=1).max())
