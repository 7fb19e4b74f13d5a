"""Images: grey values as stored, and claims that are refused before anything is decoded."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lejepa_med.data.files import images
from lejepa_med.data.files.file_volume import BadFile

GREY = np.random.default_rng(0).integers(1, 255, (20, 30), np.uint8)


def reason(path: Path) -> str:
    with pytest.raises(BadFile) as caught:
        images.look(path)
    return caught.value.reason


def png_that_claims(path: Path, width: int, height: int) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(5000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("name", "picture", "expected"),
    [
        ("a.png", Image.fromarray(GREY), GREY),
        ("a.png", Image.fromarray(GREY.astype(np.uint16) * 250), GREY.astype(np.uint16) * 250),
        ("a.png", Image.fromarray(GREY > 99), (GREY > 99) * 255),
        ("a.png", Image.fromarray(GREY).convert("P"), GREY),
        ("a.png", Image.fromarray(np.dstack([GREY] * 3)), GREY),
        ("a.png", Image.fromarray(np.dstack([*[GREY] * 3, (GREY > 99) * np.uint8(255)])), GREY * (GREY > 99)),
        ("a.tif", Image.fromarray(GREY.astype(np.uint16) * 250), GREY.astype(np.uint16) * 250),
        ("a.tif", Image.fromarray(GREY.astype(np.float32) / 7), GREY.astype(np.float32) / 7),
        ("a.tif", Image.fromarray(GREY.astype(np.int32) * -90_000), GREY.astype(np.int32) * -90_000),
        ("named_wrongly.jpg", Image.fromarray(GREY), GREY),
    ],
)
def test_grey_values_are_those_stored(tmp_path: Path, name: str, picture: Image.Image, expected: np.ndarray) -> None:
    picture.save(tmp_path / name, "PNG" if name.endswith("jpg") else None)
    (page,) = images.look(tmp_path / name)
    assert (page.shape, page.low, page.high) == (GREY.shape, expected.min(), expected.max())
    np.testing.assert_array_equal(images.read(tmp_path / name, 0).array, expected)


def test_pages_are_images_of_their_own_and_are_read_one_by_one(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.roll(GREY, number, 0)[: 10 + number]) for number in range(5)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert [page.shape[0] for page in images.look(tmp_path / "a.tif")] == [10, 11, 12, 13, 14]
    np.testing.assert_array_equal(images.read(tmp_path / "a.tif", 3).array, np.roll(GREY, 3, 0)[:13])
    with pytest.raises(BadFile, match="truncated"):
        images.read(tmp_path / "a.tif", 5)


def test_too_many_pages_or_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Image.fromarray(GREY)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page.copy()] * 4)
    assert len(images.look(tmp_path / "a.tif")) == 5
    monkeypatch.setattr(images, "MAX_PIXELS_OF_FILE", 4 * GREY.size)
    assert reason(tmp_path / "a.tif") == "too_large"
    monkeypatch.setattr(images, "MAX_PIXELS_OF_FILE", 1 << 30)
    monkeypatch.setattr(images, "MAX_PARTS", 4)
    assert reason(tmp_path / "a.tif") == "too_large"


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (60_000, 60_000, "too_large"),
        (2**31 - 1, 2**31 - 1, "too_large"),
        (13_000, 12_000, "too_large"),  # under Pillow's own limit
        (10_000, 10_000, "truncated"),  # allowed, but not in a hundred bytes
        (100, 100, "truncated"),
    ],
)
def test_claims_are_refused_before_memory_is_taken(tmp_path: Path, width: int, height: int, expected: str) -> None:
    path = png_that_claims(tmp_path / "a.png", width, height)
    tracemalloc.start()
    assert reason(path) == expected
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_what_is_no_image_is_unreadable(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_text("text")
    (tmp_path / "b.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )  # never handed to another reader
    assert reason(tmp_path / "a.png") == reason(tmp_path / "b.jpg") == "unreadable"
    Image.fromarray(GREY).save(tmp_path / "c.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "c.tif").read_bytes())
    content[12:300] = b"\xff" * 288
    (tmp_path / "c.tif").write_bytes(content)
    assert reason(tmp_path / "c.tif") in ("truncated", "unreadable")
    assert capfd.readouterr() == ("", "")
