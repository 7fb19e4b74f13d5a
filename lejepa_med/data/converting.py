"""Writes the volumes of an index as NIfTI files.

OUT/<series_key>.nii.gz   one per accepted or flagged volume, affine in RAS+ millimetres
    series.csv            their rows, with a column `converted`: yes, or the reason why not
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from lejepa_med.data.reading import Archive
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError


def convert(
    index_dir: Path, out: Path, progress: Callable[[str, int, int], None] = lambda stage, done, total: None
) -> int:
    """Converts what is not yet in `out`; returns how many volumes are there."""
    archive = Archive.open(index_dir)
    rows = archive.rows()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for number, key in enumerate(rows["series_key"], 1):
        outcomes.append(_convert(archive, str(key), out / f"{key}.nii.gz"))
        progress("volumes", number, len(rows))
    temporary = out / f"series.csv.{os.getpid()}.tmp"
    rows.assign(converted=outcomes).to_csv(temporary, index=False, lineterminator="\n")
    temporary.replace(out / "series.csv")
    return outcomes.count("yes")


def _convert(archive: Archive, key: str, target: Path) -> str:
    if target.exists():
        return "yes"
    try:
        volume = archive.read(key)
    except DataError:
        return "unreadable"
    write_nifti(volume, target)
    return "yes"


def write_nifti(volume: Volume, target: Path) -> None:
    """Writes a volume under a temporary name and renames it; qform and sform are both set unless it is sheared."""
    array = volume.array if volume.array.ndim == 3 else volume.array[:, :, None]
    image = nibabel.Nifti1Image(array, volume.affine)
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    rigid = np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    image.set_sform(volume.affine, 1)
    image.set_qform(volume.affine if rigid else None, 1 if rigid else 0)
    image.header.set_xyzt_units("mm")
    temporary = target.with_name(f"{os.getpid()}.{target.name}")
    nibabel.save(image, temporary)
    temporary.replace(target)
