"""The on-disk formats that `cache_formats.py` compares, each as `write(array, path)` and `open(path) -> read(box)`.

blosc2 and zarr are no dependencies of the package; what isn't installed is left out.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from cache_format.frames import coded_blocks, coded_slabs, npy_blocks
from cache_format.store import Array, Box, Reader, Store, files, write_npy

__all__ = ["Array", "Box", "Store", "files", "main_stores", "swept_stores"]


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
