"""Damaged DICOM files: every one ends as frames or as a reason, in bounded time and memory, and nothing is said.

Files are looked at in a child process with faulthandler, so that a decoder that crashes is seen and counted: `spread`
gives such a file a process of its own in real runs. Every mutation is seeded: a failure names the number to run again.
"""

from __future__ import annotations

import dataclasses
import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pytest
from dicom_factory import enhanced, image, set_pixels
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from transcoding import transcoded

from lejepa_med.data import vocabulary

SECONDS, MEGABYTES = 5.0, 600
"""Limits per file, and on the growth of the child's resident memory over all files."""

CHILD = """
import faulthandler, json, logging, resource, sys, time, warnings
faulthandler.enable()
warnings.simplefilter("error")
from pathlib import Path
from lejepa_med.data.dicom.pixels import padding_mask, rescaled, stored_values
from lejepa_med.data.index.examine import examine
from lejepa_med.data.files.walk import Found
records = []
logging.getLogger().addHandler(type("Heard", (logging.Handler,), {"emit": lambda self, record: records.append(1)})())
start = None
for line in sys.stdin:
    path = line.strip()
    begin = time.perf_counter()
    outcome = examine(Found(path, path, 1, 1))
    decoded = ""
    frames = [frame for frame in outcome.frames if not frame.damage]
    if frames:
        try:
            for frame, stored in zip(frames, stored_values(frames)):
                rescaled(frame, stored)
                padding_mask(frame, stored)
        except Warning as warning:
            decoded = "warned " + type(warning).__name__
        except Exception as error:
            decoded = "refused"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    start = start or peak
    damage = sorted({frame.damage for frame in outcome.frames})
    print(json.dumps([outcome.kind, outcome.reason, len(outcome.frames), damage, decoded,
        time.perf_counter() - begin, peak - start, len(records)]), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Look:
    """What the child says of one file."""

    kind: str
    reason: str
    frames: int
    damage: list[str]
    decoded: str
    seconds: float
    growth_mb: int
    records: int


def sources(folder: Path) -> list[bytes]:
    """Valid files: native, implicit, deflated, RLE, JPEG-LS, JPEG 2000, enhanced (plain and RLE), a mosaic."""
    folder.mkdir()
    datasets = []
    for syntax in (None, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless,
                   JPEG2000Lossless):  # fmt: skip
        dataset = image((0, 0, 0), PixelPaddingValue=7)
        row, column = np.mgrid[0:64, 0:64]
        set_pixels(dataset, row * 200.0 + column)
        dataset.add_new(0x00091010, "OB", b"private " * 8)
        dataset.ReferencedImageSequence = Items([Dataset(), Dataset()])
        if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
            dataset.compress(syntax, generate_instance_uid=False)
        elif syntax:
            dataset.file_meta.TransferSyntaxUID = syntax
        datasets.append(dataset)
    packed = enhanced(5)
    packed.compress(RLELossless, generate_instance_uid=False)
    datasets += [enhanced(5), packed, _mosaic()]
    contents = []
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / str(number), enforce_file_format=True)
        contents.append((folder / str(number)).read_bytes())
    return contents


def jpeg_sources(folder: Path) -> list[bytes]:
    """Files that only GDCM decodes: JPEG lossless of both kinds, and JPEG of 12 bits."""
    folder.mkdir()
    row, column = np.mgrid[0:64, 0:64]
    values = 1000 + 300 * np.sin(row / 9) + 200 * np.cos(column / 7) + np.random.default_rng(0).normal(0, 12, (64, 64))
    contents = []
    for number, syntax in enumerate(
        (gdcm.TransferSyntax.JPEGLosslessProcess14, gdcm.TransferSyntax.JPEGLosslessProcess14_1,
         gdcm.TransferSyntax.JPEGExtendedProcess2_4)
    ):  # fmt: skip
        dataset = image((0, 0, 0))
        set_pixels(dataset, values)
        dataset.BitsStored, dataset.HighBit = 12, 11
        made = transcoded(folder.with_name(f"made {number}"), dataset, syntax, lossy=number == 2)
        contents.append(made.read_bytes())
        (folder / str(number)).write_bytes(contents[-1])
    return contents


def _mosaic() -> Dataset:
    dataset = image((0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"], SpacingBetweenSlices=3.0)
    set_pixels(dataset, np.arange(64.0 * 64).reshape(64, 64))
    name = b"SliceNormalVector".ljust(64, b"\0")
    values = b"".join(struct.pack("<4I", len(v), len(v), 77, len(v)) + v.ljust(4, b"\0") for v in (b"0", b"0", b"1"))
    csa = b"SV10\4\3\2\1" + struct.pack("<II", 1, 77) + name + struct.pack("<I4sIII", 3, b"FD", 3, 3, 77) + values
    dataset.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    dataset.add_new(0x0019100A, "US", 9)
    dataset.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
    dataset.add_new(0x00291010, "OB", csa)
    dataset.Rows = dataset.Columns = 63
    dataset.PixelData = dataset.PixelData[: 63 * 63 * 2]
    return dataset


def _borders(content: bytes) -> list[int]:
    """Where elements seem to begin: a group that occurs in headers, and a value representation."""
    return [
        place for place in range(128, len(content) - 8)
        if content[place + 1] == 0 and content[place + 4 : place + 6].isupper() and content[place] < 0x60
    ]  # fmt: skip


def flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 3, 10, 40))):
        changed[draw.randrange(128, len(changed))] = draw.randrange(256)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    borders = _borders(content) or [len(content) // 2]
    return content[: draw.choice(borders) + draw.choice((0, 0, 4, 8, 12))]


def overwrite(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 2, 5))):
        place = draw.choice(_borders(content) or [132]) + draw.choice((4, 6, 8, 10, 12))
        extreme = draw.choice(
            (b"\xff\xff", b"\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xff\x7f", b"1e99", b"-0\\9")
        )
        changed[place : place + len(extreme)] = extreme
    return bytes(changed)


def repeat(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(128, len(content))
    chunk = content[start : start + draw.choice((8, 30, 300, 3000))]
    place = draw.choice([*(_borders(content) or [132]), draw.randrange(128, len(content))])
    return content[:place] + chunk * draw.choice((1, 2, 20)) + content[place:]


def drop(content: bytes, draw: random.Random) -> bytes:
    place = draw.choice(_borders(content) or [132])
    return content[:place] + content[place + draw.choice((1, 2, 8, 50)) :]


def harm_markers(content: bytes, draw: random.Random) -> bytes:
    """Changes bytes beside what may be a marker of JPEG: segments, their lengths, tables and the frame's size."""
    changed = bytearray(content)
    places = [place for place in range(128, len(content) - 1) if content[place] == 0xFF and content[place + 1] > 0xBF]
    for _ in range(draw.choice((1, 2, 4))):
        place = min(draw.choice(places or [132]) + draw.randrange(24), len(changed) - 1)
        changed[place] = draw.choice((0, 1, 255, draw.randrange(256)))
    return bytes(changed)


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, cut, overwrite, repeat, drop, harm_markers)


def in_codestream(content: bytes, draw: random.Random) -> bytes:
    """Mutates a JPEG codestream and keeps its length, so that the header pass finds nothing wrong."""
    start = content.rindex(b"\xfe\xff\x00\xe0") + 8
    whole = bytes(128) + content[start:]
    changed = draw.choice(MUTATIONS)(whole, draw)[: len(whole)].ljust(len(whole), b"\0")
    return content[:start] + changed[128:-10] + content[-10:]  # the end of the fragment stays


def look_at(paths: list[Path]) -> tuple[list[Look | None], str]:
    """What children say of the files (None: it crashed), and all that was written to stderr."""
    looks: list[Look | None] = []
    said = ""
    while len(looks) < len(paths):
        child = subprocess.run(
            [sys.executable, "-c", CHILD], input="\n".join(map(str, paths[len(looks) :])), capture_output=True,
            text=True, check=False, timeout=600,
        )  # fmt: skip
        looks += [Look(*json.loads(line)) for line in child.stdout.splitlines()]
        if child.returncode < 0:
            looks.append(None)
        else:
            said += child.stderr
            assert len(looks) == len(paths), child.stderr[-2000:]
    return looks, said


def check(folder: Path, numbers: range, of_jpeg: bool = False) -> None:
    valid = (jpeg_sources if of_jpeg else sources)(folder / "valid")
    broken = folder / "broken"
    broken.mkdir()
    paths = []
    for number in numbers:
        draw = random.Random(number)
        content = valid[number % len(valid)]
        for _ in range(draw.choice((1, 1, 2))):
            content = (in_codestream if of_jpeg else draw.choice(MUTATIONS))(content, draw)
        paths.append(broken / f"{number}.dcm")
        paths[-1].write_bytes(content)
    looks, said = look_at([*sorted((folder / "valid").iterdir()), *paths])
    names = [f"valid {k}" for k in range(len(valid))] + [f"number {k}" for k in numbers]
    assert all(look and look.frames and not look.decoded and look.damage == [""] for look in looks[: len(valid)])
    assert said == ""
    crashed = [name for name, look in zip(names, looks, strict=True) if look is None]
    assert len(crashed) * 500 <= len(numbers), f"decoders crashed: {crashed}"
    for name, look in zip(names, looks, strict=True):
        if look is not None:
            assert look.reason in {"", *vocabulary.FILE_REASONS} and bool(look.reason) != bool(look.frames), name
            assert set(look.damage) <= {"", "truncated", "no_pixels"}, name
            assert look.decoded in ("", "refused"), f"{name}: {look.decoded}"
            assert look.seconds < SECONDS and look.growth_mb < MEGABYTES and not look.records, f"{name}: {look}"
    # The mutations do reach the reader, or the decoder.
    if of_jpeg:
        assert sum(look.decoded == "refused" for look in looks if look) > len(numbers) // 4
    else:
        assert len({look.reason for look in looks if look}) > 3


def test_a_hundred_damaged_files(tmp_path: Path) -> None:
    check(tmp_path, range(100))


@pytest.mark.long
def test_thousands_of_damaged_files(tmp_path: Path) -> None:
    check(tmp_path, range(100, 2600))


def test_a_hundred_damaged_jpeg_files(tmp_path: Path) -> None:
    check(tmp_path, range(100), of_jpeg=True)


@pytest.mark.long
def test_thousands_of_damaged_jpeg_files(tmp_path: Path) -> None:
    check(tmp_path, range(100, 2600), of_jpeg=True)
