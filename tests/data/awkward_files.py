"""Awkward series: how slices are stored, what lies beside them, and enhanced multi-frame objects."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import gdcm
import numpy as np
from awkward import CONTRAST, axial, case, folder_case
from dicom_factory import (
    AXIAL,
    SECONDARY_CAPTURE,
    SR,
    compressed,
    enhanced_of,
    field,
    header,
    image,
    set_pixels,
    turned,
    write,
    write_bare,
)
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset

EVEN = [2.5 * k for k in range(8)]
PET, CT = "1.2.840.10008.5.1.4.1.1.128", "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
HEIGHTS = [3.0 + 2.0 * k for k in range(6)]


def stored_as(syntax: uid.UID) -> list[Dataset]:
    slices = axial(EVEN, shape=(33, 40))
    for dataset in slices:
        if syntax.is_encapsulated:
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = syntax
        if not syntax.is_little_endian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    return slices


@case("implicit VR", "8 slices")
def implicit() -> list[Dataset]:
    return stored_as(uid.ImplicitVRLittleEndian)


@case("big endian", "8 slices")
def big_endian() -> list[Dataset]:
    return stored_as(uid.ExplicitVRBigEndian)


@case("deflated", "8 slices")
def deflated() -> list[Dataset]:
    return stored_as(uid.DeflatedExplicitVRLittleEndian)


@case("run-length encoded", "8 slices")
def run_length() -> list[Dataset]:
    return compressed(axial(EVEN))


@case("JPEG-LS", "8 slices")
def jpeg_ls() -> list[Dataset]:
    return stored_as(uid.JPEGLSLossless)


@case("JPEG 2000", "8 slices")
def jpeg_2000() -> list[Dataset]:
    return stored_as(uid.JPEG2000Lossless)


@folder_case("JPEG lossless", "8 slices")
def jpeg_lossless(folder: Path) -> None:
    for path in write(folder, axial(EVEN)):
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()


@folder_case("no preamble and no file meta information", "8 slices")
def no_preamble(folder: Path) -> None:
    write_bare(folder, axial(EVEN))


@case("MONOCHROME1: values stay as they are", "8 slices")
def monochrome1() -> list[Dataset]:
    return axial(EVEN, PhotometricInterpretation="MONOCHROME1")


@case("PET: slope and intercept change from slice to slice", "8 slices", rounding=1.2)
def pet_slopes() -> list[Dataset]:
    return rescaled_slices([(0.5 + 0.25 * k, -100.0 * k) for k in range(8)], PET)


@case("PET: one slice has a whole-number slope, the others have not", "8 slices", rounding=1.2)
def mixed_slopes() -> list[Dataset]:
    return rescaled_slices([(1.0 if k == 3 else 1.5, 0.0) for k in range(8)], PET)


@case("no RescaleSlope in some slices", "8 slices")
def rescale_missing_in_some() -> list[Dataset]:
    slices = rescaled_slices([(1.0, 0.0 if k % 2 else -50.0) for k in range(8)])
    for dataset in slices[1::2]:
        del dataset.RescaleSlope, dataset.RescaleIntercept
    return slices


def rescaled_slices(pairs: Sequence[tuple[float, float]], sop_class: str = PET) -> list[Dataset]:
    slices = axial(EVEN, sop_class=sop_class)
    for dataset, (slope, intercept) in zip(slices, pairs, strict=True):
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        set_pixels(dataset, (field(dataset.ImagePositionPatient) - intercept) / slope)
    return slices


@case("the intercept lifts some slices beyond 16 bits", "8 slices")
def values_beyond_sixteen_bits() -> list[Dataset]:
    slices = rescaled_slices([(1.0, -40_000.0 if k < 4 else 0.0) for k in range(8)])
    for dataset in slices:
        set_pixels(dataset, field(dataset.ImagePositionPatient) - dataset.RescaleIntercept)
    return slices


@folder_case("one file is cut off", "8 slices: missing_slices;truncated_slices", "rejected truncated")
def truncated_file(folder: Path) -> None:
    path = write(folder, axial(EVEN))[3]
    path.write_bytes(path.read_bytes()[:-20])


@folder_case("the first file is cut off", "7 slices: truncated_slices", "rejected truncated")
def truncated_first_file(folder: Path) -> None:
    path = write(folder, axial(EVEN))[0]
    path.write_bytes(path.read_bytes()[:-20])


@folder_case(
    "a report, a screenshot, a DICOMDIR, a PNG, text and an empty file beside it",
    "8 slices",
    "rejected structured_report",
    "rejected secondary_capture",
    "rejected dicomdir",
    "1 slices: patient_unknown",
    "rejected not_a_scan",
    "rejected empty_file",
)
def junk_beside(folder: Path) -> None:
    write(folder, axial(EVEN))
    write(
        folder / "more", [header(SR, SOPInstanceUID="1.2.826.77.6"), image((0, 0, 0), 60, sop_class=SECONDARY_CAPTURE)]
    )
    (write(folder / "disc", [header("1.2.840.10008.1.3.10", SOPInstanceUID="1.2.826.77.61")])[0]).rename(
        folder / "DICOMDIR"
    )
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "a.png")
    (folder / "notes.txt").write_text("nothing of interest")
    (folder / "empty").touch()


@case("enhanced MR, frames out of order", "6 slices")
def enhanced_shuffled() -> list[Dataset]:
    return [enhanced_of([(1.0, 2.0, HEIGHTS[k]) for k in (3, 0, 5, 1, 4, 2)])]


@case("enhanced CT", "6 slices: hu_uncertain")
def enhanced_ct() -> list[Dataset]:
    return [enhanced_of([(1.0, 2.0, z) for z in HEIGHTS], sop_class=ENHANCED_CT)]


@case("enhanced, directions in each frame", "6 slices: gantry_tilt")
def enhanced_directions_per_frame() -> list[Dataset]:
    return [enhanced_of([(1.0, 2.0, z) for z in HEIGHTS], [turned(15.0)] * 6)]


@case("enhanced, two stacks of different planes", *["3 slices: split_series"] * 2)
def enhanced_two_stacks() -> list[Dataset]:
    positions = [(1.0, 2.0, z) for z in HEIGHTS[:3]] + [(1.0, 2.0 + z, 3.0) for z in HEIGHTS[:3]]
    return [enhanced_of(positions, [AXIAL] * 3 + [(1, 0, 0, 0, 0, -1)] * 3)]


@case("enhanced, two time points", *["6 slices: split_series"] * 2)
def enhanced_time_points() -> list[Dataset]:
    positions = [(1.0, 2.0, z) for z in HEIGHTS] * 2
    return [enhanced_of(positions, times=[1] * 6 + [2] * 6, added=[0.0] * 6 + [CONTRAST] * 6)]


@case("enhanced, one frame without a position", "6 slices: missing_slices;split_series", "rejected no_geometry")
def enhanced_frame_without_position() -> list[Dataset]:
    dataset = enhanced_of([(1.0, 2.0, z) for z in HEIGHTS])
    del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    return [dataset]


@case("one enhanced volume in two files", "6 slices")
def enhanced_concatenation() -> list[Dataset]:
    first, second = ([(1.0, 2.0, z) for z in part] for part in (HEIGHTS[:4], HEIGHTS[4:]))
    return [enhanced_of(first, number=1), enhanced_of(second, number=2)]


@case("several frames and nothing that places them", "rejected no_geometry")
def frames_without_groups() -> list[Dataset]:
    dataset = image((0, 0, 0))
    set_pixels(dataset, np.stack([field((0, 0, z)) for z in range(4)]))
    dataset.NumberOfFrames = 4
    return [dataset]


@case("Siemens mosaic of seven slices", "7 slices: mosaic")
def mosaic() -> list[Dataset]:
    return [mosaic_of(7, downwards=False)]


@case("Siemens mosaic numbered from head to feet", "7 slices: mosaic")
def mosaic_downwards() -> list[Dataset]:
    return [mosaic_of(7, downwards=True)]


def mosaic_of(count: int, downwards: bool) -> Dataset:
    side, rows, columns, gap = 3, 7, 9, 2.0
    first = np.array([1.0, 2.0, 20.0])
    step = np.array([0, 0, -gap if downwards else gap])
    tiles = np.zeros((side * rows, side * columns))
    for k in range(count):
        row, column = divmod(k, side)
        tiles[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns] = field(first + k * step)
    # The header places the corner of an image as large as the whole mosaic around the first tile's centre.
    corner = first - [(side - 1) * columns / 2 * 0.75, (side - 1) * rows / 2 * 1.5, 0]
    dataset = image(tuple(corner.tolist()), SpacingBetweenSlices=gap, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    set_pixels(dataset, tiles)
    private = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    private.add_new(0x10, "OB", csa({"SliceNormalVector": ["0", "0", "-1" if downwards else "1"]}))
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", count)
    return dataset


def csa(elements: dict[str, list[str]]) -> bytes:
    """A Siemens CSA2 header."""
    data = b"SV10\4\3\2\1" + struct.pack("<II", len(elements), 77)
    for name, values in elements.items():
        data += name.encode().ljust(64, b"\0") + struct.pack("<I4sIII", len(values), b"FD\0\0", 0, len(values), 77)
        for value in values:
            padded = value.encode().ljust((len(value) + 4) // 4 * 4, b"\0")
            data += struct.pack("<IIII", 0, len(padded), 77, 0) + padded
    return data + b"\0" * (len(data) % 2)
