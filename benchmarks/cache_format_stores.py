"""The on-disk formats that `cache_formats.py` compares, each as `write(array, path)` and `open(path) -> read(box)`.

blosc2 and zarr are no dependencies of the package; what isn't installed is left out of `stores()`.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[Any]
Box = tuple[slice, ...]
Reader = Callable[[Box], Array]


@dataclass(frozen=True)
class Store:
    """One format. `open` returns a reader of boxes with explicit bounds; opening is part of every timed read."""

    name: str
    write: Callable[[Array, Path], None]
    open: Callable[[Path], Reader]


def files(path: Path) -> list[Path]:
    """The files of one entry: a zarr is a folder."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


# --- .npy -----------------------------------------------------------------------------------------------------------


def write_npy(array: Array, path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def write_npy_fortran(array: Array, path: Path) -> None:
    write_npy(np.asfortranarray(array), path)


def open_npy(path: Path) -> Reader:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return lambda box: np.array(array[box], order="C")  # a copy: a view would read nothing


def open_npy_random(path: Path) -> Reader:
    """The kernel is told not to read ahead: only the touched pages come from disk, one by one."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    array._mmap.madvise(mmap.MADV_RANDOM)
    return lambda box: np.array(array[box], order="C")  # a copy: a view would read nothing


def _npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, fortran, dtype


def open_npy_planes(path: Path) -> Reader:
    """One plain `read` of the planes along the slowest axis that a box needs: no page faults, no read-ahead.

    A file in Fortran order gives an array in Fortran order: axes are swapped in the description, not in memory.
    """

    def read(box: Box) -> Array:
        with path.open("rb", buffering=0) as stream:
            shape, fortran, dtype = _npy_header(stream)
            if fortran:
                shape, box = shape[::-1], box[::-1]
            stride = math.prod(shape[1:]) * dtype.itemsize
            low, high = box[0].start, box[0].stop
            buffer = np.empty((high - low, *shape[1:]), dtype)
            view, offset, done = memoryview(buffer).cast("B"), stream.tell() + low * stride, 0
            while done < len(view):
                got = os.preadv(stream.fileno(), [view[done:]], offset + done)
                if got == 0:
                    raise EOFError("short file")
                done += got
        cut = np.ascontiguousarray(buffer[(slice(None), *box[1:])])
        return cut.T if fortran else cut

    return read


# --- blocks ---------------------------------------------------------------------------------------------------------


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
    return np.ascontiguousarray(array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T)


def _from_byte_planes(coded: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    planes = np.frombuffer(coded, np.uint8).reshape(dtype.itemsize, -1)
    values = planes if dtype.itemsize == 1 else np.ascontiguousarray(planes.T).view(dtype)
    return values.reshape(shape)


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


# --- blosc2, zarr, NIfTI --------------------------------------------------------------------------------------------


def blosc2_store(codec: str, level: int, filter_: str, chunk: int | None, block: int | None) -> Store:
    """`chunk` is what the index addresses (None: the volume), `block` what is decoded at a time (None: its choice)."""
    import blosc2

    blosc2.set_nthreads(1)

    def write(array: Array, path: Path) -> None:
        path.unlink(missing_ok=True)
        filters = [getattr(blosc2.Filter, filter_)]
        cparams = {"codec": getattr(blosc2.Codec, codec), "clevel": level, "filters": filters, "nthreads": 1}
        chunks = None if chunk is None else tuple(min(chunk, side) for side in array.shape)
        chunks = array.shape if chunks is None else chunks
        blocks = None if block is None else tuple(min(block, side) for side in chunks)
        blosc2.asarray(array, urlpath=str(path), mode="w", cparams=cparams, chunks=chunks, blocks=blocks)

    def open_(path: Path) -> Reader:
        array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        return lambda box: array[box]

    size = f"{chunk or 'volume'}/{block or 'auto'}"
    return Store(f"blosc2 {codec.lower()}-{level} {filter_.lower()} {size}", write, open_)


def zarr_store(level: int, shuffle: Literal["shuffle", "bitshuffle", "noshuffle"], chunk: int, checksum: bool) -> Store:
    """One shard per volume, so one data file and one `zarr.json`."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})

    def write(array: Array, path: Path) -> None:
        codecs: list[Any] = [BloscCodec(cname="zstd", clevel=level, shuffle=shuffle, typesize=array.dtype.itemsize)]
        codecs += [Crc32cCodec()] if checksum else []
        shards = tuple(-(-side // chunk) * chunk for side in array.shape)
        made = zarr.create_array(
            str(path),
            shape=array.shape,
            dtype=array.dtype,
            chunks=(chunk,) * array.ndim,
            shards=shards,
            compressors=codecs,
            overwrite=True,
        )
        made[...] = array

    def open_(path: Path) -> Reader:
        array = zarr.open_array(str(path), mode="r")
        return lambda box: np.asarray(array[box])

    return Store(f"zarr 3 zstd-{level} {shuffle}{' crc32c' if checksum else ''} {chunk}", write, open_)


def write_nifti(array: Array, path: Path) -> None:
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def open_nifti(path: Path) -> Reader:
    image = nib.load(path)
    return lambda box: np.asarray(image.dataobj)[box]


def _optional(make: Callable[[], Store]) -> list[Store]:
    try:
        return [make()]
    except ModuleNotFoundError:
        return []


def npy_stores() -> list[Store]:
    """`.npy` read in different ways; stored as described, R slowest, or the other way round."""
    return [
        Store(".npy memory map", write_npy, open_npy),
        Store(".npy memory map, no read-ahead", write_npy, open_npy_random),
        Store(".npy, one read of the planes", write_npy, open_npy_planes),
        Store(".npy memory map, S slowest", lambda a, p: write_npy(np.asfortranarray(a), p), open_npy),
        Store(
            ".npy, S slowest, one read of the planes", lambda a, p: write_npy(np.asfortranarray(a), p), open_npy_planes
        ),
        npy_blocks(32),
        npy_blocks(64),
    ]


def main_stores() -> list[Store]:
    """Those of the reading tables."""
    stores = npy_stores()
    stores += _optional(lambda: blosc2_store("LZ4", 5, "BITSHUFFLE", 64, 32))
    stores += _optional(lambda: blosc2_store("ZSTD", 1, "BITSHUFFLE", 64, 32))
    stores += _optional(lambda: blosc2_store("ZSTD", 5, "SHUFFLE", 64, 32))
    stores += _optional(lambda: blosc2_store("ZSTD", 1, "BITSHUFFLE", None, 32))
    stores += _optional(lambda: zarr_store(1, "bitshuffle", 32, False))
    stores += _optional(lambda: zarr_store(1, "bitshuffle", 64, True))
    stores += [coded_blocks(64, 1), coded_slabs(8, 1, "zstd"), coded_slabs(8, 1, "lz4")]
    stores += [Store(".nii.gz", write_nifti, open_nifti)]
    return stores


def swept_stores() -> list[Store]:
    """Sizes and filters, for the table of bytes and decoding alone."""
    stores = []
    for codec, level in (("LZ4", 5), ("ZSTD", 1), ("ZSTD", 5), ("ZSTD", 9)):
        for filter_ in ("NOFILTER", "SHUFFLE", "BITSHUFFLE"):
            stores += _optional(lambda c=codec, n=level, f=filter_: blosc2_store(c, n, f, 64, 32))
    for chunk, block in ((64, 16), (128, 32), (128, 64), (None, None)):
        stores += _optional(lambda c=chunk, b=block: blosc2_store("ZSTD", 1, "BITSHUFFLE", c, b))
    stores += [coded_blocks(32, 1), coded_blocks(64, 3), coded_blocks(64, 1, "lz4")]
    stores += [coded_slabs(planes, level, "zstd") for planes, level in ((1, 1), (4, 1), (16, 1), (8, 3), (8, 9))]
    return stores
