"""A prepared array in its file, read box by box with plain reads.

A plain read is faster than a memory map (docs/design/cache.md), and a file that is short or gone is an exception that
can name its series; under a memory map it is a signal that kills the process.
"""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lejepa_med.errors import DataError

Box = tuple[slice, ...]
"""One slice per axis, each with a start and a stop within the array."""


@dataclass(frozen=True)
class StoredArray:
    """An `.npy` file whose header is known; `damaged` is the sentence for a file that is not as it should be."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int
    damaged: str

    @classmethod
    def open(cls, path: Path, damaged: str) -> StoredArray:
        """Reads the header alone. Raises DataError, saying `damaged`, if it is none or the size does not fit it."""
        try:
            with path.open("rb") as stream:
                shape, fortran, dtype = _header(stream)
                size = os.fstat(stream.fileno()).st_size
                found = cls(path, shape, dtype, fortran, stream.tell(), damaged)
            if not shape or min(shape) < 1 or dtype.hasobject or size != found.offset + found.nbytes:
                raise ValueError("size")
        except Exception:  # numpy's parser of headers fails in many ways
            raise DataError(damaged) from None
        return found

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, box: Box, passing: bool = False) -> NDArray[np.generic]:
        """The voxels of a box: one read of the planes along the slowest axis that it needs. Raises DataError.

        `passing`: they are valid until this thread reads again.
        """
        shape, box = (self.shape[::-1], box[::-1]) if self.fortran else (self.shape, box)
        slow = next((axis for axis, side in enumerate(shape) if side > 1), 0)
        plane = math.prod(shape[slow + 1 :])
        low, high = box[slow].start, box[slow].stop
        flat = _memory((high - low) * plane, self.dtype) if passing else np.empty((high - low) * plane, self.dtype)
        self._fill(flat.view(np.uint8).data, self.offset + low * plane * self.dtype.itemsize)
        planes = flat.reshape(*shape[:slow], high - low, *shape[slow + 1 :])
        cut: NDArray[np.generic] = planes[(*box[:slow], slice(None), *box[slow + 1 :])]
        return cut.T if self.fortran else cut

    def whole(self) -> NDArray[np.generic]:
        """All voxels, not to be written to. Raises DataError."""
        array = self.read(tuple(slice(0, side) for side in self.shape))
        array.flags.writeable = False
        return array

    def _fill(self, buffer: memoryview, offset: int) -> None:
        done = 0
        try:
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(offset)
                while done < len(buffer):
                    got = stream.readinto(buffer[done:])
                    if not got:
                        raise EOFError
                    done += got
        except (OSError, EOFError):
            raise DataError(self.damaged) from None


_kept = threading.local()


def _memory(size: int, dtype: np.dtype[Any]) -> NDArray[np.generic]:
    """Memory of this thread, used again and again: the pages of new memory cost more than reading into them."""
    nbytes = size * dtype.itemsize
    kept: NDArray[np.uint8] | None = getattr(_kept, "memory", None)
    if kept is None or len(kept) < nbytes:
        kept = _kept.memory = np.empty(nbytes, np.uint8)
    return kept[:nbytes].view(dtype)


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    if np.lib.format.read_magic(stream) == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    stream.seek(0)
    if np.lib.format.read_magic(stream) == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError("version")
