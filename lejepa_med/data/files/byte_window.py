"""Files inside files: a window into a file, and a compressed stretch that is unpacked as far as it is read.

Both read by position (`pread`), so that many of them share one open file, also across threads and forked processes.
"""

from __future__ import annotations

import bz2
import errno
import io
import os
import sys
import tempfile
import threading
import zlib
from typing import Protocol

_CHUNK = 1 << 15
_IN_MEMORY = 32 << 20
"""Bytes of an unpacked member that are kept in memory; more go to a temporary file without a name."""


class Descriptor:
    """An open file, closed when the last that reads from it is gone."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._alone = threading.Lock()  # for systems where a place and a read are two calls
        self.size = os.fstat(number).st_size

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def read(self, start: int, count: int) -> bytes:
        """Up to `count` bytes from `start` on."""
        count = max(0, min(count, self.size - start))
        if sys.platform == "win32":
            with self._alone:
                os.lseek(self.number, start, os.SEEK_SET)
                return os.read(self.number, count)
        return os.pread(self.number, count, start)


class _ReadOnly(io.RawIOBase):
    """What both kinds of file have in common: a size that is known, and a place in it."""

    name, mode = "", "rb"

    def __init__(self, size: int) -> None:
        self._size, self._place = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = _sought(offset, whence, self._place, self._size)
        return self._place

    def tell(self) -> int:
        return self._place


class Window(_ReadOnly):
    """`size` bytes of a file from `start` on, as a file."""

    def __init__(self, file: Descriptor, start: int, size: int) -> None:
        super().__init__(max(0, min(size, file.size - start)))
        self._file, self._start = file, start

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._place))
        data = self._file.read(self._start + self._place, count)
        view[: len(data)] = data
        self._place += len(data)
        return len(data)


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Inflated(_ReadOnly):
    """A deflated or bzip2 stretch of a file, `size` bytes when unpacked; damage is an `OSError`."""

    def __init__(self, packed: Window, method: str, size: int, crc: int) -> None:
        super().__init__(size)
        self._packed, self._crc = packed, crc
        self._decompressor: _Decompressor = zlib.decompressobj(-15) if method == "deflate" else bz2.BZ2Decompressor()
        self._unpacked = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  (closed by `close`)
        self._known, self._sum, self._rest = 0, 0, b""

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._place))
        if self._place + wanted > self._known:
            self._unpack(self._place + wanted)
        self._unpacked.seek(self._place)
        data = self._unpacked.read(wanted)
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        if hasattr(self, "_unpacked"):
            self._unpacked.close()
        super().close()

    def _unpack(self, end: int) -> None:
        self._unpacked.seek(self._known)
        try:
            while self._known < end:
                data = self._decompressed(min(_CHUNK, self._size - self._known))
                if not data:
                    return
                self._unpacked.write(data)
                self._known += len(data)
                self._sum = zlib.crc32(data, self._sum)
        except (zlib.error, ValueError, EOFError):
            raise OSError(errno.EIO, "damaged archive") from None
        if self._known == self._size and self._sum != self._crc:
            raise OSError(errno.EIO, "damaged archive")

    def _decompressed(self, count: int) -> bytes:
        while True:
            if not self._rest and getattr(self._decompressor, "needs_input", True):
                self._rest = self._packed.read(_CHUNK) or b""
            ended = not self._rest
            data = self._decompressor.decompress(self._rest, count)
            self._rest = getattr(self._decompressor, "unconsumed_tail", b"")
            if data or ended or getattr(self._decompressor, "eof", False):
                return data


class Directory:
    """What `zipfile` and `tarfile` read lists of members from: no single read is longer than `limit`."""

    def __init__(self, file: Descriptor, limit: int) -> None:
        self._file, self._limit, self._place = file, limit, 0

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._file.size - self._place)
        count = left if count < 0 else min(count, left)
        if count > self._limit:
            raise MemoryError
        data = self._file.read(self._place, count)
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = _sought(offset, whence, self._place, self._file.size)
        return self._place

    def tell(self) -> int:
        return self._place

    def seekable(self) -> bool:
        return True


def _sought(offset: int, whence: int, place: int, size: int) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: place, os.SEEK_END: size}[whence]
    if start + offset < 0:
        raise OSError(errno.EINVAL, "seek before the start")
    return start + offset
