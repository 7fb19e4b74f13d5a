"""Arrays cut into pieces within one file: plain blocks; blocks or slabs compressed with pyarrow and checked by CRC."""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from cache_format.store import Array, Box, Reader, Store, write_npy


def _touched(box: Box, side: int) -> Iterator[tuple[tuple[int, ...], Box, Box]]:
    """Blocks that meet a box: their number, the box inside the block, and its place in the result."""
    for number in product(*[range(s.start // side, -(-s.stop // side)) for s in box]):
        pairs = list(zip(number, box, strict=True))
        low = [max(s.start, n * side) for n, s in pairs]
        high = [min(s.stop, (n + 1) * side) for n, s in pairs]
        inside = tuple(slice(a - n * side, b - n * side) for n, a, b in zip(number, low, high, strict=True))
        target = tuple(slice(a - s.start, b - s.start) for s, a, b in zip(box, low, high, strict=True))
        yield number, inside, target


def _padded(array: Array, side: int) -> tuple[Array, tuple[int, ...]]:
    """Blocks `[block, block, block, side, side, side]`, edges repeated, and how many there are along each axis."""
    grid = tuple(-(-length // side) for length in array.shape)
    padding = [(0, count * side - length) for count, length in zip(grid, array.shape, strict=True)]
    array = np.pad(array, padding, mode="edge")
    split = array.reshape([part for count in grid for part in (count, side)])
    return np.ascontiguousarray(split.transpose(0, 2, 4, 1, 3, 5)), grid


def npy_blocks(side: int) -> Store:
    def write(array: Array, path: Path) -> None:
        write_npy(_padded(array, side)[0], path)

    def open_(path: Path) -> Reader:
        blocks = np.load(path, mmap_mode="r", allow_pickle=False)

        def read(box: Box) -> Array:
            out = np.empty([s.stop - s.start for s in box], blocks.dtype)
            for number, inside, target in _touched(box, side):
                out[target] = blocks[number][inside]
            return out

        return read

    return Store(f".npy in blocks of {side}", write, open_)


def _byte_planes(array: Array) -> Array:
    """All first bytes, then all second ones: high bytes of neighbours are alike."""
    octets = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize)
    return np.stack([octets[:, place] for place in range(array.itemsize)])


def _from_byte_planes(coded: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    planes = np.frombuffer(coded, np.uint8).reshape(dtype.itemsize, -1)
    if dtype.itemsize == 1:
        return planes.reshape(shape)
    octets = np.empty(planes.shape[::-1], np.uint8)
    for place, plane in enumerate(planes):  # ten times faster than a transposed copy
        octets[:, place] = plane
    return octets.view(dtype).reshape(shape)


def _write_frames(path: Path, header: dict[str, Any], frames: list[bytes]) -> None:
    """u32 header length and CRC-32, the header (JSON, with length and CRC-32 of every frame), the frames."""
    text = json.dumps(header | {"frames": [[len(frame), zlib.crc32(frame)] for frame in frames]}).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<II", len(text), zlib.crc32(text)) + text)
        stream.writelines(frames)


def _read_index(stream: Any) -> tuple[dict[str, Any], list[int]]:
    """The header, and where each frame begins."""
    length, crc = struct.unpack("<II", stream.read(8))
    text = stream.read(length)
    if zlib.crc32(text) != crc:
        raise ValueError("damaged index")
    header = json.loads(text)
    return header, list(accumulate([size for size, _ in header["frames"]], initial=8 + length))


def _checked(frame: bytes | memoryview, crc: int) -> bytes | memoryview:
    if zlib.crc32(frame) != crc:
        raise ValueError("damaged frame")
    return frame


def _codec(name: str, level: int) -> tuple[pa.Codec, str]:
    return (pa.Codec(name, level), f"{name}-{level}") if name == "zstd" else (pa.Codec(name), name)


def coded_blocks(side: int, level: int, codec_name: str = "zstd") -> Store:
    """Blocks compressed with pyarrow's codecs (a dependency already), a CRC-32 each, and an index at the front."""
    codec, label = _codec(codec_name, level)

    def write(array: Array, path: Path) -> None:
        blocks, grid = _padded(array, side)
        frames = [codec.compress(_byte_planes(block), asbytes=True) for block in blocks.reshape(-1, side**array.ndim)]
        _write_frames(path, {"shape": array.shape, "dtype": array.dtype.str, "grid": grid}, frames)

    def open_(path: Path) -> Reader:
        def read(box: Box) -> Array:
            with path.open("rb", buffering=0) as stream:
                header, begins = _read_index(stream)
                dtype = np.dtype(header["dtype"])
                out = np.empty([s.stop - s.start for s in box], dtype)
                for number, inside, target in _touched(box, side):
                    place = int(np.ravel_multi_index(number, header["grid"]))
                    size, crc = header["frames"][place]
                    frame = _checked(os.pread(stream.fileno(), size, begins[place]), crc)
                    raw = codec.decompress(frame, side**3 * dtype.itemsize)
                    out[target] = _from_byte_planes(raw, dtype, (side,) * 3)[inside]
            return out

        return read

    return Store(f"pyarrow {label}, CRC, blocks of {side}", write, open_)


def coded_slabs(planes: int, level: int, codec_name: str) -> Store:
    """Groups of axial planes (S slowest), compressed with pyarrow's codecs; one plain read of those that a box needs.

    The result is in Fortran order: axes are swapped in the description, not in memory.
    """
    codec, label = _codec(codec_name, level)

    def write(array: Array, path: Path) -> None:
        turned = np.ascontiguousarray(array.T)
        slabs = [turned[low : low + planes] for low in range(0, len(turned), planes)]
        frames = [codec.compress(_byte_planes(slab), asbytes=True) for slab in slabs]
        _write_frames(path, {"shape": turned.shape, "dtype": array.dtype.str}, frames)

    def open_(path: Path) -> Reader:
        def read(box: Box) -> Array:
            box = box[::-1]
            with path.open("rb", buffering=0) as stream:
                header, begins = _read_index(stream)
                first, last = box[0].start // planes, (box[0].stop - 1) // planes + 1
                data = memoryview(os.pread(stream.fileno(), begins[last] - begins[first], begins[first]))
            shape, dtype = tuple(header["shape"]), np.dtype(header["dtype"])
            out = np.empty([s.stop - s.start for s in box], dtype)
            for slab in range(first, last):
                frame = data[begins[slab] - begins[first] : begins[slab + 1] - begins[first]]
                low, high = slab * planes, min((slab + 1) * planes, shape[0])
                raw_size = (high - low) * math.prod(shape[1:]) * dtype.itemsize
                raw = codec.decompress(_checked(frame, header["frames"][slab][1]), raw_size)
                values = _from_byte_planes(raw, dtype, (high - low, *shape[1:]))
                a, b = max(low, box[0].start), min(high, box[0].stop)
                out[a - box[0].start : b - box[0].start] = values[(slice(a - low, b - low), *box[1:])]
            return out.T

        return read

    return Store(f"pyarrow {label}, CRC, slabs of {planes} planes", write, open_)
