"""Draws docs/images/dicom/*.png: synthetic series that go wrong when files are stacked by name, and what `index` does.

    python docs/draw_dicom.py --out docs/images/dicom

Left: slices in the order of their file names, at the distance in SliceThickness. Right: the volume that `convert`
writes, or the reason why there is none. The verdict in each title is the one in `series.csv`.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.config import ComputeConfig, IndexSettings
from lejepa_med.data import converting
from lejepa_med.data.index import archive
from lejepa_med.data.synthetic import SeriesHeader, draw_scan, draw_subject, head_phantom, write_series
from lejepa_med.data.synthetic.head import Subject, head_ct
from lejepa_med.data.synthetic.head_shape import make_grid
from lejepa_med.data.synthetic.series import tilted_grid
from lejepa_med.viz.style import INK, new_figure

ROOT = Path(__file__).resolve().parents[1]
GAP = 4.0
SUBJECT: Subject = draw_subject(3)


@dataclass(frozen=True)
class Picture:
    """One file of the page: its name, its title, and the function that writes the series."""

    name: str
    title: str
    write: Callable[[Path], None]


def series(folder: Path, gap_mm: float = GAP, **elements: object) -> list[Path]:
    """A T1 head with voxels of 2 x 2 mm within slices, one file per slice, lowest first."""
    volume = head_phantom(SUBJECT, draw_scan(1, "T1w", scanner=0), (2.0, 2.0, gap_mm))
    header = SeriesHeader("t1", "study", "SYN0001", "SYNTHETIC", {"SliceThickness": str(GAP), **elements})
    return write_series(volume, header, folder)


def gap(folder: Path) -> None:
    """Two slices in the middle are missing."""
    files = series(folder)
    for file in files[len(files) // 2 : len(files) // 2 + 2]:
        file.unlink()


def uneven(folder: Path) -> None:
    """Every fourth millimetre of the lower half, every seventh of the upper one."""
    files = series(folder, gap_mm=1.0)
    half = len(files) // 2
    kept = {*range(0, half, 4), *range(half, len(files), 7)}
    for number, file in enumerate(files):
        if number not in kept:
            file.unlink()
            continue
        dataset = pydicom.dcmread(file)
        dataset.SliceThickness = GAP
        dataset.save_as(file)


def tilt(folder: Path) -> None:
    """A head CT with the gantry tilted by 20 degrees."""
    shape = (100, 100, 40)
    affine = tilted_grid(20.0, (2.4, 2.4, GAP), shape)
    scan = draw_scan(1, "T1w", scanner=0)
    volume = head_ct(SUBJECT, scan, make_grid(shape, affine, scan.pose), affine)
    elements = {"SliceThickness": str(GAP), "GantryDetectorTilt": "20"}
    header = SeriesHeader("ct", "study", "SYN0001", "SYNTHETIC", elements, slope=1.0, intercept=-1024.0)
    write_series(volume, header, folder)


def mosaic(folder: Path) -> None:
    """25 slices as tiles of one image, as Siemens stores functional MRI."""
    sys.path.append(str(ROOT / "tests" / "data"))
    from awkward_files import csa
    from dicom_factory import image, set_pixels

    volume = head_phantom(SUBJECT, draw_scan(1, "T1w", scanner=0), (3.0, 3.0, 6.0))
    planes = np.flip(volume.array.transpose(2, 1, 0), axis=(1, 2))[:25]
    count, rows, columns = planes.shape
    side = int(np.ceil(np.sqrt(count)))
    tiles = np.zeros((side * rows, side * columns))
    for number, plane in enumerate(planes):
        row, column = divmod(number, side)
        tiles[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns] = plane
    corner = -np.array([columns, rows]) * 1.5 - (side - 1) / 2 * np.array([columns, rows]) * 3.0
    words = {"SpacingBetweenSlices": 6.0, "ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}
    dataset = image((*corner.tolist(), -60.0), spacing=(3.0, 3.0), **words)
    set_pixels(dataset, tiles / tiles.max() * 4000)
    private = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    private.add_new(0x10, "OB", csa({"SliceNormalVector": ["0", "0", "1"]}))
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", count)
    dataset.SliceThickness = 6.0
    folder.mkdir(parents=True)
    dataset.save_as(folder / "IM0001.dcm", enforce_file_format=True)


def times(folder: Path) -> None:
    """Two time points under one series UID, their files in turn."""
    for time in (1, 2):
        files = series(folder / str(time), TemporalPositionIdentifier=time)
        for file in files:
            dataset = pydicom.dcmread(file)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID}.{time}"
            dataset.PixelData = (dataset.pixel_array // time).astype(np.uint16).tobytes()
            dataset.save_as(folder / f"{file.stem}_{time}.dcm")
            file.unlink()
        (folder / str(time)).rmdir()


PICTURES = (
    Picture("gap", "Two slices are missing", gap),
    Picture("uneven", "Gaps of 4 mm, then of 7 mm", uneven),
    Picture("tilt", "Gantry tilted by 20 degrees", tilt),
    Picture("mosaic", "Siemens mosaic: 25 slices in one image", mosaic),
    Picture("times", "Two time points under one series UID", times),
)


def naive(folder: Path) -> tuple[NDArray[np.float64], float]:
    """The files in the order of their names: a sagittal cut (a single file: the image), and its ratio of sides."""
    datasets = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    if len(datasets) == 1:
        return datasets[0].pixel_array.astype(float), 1.0
    array = np.stack([dataset.pixel_array for dataset in datasets]).astype(float)
    ratio = float(datasets[0].SliceThickness) / float(datasets[0].PixelSpacing[0])
    return np.flip(array[:, :, array.shape[2] // 2], axis=(0, 1)), ratio


def read(folder: Path, work: Path) -> tuple[pd.DataFrame, list[tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """Rows of the index, and array and affine of each converted volume."""
    settings = IndexSettings(compute=ComputeConfig(workers=1), keep_timepoints=2)
    archive.index([folder], work / "index", settings)
    converting.convert(work / "index", work / "out", compute=ComputeConfig(workers=1))
    rows = pd.read_csv(work / "index" / "series.csv", keep_default_na=False)
    images = [nibabel.load(file) for file in sorted((work / "out").glob("*.nii.gz"))]
    return rows, [(np.asarray(image.dataobj, dtype=float), image.affine) for image in images]


Array = NDArray[np.float64]


def sagittal(array: Array, affine: Array) -> tuple[Array, Array]:
    """The middle sagittal cut as points in millimetres `[2, anterior, superior]`, and its values."""
    i, j, k = np.indices(array.shape)
    points = np.einsum("ab,bxyz->axyz", affine[:3, :3], np.stack((i, j, k))) + affine[:3, 3][:, None, None, None]
    left_right = int(np.abs(affine[0, :3]).argmax())
    middle = [slice(None)] * 3
    middle[left_right] = array.shape[left_right] // 2
    return points[(slice(1, 3), *middle)], array[tuple(middle)]


def draw(picture: Picture, out: Path) -> None:
    """One PNG: files by name at the left, what becomes of them at the right."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        picture.write(work / "series")
        flat, ratio = naive(work / "series")
        rows, volumes = read(work / "series", work)
    panels = 1 + max(1, len(volumes))
    figure = new_figure(2.4 * panels, 2.9)
    axes = figure.subplots(1, panels)
    window = {"cmap": "gray", "vmin": np.percentile(flat, 1), "vmax": np.percentile(flat, 99.5)}
    axes[0].imshow(flat, aspect=ratio, **window)
    axes[0].set_title("as it lies there" if ratio == 1.0 else "files by name", fontsize=8.5, color=INK)
    for axis, (array, affine) in zip(axes[1:], volumes, strict=False):
        (ahead, up), values = sagittal(array, affine)
        low, high = np.percentile(values, (1, 99.5))
        axis.pcolormesh(ahead, up, values, cmap="gray", vmin=low, vmax=high, shading="nearest", rasterized=True)
        axis.set_aspect("equal")
        axis.set_title("what lejepa-med reads", fontsize=8.5, color=INK)
    row = rows.iloc[0]
    verdict = " ".join(str(word) for word in (row.verdict, row.reason, row["flags"]) if word)
    if not volumes:
        axes[1].text(0.5, 0.5, verdict.replace(" ", "\n"), ha="center", va="center", fontsize=11, color=INK)
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(f"{picture.title}: {verdict}", fontsize=9.5, color=INK)
    save_small(figure, out / f"{picture.name}.png")


def save_small(figure: Figure, file: Path) -> None:
    """A PNG of 64 greys: a third of the bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, metadata={"Software": None})
    Image.open(stream).convert("RGB").quantize(64).save(file, optimize=True)


def main() -> None:
    """Draws every picture."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    out: Path = arguments.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        draw(picture, out)


if __name__ == "__main__":
    main()
