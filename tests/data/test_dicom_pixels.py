"""Stored pixels and their values, for every way in which DICOM keeps them."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from dicom_factory import CT, enhanced, image, write
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from transcoding import transcoded

from lejepa_med.data.dicom import codestream
from lejepa_med.data.dicom.codestream import codestream_size
from lejepa_med.data.dicom.frame import StoredPixels
from lejepa_med.data.dicom.header import NotAVolume
from lejepa_med.data.dicom.header_pass import read_frames
from lejepa_med.data.dicom.pixels import padding_mask, rescaled, stored_values

SHAPE = (40, 48)
RNG = np.random.default_rng(0)


def smooth(bits: int, signed: bool) -> NDArray[np.int64]:
    """An image that uses its whole range, the extremes included."""
    row, column = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    values = (row * 37 + column * 11) * (1 << bits) // (40 * 37 + 48 * 11)
    values = np.clip(values, 0, (1 << bits) - 1)
    values[0, 0], values[-1, -1] = 0, (1 << bits) - 1
    result: NDArray[np.int64] = values - ((1 << bits - 1) if signed else 0)
    return result


def dataset_of(values: NDArray[Any], allocated: int, stored: int, signed: bool, **elements: Any) -> Dataset:
    """A slice whose words hold exactly these bits."""
    dataset = image((0, 0, 0), sop_class=elements.pop("sop_class", CT))
    words = (values.astype(np.int64) & ((1 << allocated) - 1)).astype(f"<u{allocated // 8}")
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = words.tobytes() + b"\0" * (words.nbytes % 2)
    dataset["PixelData"].VR = "OW" if allocated > 8 else "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def read(folder: Path, dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> NDArray[Any]:
    dataset.file_meta.TransferSyntaxUID = syntax
    (path,) = write(folder, [dataset])
    (frame,) = read_frames(path)
    assert frame.damage == ""
    (stored,) = stored_values([frame])
    again = stored_values([dataclasses.replace(frame, pixels=())])[0]  # a frame of an older index
    np.testing.assert_array_equal(again, stored)
    return stored


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("allocated", "stored"), [(8, 8), (8, 7), (16, 16), (16, 12), (16, 10), (32, 32), (32, 20)])
def test_native_pixels(tmp_path: Path, allocated: int, stored: int, signed: bool, syntax: UID) -> None:
    values = smooth(stored, signed)
    found = read(tmp_path, dataset_of(values, allocated, stored, signed), syntax)
    np.testing.assert_array_equal(found.astype(np.int64), values)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("allocated", "vr"), [(8, "OB"), (8, "OW"), (16, "OW"), (32, "OW")])
def test_big_endian(tmp_path: Path, allocated: int, vr: str, signed: bool) -> None:
    values = smooth(allocated, signed)
    dataset = dataset_of(values, allocated, allocated, signed)
    words = np.frombuffer(dataset.PixelData, f"<u{2 if vr == 'OW' and allocated == 8 else allocated // 8}")
    dataset.PixelData = words.astype(words.dtype.newbyteorder(">")).tobytes()
    dataset["PixelData"].VR = vr
    np.testing.assert_array_equal(read(tmp_path, dataset, ExplicitVRBigEndian).astype(np.int64), values)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("stored", [10, 12, 15])
def test_unused_high_bits_do_not_count(tmp_path: Path, stored: int, signed: bool, syntax: UID) -> None:
    values = smooth(stored, signed)
    rubbish = RNG.integers(0, 1 << (16 - stored), SHAPE) << stored
    dataset = dataset_of((values & ((1 << stored) - 1)) | rubbish, 16, stored, signed)
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(read(tmp_path, dataset, syntax), values)


@pytest.mark.parametrize("signed", [False, True])
def test_high_bit_moves_the_pixels(tmp_path: Path, signed: bool) -> None:
    values = smooth(12, signed)
    left = dataset_of((values & 0xFFF) << 4, 16, 12, signed, HighBit=15)
    np.testing.assert_array_equal(read(tmp_path / "left", left), values)
    right = dataset_of(values & 0xFFF, 16, 12, signed, HighBit=15)  # says so, and is not
    np.testing.assert_array_equal(read(tmp_path / "right", right), values)


def test_a_high_bit_that_nothing_supports_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="HighBit"):
        read(tmp_path, dataset_of(RNG.integers(0, 1 << 16, SHAPE), 16, 12, False, HighBit=15))


def test_slices_of_one_series_may_differ_in_sign(tmp_path: Path) -> None:
    values = smooth(16, True)
    first = read(tmp_path / "1", dataset_of(values, 16, 16, True))
    second = read(tmp_path / "2", dataset_of(values + 1024, 16, 16, False, RescaleIntercept="-1024", RescaleSlope="1"))
    np.testing.assert_array_equal(first, values)
    assert second.dtype == np.uint16


@pytest.mark.parametrize(
    ("keyword", "dtype", "bits"), [("FloatPixelData", "<f4", 32), ("DoubleFloatPixelData", "<f8", 64)]
)
def test_floating_point_pixels(tmp_path: Path, keyword: str, dtype: str, bits: int) -> None:
    values = np.linspace(-3, 1e30, SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(dtype)
    dataset = dataset_of(smooth(16, False), 16, 16, False, sop_class="1.2.840.10008.5.1.4.1.1.128")
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated = bits
    setattr(dataset, keyword, values.tobytes())
    (path,) = write(tmp_path, [dataset])
    (frame,) = read_frames(path)
    (stored,) = stored_values([frame])
    np.testing.assert_array_equal(stored, values)
    found = rescaled(frame, stored)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, values, rtol=1e-7)
    huge = rescaled(frame, np.full((2, 2), 1e300))
    assert np.isinf(huge).all()


@pytest.mark.parametrize("extra", [0, 1, 7, 1000])
def test_more_bytes_than_pixels(tmp_path: Path, extra: int) -> None:
    dataset = dataset_of(smooth(8, False), 8, 8, False)
    values = smooth(8, False)[:23, :39]
    dataset.Rows, dataset.Columns = values.shape
    dataset.PixelData = values.astype(np.uint8).tobytes() + b"\x55" * (extra + (23 * 39 + extra) % 2)
    np.testing.assert_array_equal(read(tmp_path, dataset), values)


@pytest.mark.parametrize(
    ("signed", "vr", "word", "expected"),
    [
        (True, "US", 63_536, -2000),
        (True, "SS", -2000, -2000),
        (False, "SS", -2000, 63_536),
        (False, "US", 63_536, 63_536),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_padding_has_the_sign_of_the_pixels(
    tmp_path: Path, signed: bool, vr: str, word: int, expected: int, syntax: UID
) -> None:
    values = np.where(np.eye(*SHAPE, dtype=bool), word, 5)
    dataset = dataset_of(values, 16, 16, signed)
    dataset.add_new(0x00280120, vr, word)
    dataset.file_meta.TransferSyntaxUID = syntax
    (path,) = write(tmp_path, [dataset])
    (frame,) = read_frames(path)
    assert frame.padding == (expected, expected)
    mask = padding_mask(frame, stored_values([frame])[0])
    assert mask is not None
    np.testing.assert_array_equal(mask, np.eye(*SHAPE, dtype=bool))


def test_padding_beyond_the_used_bits_is_still_padding(tmp_path: Path) -> None:
    values = np.where(np.eye(*SHAPE, dtype=bool), 63_536, smooth(12, False))
    dataset = dataset_of(values, 16, 12, False)
    dataset.add_new(0x00280120, "US", 63_536)
    np.testing.assert_array_equal(read(tmp_path, dataset), values)


def test_a_range_of_padding(tmp_path: Path) -> None:
    dataset = dataset_of(smooth(16, False), 16, 16, False)
    dataset.add_new(0x00280120, "US", 900)
    dataset.add_new(0x00280121, "US", 100)
    (path,) = write(tmp_path, [dataset])
    (frame,) = read_frames(path)
    stored = stored_values([frame])[0]
    mask = padding_mask(frame, stored)
    assert mask is not None
    np.testing.assert_array_equal(mask, (stored >= 100) & (stored <= 900))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.int32, np.uint32])
@pytest.mark.parametrize("scale", [(1.0, 0.0), (1.0, -1024.0), (0.3, -7.25), (1.0, 1e12), (2e-5, 0.0), (1e308, 0.0)])
def test_rescaling_is_exact(dtype: type[np.generic], scale: tuple[float, float], tmp_path: Path) -> None:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    (path,) = write(tmp_path, [image((0, 0, 0))])
    frame = dataclasses.replace(read_frames(path)[0], slope=scale[0], intercept=scale[1])
    stored = np.array([[low, high, 0], [1, 2, 3]]).astype(dtype)
    found = rescaled(frame, stored)
    with np.errstate(over="ignore"):
        expected = stored.astype(np.float64) * scale[0] + scale[1]
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))
    if np.issubdtype(found.dtype, np.integer):
        np.testing.assert_array_equal(found.astype(np.float64), expected)
        assert np.can_cast(found.dtype, np.int32)
    else:
        assert found.dtype == np.float32


def test_bits_that_contradict_each_other(tmp_path: Path) -> None:
    dataset = dataset_of(smooth(16, False), 16, 16, False, BitsStored=17)
    (path,) = write(tmp_path, [dataset])
    with pytest.raises(NotAVolume, match="unreadable"):
        read_frames(path)


LOSSLESS = (
    (gdcm.TransferSyntax.JPEGLosslessProcess14, JPEGLossless),
    (gdcm.TransferSyntax.JPEGLosslessProcess14_1, JPEGLosslessSV1),
    (gdcm.TransferSyntax.JPEGLSLossless, JPEGLSLossless), (gdcm.TransferSyntax.JPEG2000Lossless, JPEG2000Lossless),
    (gdcm.TransferSyntax.RLELossless, RLELossless),
)  # fmt: skip


@pytest.mark.parametrize(("syntax", "uid"), LOSSLESS, ids=[uid.name for _, uid in LOSSLESS])
@pytest.mark.parametrize(("allocated", "stored"), [(8, 8), (16, 12), (16, 16)])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_by_every_decoder(
    tmp_path: Path, syntax: int, uid: UID, allocated: int, stored: int, signed: bool
) -> None:
    values = smooth(stored, signed)
    path = transcoded(tmp_path, dataset_of(values, allocated, stored, signed), syntax)
    assert dcmread(path).file_meta.TransferSyntaxUID == uid
    (frame,) = read_frames(path)
    np.testing.assert_array_equal(stored_values([frame])[0].astype(np.int64), values)
    pixels = StoredPixels(*frame.pixels)  # type: ignore[arg-type]
    content = path.read_bytes()[pixels.offset :]
    plugins = get_decoder(uid).available_plugins
    assert plugins
    for plugin in plugins:
        try:
            decoded = codestream.decode(content, pixels, [0], plugin)[0]
        except (ValueError, RuntimeError, NotImplementedError):
            assert len(plugins) > 1, "the only decoder fails"
            continue
        np.testing.assert_array_equal(codestream.numbers_of(decoded, pixels).astype(np.int64), values, plugin)


@pytest.mark.parametrize(
    ("syntax", "uid", "stored", "tolerance"),
    [
        (gdcm.TransferSyntax.JPEGBaselineProcess1, JPEGBaseline8Bit, 8, 3),
        (gdcm.TransferSyntax.JPEGExtendedProcess2_4, JPEGExtended12Bit, 12, 40),
        (gdcm.TransferSyntax.JPEGLSNearLossless, JPEGLSNearLossless, 12, 2),
    ],
)
def test_lossy(tmp_path: Path, syntax: int, uid: UID, stored: int, tolerance: int) -> None:
    values = smooth(stored, False)
    path = transcoded(tmp_path, dataset_of(values, 8 if stored == 8 else 16, stored, False), syntax, lossy=True)
    assert dcmread(path).file_meta.TransferSyntaxUID == uid
    (frame,) = read_frames(path)
    found = stored_values([frame])[0].astype(np.int64)
    assert np.abs(found - values)[1:-1, 1:-1].max() <= tolerance and found.max() < (1 << stored) + tolerance


def j2k(values: NDArray[Any], signed: bool) -> bytes:
    encoded: bytes = encode_array(values.astype(np.int16 if signed else np.uint16), bits_stored=12)
    return encoded


@pytest.mark.parametrize("codestream_signed", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_2000_whose_codestream_and_header_differ_in_sign(
    tmp_path: Path, signed: bool, codestream_signed: bool
) -> None:
    values = smooth(12, signed)
    coded = values & 0xFFF if not codestream_signed else np.where(values > 2047, values - 4096, values)
    dataset = dataset_of(values, 16, 12, signed)
    dataset.PixelData = encapsulate([j2k(coded, codestream_signed)])
    dataset["PixelData"].VR = "OB"
    found = read(tmp_path, dataset, JPEG2000Lossless)
    np.testing.assert_array_equal(found.astype(np.int64), values)


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("uid", [RLELossless, JPEG2000Lossless])
def test_encapsulated_frames(tmp_path: Path, table: bool, fragments: int, uid: UID) -> None:
    dataset = enhanced(5)
    frames = [smooth(12, False) // (k + 1) for k in range(5)]
    dataset.Rows, dataset.Columns = SHAPE
    dataset.BitsStored, dataset.HighBit = 12, 11
    if uid == RLELossless:
        dataset.PixelData = np.stack(frames).astype("<u2").tobytes()
        dataset.compress(RLELossless, generate_instance_uid=False)
        streams = list(generate_frames(dataset.PixelData, number_of_frames=5))
    else:
        streams = [j2k(frame, False) for frame in frames]
    if fragments > 1 and (uid == RLELossless or not table):
        pytest.skip("RLE keeps a frame in one fragment; several need an offset table")
    dataset.PixelData = encapsulate(streams, fragments_per_frame=fragments, has_bot=table)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = uid
    (path,) = write(tmp_path, [dataset])
    found = read_frames(path)
    images = stored_values([found[3], found[0]])
    np.testing.assert_array_equal(images[0], frames[3])
    np.testing.assert_array_equal(images[1], frames[0])
    np.testing.assert_array_equal(np.stack(stored_values(found)), np.stack(frames))


def test_frames_of_native_objects_are_read_alone(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [enhanced(6)])
    frames = read_frames(path)
    whole = np.stack(stored_values(frames))
    np.testing.assert_array_equal(whole, dcmread(path).pixel_array)
    np.testing.assert_array_equal(stored_values([frames[4], frames[1]])[0], whole[4])


@pytest.mark.parametrize("uid", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_a_codestream_of_another_size_is_refused(tmp_path: Path, uid: UID) -> None:
    dataset = dataset_of(smooth(12, False), 16, 12, False)
    dataset.compress(uid, generate_instance_uid=False)
    dataset.Rows = SHAPE[0] + 1
    with pytest.raises((ValueError, RuntimeError)):
        read(tmp_path, dataset, uid)


def test_a_codestream_that_claims_60_000_pixels_a_side_is_not_decoded() -> None:
    stream = bytearray(j2k(smooth(12, False), False))
    place = stream.index(b"\xff\x51")
    assert codestream_size(bytes(stream)) == SHAPE
    struct.pack_into(">2I", stream, place + 6, 60_000, 60_000)  # image
    struct.pack_into(">2I", stream, place + 22, 60_000, 60_000)  # tiles
    assert codestream_size(bytes(stream)) == (60_000, 60_000)
    pixels = StoredPixels(JPEG2000Lossless, 0, -1, 1, *SHAPE, 16, 12, 11, 0, 0, "<")
    with pytest.raises(ValueError, match="size"):
        codestream.decode(encapsulate([bytes(stream)]), pixels, [0])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("uid", [ExplicitVRLittleEndian, JPEG2000Lossless])
def test_monochrome1_stays_as_stored(tmp_path: Path, photometric: str, uid: UID) -> None:
    dataset = dataset_of(smooth(12, False), 16, 12, False, PhotometricInterpretation=photometric)
    if uid != ExplicitVRLittleEndian:
        dataset.compress(uid, generate_instance_uid=False)
    np.testing.assert_array_equal(read(tmp_path, dataset, uid), smooth(12, False))


@pytest.mark.parametrize("damage", ["longer", "shorter", "cut", "segments"])
def test_run_lengths_that_do_not_add_up_are_refused_in_silence(
    tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = dataset_of(smooth(12, False), 16, 12, False)
    dataset.compress(RLELossless, generate_instance_uid=False)
    (path,) = write(tmp_path, [dataset])
    (frame,) = read_frames(path)
    pixels = StoredPixels(*frame.pixels)  # type: ignore[arg-type]
    (stream,) = generate_frames(path.read_bytes()[pixels.offset :], number_of_frames=1)
    changed = bytearray(stream)
    if damage == "segments":
        changed[0] = 3
    elif damage == "cut":
        changed = changed[:-20]
    else:
        place = struct.unpack_from("<2I", stream, 4)[1]
        changed[place] = 0x81 if damage == "longer" else 0xFF
    with pytest.raises(ValueError, match=r"run lengths|segments"):
        codestream.decode(encapsulate([bytes(changed)]), pixels, [0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("place", "value"), [(6, 236), (6, 1), (15, 236), (16, 0), (4, 255)])
def test_a_broken_jpeg_header_never_reaches_gdcm(tmp_path: Path, place: int, value: int) -> None:
    """It ends the process at a wrong number of bits (byte 6) and at what is no segment (15 and 16)."""
    path = transcoded(
        tmp_path, dataset_of(smooth(12, False), 16, 12, False), gdcm.TransferSyntax.JPEGLosslessProcess14_1
    )
    (frame,) = read_frames(path)
    pixels = StoredPixels(*frame.pixels)  # type: ignore[arg-type]
    (stream,) = generate_frames(path.read_bytes()[pixels.offset :], number_of_frames=1)
    assert codestream_size(stream) == SHAPE and stream[6] == 16 and stream[15] == 0xFF
    broken = stream[:place] + bytes([value]) + stream[place + 1 :]
    with pytest.raises(ValueError, match=r"codestream|size"):
        codestream_size(broken)
    with pytest.raises(ValueError, match="size"):
        codestream.decode_one(stream, pixels._replace(allocated=8))


@pytest.mark.parametrize(
    "syntax", [gdcm.TransferSyntax.JPEGLosslessProcess14_1, gdcm.TransferSyntax.JPEGExtendedProcess2_4]
)
def test_an_image_that_ends_early_is_refused(tmp_path: Path, syntax: int, capfd: pytest.CaptureFixture[str]) -> None:
    lossy = syntax == gdcm.TransferSyntax.JPEGExtendedProcess2_4
    path = transcoded(tmp_path, dataset_of(smooth(12, False), 16, 12, False), syntax, lossy)
    (frame,) = read_frames(path)
    pixels = StoredPixels(*frame.pixels)  # type: ignore[arg-type]
    (stream,) = generate_frames(path.read_bytes()[pixels.offset :], number_of_frames=1)
    half = (stream.index(b"\xff\xda") + len(stream)) // 2
    with pytest.raises(ValueError, match="damaged"):
        codestream.decode_one(stream[:half] + b"\xff\xd9" + stream[half + 2 :], pixels)
    assert capfd.readouterr() == ("", "")
