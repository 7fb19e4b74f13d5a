"""Writes the volumes of an index as NIfTI files.

OUT/<series_key>.nii.gz   one per accepted or flagged volume, affine in RAS+ millimetres; its `descrip` is a fingerprint
                          of the files that it was made from, so that a changed scan is converted again
    series.csv            their rows, with columns `converted` (yes, or the reason why not) and `fingerprint`
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from lejepa_med.compute import spread
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data.reading import Archive
from lejepa_med.data.volume import Volume
from lejepa_med.data.whole_files import DiskError, remove_abandoned, whole_file, write_atomically
from lejepa_med.errors import DataError

_BATCH = 4
_VERSION = 2
"""Raised whenever the same scan gives another file."""
_QFORM_MM = 0.005
_DISK = "disk: "  # how a worker says that nothing more can be written

Progress = Callable[[str, int, int], None]
Outcome = tuple[str, str]
"""What stands in `converted`, and the fingerprint."""


def convert(
    index_dir: Path,
    out: Path,
    progress: Progress = lambda stage, done, total: None,
    compute: ComputeConfig | None = None,
) -> int:
    """Converts what is not yet in `out`, or has changed; returns how many volumes are there.

    Raises:
        DataError: `index_dir` is no index, or the disk is full.
    """
    rows = Archive.open(index_dir).rows()
    out.mkdir(parents=True, exist_ok=True)
    remove_abandoned([out])
    work = partial(_convert_batch, index_dir.resolve(), out.resolve())
    outcomes: list[Outcome] = []
    keys = [str(key) for key in rows["series_key"]]
    for _, results in spread(work, keys, compute or ComputeConfig(), _lost, _BATCH):
        if disk := next((text for text, _ in results if text.startswith(_DISK)), ""):
            raise DataError(f"{out}: {disk.removeprefix(_DISK)}")
        outcomes += results
        progress("volumes", len(outcomes), len(rows))
    converted, fingerprints = [text for text, _ in outcomes], [mark for _, mark in outcomes]
    table = rows.assign(converted=converted, fingerprint=fingerprints)
    write_atomically(out / "series.csv", table.to_csv(index=False, lineterminator="\n").encode())
    return converted.count("yes")


def _lost(key: str) -> Outcome:
    del key
    return "undecodable", ""


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
        if _made_from(target) == fingerprint:
            return "yes", fingerprint
        write_nifti(archive.read(key), target, fingerprint)
        return "yes", fingerprint
    except DiskError as error:
        return f"{_DISK}{error.reason}", ""
    except DataError:
        outcome = "unreadable"
    except Exception:
        outcome = "not_understood"
    target.unlink(missing_ok=True)
    return outcome, ""


def _made_from(target: Path) -> str:
    """The fingerprint in a converted file; empty where there is no such file or it says nothing."""
    try:
        with gzip.open(target) as stream:
            text: bytes = nibabel.Nifti1Header.from_fileobj(stream, check=False)["descrip"].item()
    except Exception:
        return ""
    return text.decode(errors="replace")


def write_nifti(volume: Volume, target: Path, fingerprint: str = "") -> None:
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
    image.header["descrip"] = fingerprint
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
