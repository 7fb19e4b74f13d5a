"""Synthetic DICOM files whose voxel values encode where in the patient each voxel is.

A voxel at LPS millimetres (x, y, z) holds `FIELD . (x, y, z) + OFFSET`, so geometry is checked in every voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from lejepa_med.data.volume import Volume

FIELD = np.array([51.0, 87.0, 123.0])
OFFSET = 20_000.0
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR, SR = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.88.11"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ROWS, COLUMNS = 7, 9
PIXEL_SPACING = (1.5, 0.75)  # between rows, between columns


def turned(degrees: float) -> tuple[float, ...]:
    """Axial directions turned around the patient's x axis, as a tilted gantry does."""
    angle = np.deg2rad(degrees)
    return (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))


def field(
    position: Sequence[float],
    orientation: Sequence[float] = AXIAL,
    shape: tuple[int, int] = (ROWS, COLUMNS),
    spacing: tuple[float, float] = PIXEL_SPACING,
) -> NDArray[np.float64]:
    """What an image at this place holds, `[row, column]`."""
    row, column = np.mgrid[0 : shape[0], 0 : shape[1]]
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    points = np.array(position) + column[..., None] * spacing[1] * across + row[..., None] * spacing[0] * down
    values: NDArray[np.float64] = points @ FIELD + OFFSET
    return values


def misplaced(volume: Volume, scale: float = 1.0) -> float:
    """Largest difference between the voxels and the field where the affine puts them."""
    return float(np.abs(difference(volume, scale)).max())


def difference(volume: Volume, scale: float = 1.0) -> NDArray[np.float64]:
    """The voxels less the field where the affine puts them."""
    indexes = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), -1)
    ras = indexes @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    expected = (ras * [-1, -1, 1]) @ FIELD + OFFSET
    less: NDArray[np.float64] = volume.array.astype(np.float64) * scale - expected
    return less


def header(sop_class: str = MR, **elements: Any) -> Dataset:
    """The elements that every file here has."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = sop_class
    dataset.PatientID = "PLANTED-ID-7788"
    dataset.PatientName = "Planted^Name"
    dataset.PatientBirthDate = "19610412"
    dataset.SeriesDescription = "planted free text"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.826.77.1", "1.2.826.77.2"
    dataset.FrameOfReferenceUID = "1.2.826.77.3"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def image(position: Sequence[float], number: int = 1, orientation: Sequence[float] = AXIAL, **elements: Any) -> Dataset:
    """One slice with its pixels; `shape` and `spacing` are those of its pixels, the rest are elements."""
    shape, spacing = elements.pop("shape", (ROWS, COLUMNS)), elements.pop("spacing", PIXEL_SPACING)
    dataset = header(**({"sop_class": elements.pop("sop_class")} if "sop_class" in elements else {}))
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), list(orientation)
    dataset.PixelSpacing, dataset.InstanceNumber = list(spacing), number
    dataset.SOPInstanceUID = f"1.2.826.77.9.{number}"
    set_pixels(dataset, field(position, orientation, shape, spacing))
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def set_pixels(dataset: Dataset, values: NDArray[np.float64]) -> None:
    """Stores values as unsigned 16 bits."""
    pixels = np.rint(values).astype(np.uint16)
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"


def stack(count: int = 8, gap: float = 2.5, **elements: Any) -> list[Dataset]:
    """Axial slices, lowest first."""
    return [image((-3.0, 4.0, -10.0 + gap * number), number + 1, **elements) for number in range(count)]


def enhanced(count: int = 6, gap: float = 2.0) -> Dataset:
    """One multi-frame object whose frames are in shuffled order, stored halved."""
    order = np.random.default_rng(0).permutation(count)
    return enhanced_of([(1.0, 2.0, 3.0 + gap * float(place)) for place in order], slope=2)


def enhanced_of(
    positions: Sequence[Sequence[float]],
    orientations: Sequence[Sequence[float]] = (),
    times: Sequence[int] = (),
    added: Sequence[float] = (),
    **changes: Any,
) -> Dataset:
    """One multi-frame object with frames at these places.

    Directions are in the frames if they are given, else shared; `times` are temporal positions; `added` is added to the
    values of each frame; `changes` are `sop_class`, `slope` and `number`, of the instance.
    """
    slope, number = changes.pop("slope", 1), changes.pop("number", 1)
    dataset = header(
        changes.pop("sop_class", ENHANCED_MR),
        SOPInstanceUID="1.2.826.77.8" + f".{number}" * (number > 1),
        ImageType=["ORIGINAL", "PRIMARY", "T1", "NONE"],
    )
    directions = orientations or [AXIAL] * len(positions)
    planes = [field(*place) for place in zip(positions, directions, strict=True)]
    set_pixels(dataset, (np.stack(planes) + np.reshape(added or 0.0, (-1, 1, 1))) / slope)
    dataset.NumberOfFrames = len(positions)
    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing = list(PIXEL_SPACING)
    shared.PixelMeasuresSequence = Items([measures])
    if not orientations:
        shared.PlaneOrientationSequence = _directions(AXIAL)
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    items = [_frame_item(position, slope) for position in positions]
    for item, orientation in zip(items, orientations, strict=False):
        item.PlaneOrientationSequence = _directions(orientation)
    for item, time in zip(items, times, strict=False):
        content = Dataset()
        content.TemporalPositionIndex = time
        item.FrameContentSequence = Items([content])
    dataset.PerFrameFunctionalGroupsSequence = Items(items)
    return dataset


def _directions(orientation: Sequence[float]) -> Items:
    plane = Dataset()
    plane.ImageOrientationPatient = list(orientation)
    return Items([plane])


def _frame_item(position: Sequence[float], slope: int) -> Dataset:
    item, place, values = Dataset(), Dataset(), Dataset()
    place.ImagePositionPatient = list(position)
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, 0, "US"
    item.PlanePositionSequence, item.PixelValueTransformationSequence = Items([place]), Items([values])
    return item


def write(folder: Path, datasets: Sequence[Dataset], seed: int = 0) -> list[Path]:
    """Writes datasets under shuffled names; the path of each, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(seed).permutation(len(datasets))
    paths = [folder / f"planted-name-{name:03d}" for name in names]
    for dataset, path in zip(datasets, paths, strict=True):
        dataset.save_as(path, enforce_file_format=True)
    return paths


def write_bare(folder: Path, datasets: Sequence[Dataset]) -> None:
    """Writes old files without preamble and file meta information, implicit VR."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets):
        del dataset.file_meta
        dataset.save_as(folder / str(number), implicit_vr=True, little_endian=True, enforce_file_format=False)


def compressed(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The same slices, run-length encoded."""
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
    return list(datasets)
