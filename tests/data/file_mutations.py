"""Damaged files for the fuzz test, and what must hold for each; a program, so that its memory is its own.

python file_mutations.py FOLDER SEED COUNT     prints nothing; FOLDER/report.json says what was found
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import signal
import struct
import sys
import tarfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from lejepa_med.data.files import images, nifti, storage
from lejepa_med.data.files.file_volume import BadFile
from lejepa_med.data.files.walk import walk
from lejepa_med.data.vocabulary import REASONS

LONGEST_S = 5
MEMORY = 1 << 30
"""Address space that one process may use for all its files, beyond what its modules take."""
EXTREME = (0, 1, -1, 2**15 - 1, -(2**15), 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 60_000)
EXTREME_FLOATS = (0.0, -1.0, 1e30, -1e30, float("nan"), float("inf"), 1e-30, 352.5)


def valid_files() -> dict[str, bytes]:
    """One good file of every kind, by file name."""
    draw = np.random.default_rng(0)
    voxels = draw.normal(500, 100, (9, 8, 7, 2)).astype(np.int16)
    first = nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 3, 1]))
    first.header.set_slope_inter(0.5, 3)
    second = nibabel.Nifti2Image(voxels[..., 0].astype(np.float64), np.diag([1.0, 1, 1, 1]))
    labels = nibabel.Nifti1Image((voxels[..., 0] // 100).astype(np.uint8), np.eye(4))
    swapped = nibabel.Nifti1Image(voxels, np.eye(4), nibabel.Nifti1Header(endianness=">"))
    whole = first.to_bytes()
    files = {
        "a.nii": whole, "a.nii.gz": gzip.compress(whole, mtime=0), "b.nii": second.to_bytes(),
        "c.nii": labels.to_bytes(), "d.nii": swapped.to_bytes(),
    }  # fmt: skip
    files |= _pictures(draw)
    members = {"x/a.nii": whole, "x/a.nii.gz": files["a.nii.gz"], "p.png": files["a.png"]}
    for name, method in (("a.zip", zipfile.ZIP_DEFLATED), ("b.zip", zipfile.ZIP_STORED), ("c.zip", zipfile.ZIP_BZIP2)):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            for inner, data in members.items():
                archive.writestr(inner, data)
        files[name] = packed.getvalue()
    for name, mode in (("a.tar", "w:"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz"), ("a.tar.bz2", "w:bz2")):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode=mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            for inner, data in {**members, "long/" * 30 + "a.nii": whole}.items():
                info = tarfile.TarInfo(inner)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        files[name] = packed.getvalue()
    return files


def _pictures(draw: np.random.Generator) -> dict[str, bytes]:
    grey = draw.integers(0, 255, (31, 23), np.uint8)
    pictures = {
        "a.png": Image.fromarray(grey), "b.png": Image.fromarray(grey.astype(np.uint16) * 200),
        "c.png": Image.fromarray(grey).convert("P"), "d.png": Image.fromarray(np.dstack([grey] * 4)),
        "a.jpg": Image.fromarray(grey), "b.jpg": Image.fromarray(np.dstack([grey] * 3)),
        "a.tif": Image.fromarray(grey), "b.tif": Image.fromarray(grey.astype(np.float32)),
        "c.tif": Image.fromarray(grey > 99), "d.tif": Image.fromarray(grey),
    }  # fmt: skip
    options: dict[str, dict[str, object]] = {
        "b.jpg": {"progressive": True},
        "a.tif": {"save_all": True, "append_images": [pictures["b.png"].copy()]},
        "c.tif": {"compression": "group4"},
        "d.tif": {"compression": "tiff_lzw"},
    }
    files = {}
    for name, picture in pictures.items():
        buffer = io.BytesIO()
        kind = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[name[-3:]]
        picture.save(buffer, kind, **options.get(name, {}))  # type: ignore[arg-type]
        files[name] = buffer.getvalue()
    return files


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """The file with one to four damages; damage to a .gz is made under its compression half of the time."""
    if data[:2] == b"\x1f\x8b" and draw.random() < 0.5:
        return gzip.compress(mutated(gzip.decompress(data), draw), 1, mtime=0)
    content = bytearray(data)
    for _ in range(int(draw.integers(1, 5))):
        _DAMAGES[int(draw.integers(len(_DAMAGES)))](content, draw)
    return bytes(content)


def _place(content: bytearray, draw: np.random.Generator) -> int:
    """Mostly near the ends: headers and directories are there."""
    ends = min(len(content), 600)
    place = int(draw.integers(ends)) if ends else 0
    return (place, max(0, len(content) - 1 - place), int(draw.integers(max(1, len(content)))))[int(draw.integers(3))]


def _bytes(content: bytearray, draw: np.random.Generator) -> None:
    for _ in range(int(draw.integers(1, 12))):
        if content:
            content[_place(content, draw)] = int(draw.integers(256))


def _cut(content: bytearray, draw: np.random.Generator) -> None:
    del content[_place(content, draw) :]


def _repeat(content: bytearray, draw: np.random.Generator) -> None:
    start, length = _place(content, draw), int(draw.integers(1, 400))
    content[start:start] = content[start : start + length]


def _remove(content: bytearray, draw: np.random.Generator) -> None:
    start = _place(content, draw)
    del content[start : start + int(draw.integers(1, 64))]


def _extreme(content: bytearray, draw: np.random.Generator) -> None:
    size = int(draw.choice([2, 4, 8]))
    place, order = _place(content, draw) // 2 * 2, "<>"[int(draw.integers(2))]
    if draw.random() < 0.3 and size > 2:
        value = struct.pack(order + " fd"[size // 4], EXTREME_FLOATS[int(draw.integers(len(EXTREME_FLOATS)))])
    else:
        number = int(EXTREME[int(draw.integers(len(EXTREME)))]) % 2 ** (8 * size)
        value = number.to_bytes(size, "little" if order == "<" else "big")
    content[place : place + size] = value


def _nifti_field(content: bytearray, draw: np.random.Generator) -> None:
    """dim, datatype, bitpix, pixdim, vox_offset, slope, units, magic of a NIfTI-1 header; anywhere else, noise."""
    place = int(
        draw.choice([40, 42, 44, 46, 48, 50, 52, 54, 70, 72, 76, 80, 84, 108, 112, 116, 123, 252, 254, 280, 344])
    )
    number = int(draw.choice([0, 1, 2, 4, 7, 16, 64, 128, 255, 512, 768, 1024, 1536, 1792, 32767, 65535]))
    content[place : place + 2] = number.to_bytes(2, "little")


_DAMAGES = (_bytes, _cut, _repeat, _remove, _extreme, _extreme, _nifti_field)


def judge(path: Path) -> Counter[str]:
    """What came of all that is found at a path; raises whatever should not be raised."""
    outcomes: Counter[str] = Counter()
    for found in walk([path]):
        if found.reason:
            assert found.reason in REASONS, found.reason
            outcomes[found.reason] += 1
            continue
        name = found.path.lower()
        try:
            with storage.open_binary(found.path) as file:
                file.read(132)
            if name.endswith(nifti.SUFFIXES):
                volumes = nifti.look(Path(found.path))
            elif name.endswith(images.SUFFIXES):
                volumes = images.look(Path(found.path))
            else:
                outcomes["other"] += 1
                continue
        except BadFile as bad:
            assert bad.reason in REASONS, bad.reason
            outcomes[bad.reason] += 1
            continue
        except OSError:  # a damaged member
            outcomes["oserror"] += 1
            continue
        for volume in volumes[:3] + volumes[-1:]:
            array = _read(Path(found.path), volume.part)
            assert array.shape == volume.shape, "another shape"
            if not volume.problem:
                assert float(array.min()) == volume.low and float(array.max()) == volume.high, "another range"
        outcomes["read"] += 1
    return outcomes


def _read(path: Path, part: int) -> np.ndarray:
    if path.name.lower().endswith(nifti.SUFFIXES):
        return nifti.read(path, part, "mri").array
    return images.read(path, part).array


def _too_long(*arguments: object) -> None:
    raise RuntimeError(f"took longer than {LONGEST_S} s")


def _most_memory() -> int:
    """Bytes; getrusage would give that of the program which started this one, if it was more."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main(folder: Path, seed: int, count: int) -> None:
    """Judges `count` damaged files and writes the report."""
    files = valid_files()
    outcomes: Counter[str] = Counter()
    for name, data in files.items():
        (folder / name).write_bytes(data)
        whole = judge(folder / name)
        assert set(whole) == {"read"}, (name, whole)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    names, failures, slowest = sorted(files), [], 0.0
    before = _most_memory()
    for number in range(seed, seed + count):
        draw = np.random.default_rng(number)
        name = names[number % len(names)]
        path = folder / f"m{number}{name[1:]}"
        path.write_bytes(mutated(files[name], draw) or b"x")
        began = time.perf_counter()
        signal.alarm(LONGEST_S)
        try:
            outcomes += judge(path)
        except Exception:
            failures.append([number, name, traceback.format_exc()[-1500:]])
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - began)
        path.unlink()
    grown = _most_memory() - before
    report = {"failures": failures, "outcomes": outcomes, "slowest_s": slowest, "grown": grown}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
