"""Tar archives: the list of members, and the unpacking of compressed ones into a temporary file with a limit."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from lejepa_med.data.files.byte_window import Descriptor, Directory, Window
from lejepa_med.data.files.packed_member import LARGEST_MEMBER, LARGEST_RATIO, SMALL, Member, Names, judged

_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 20
_XZ_MEMORY = 512 << 20  # xz -9 takes 65 MiB
_MAGIC = {b"\x1f\x8b": "gz", b"BZ": "bz2", b"\xfd7": "xz"}


def compression(file: Descriptor) -> str:
    """How a tar is compressed, by its first bytes; empty when it is not."""
    return _MAGIC.get(file.read(0, 2), "")


def unpacked(file: Descriptor) -> tuple[Descriptor, str]:
    """A temporary file without a name that holds the tar, as far as it could be unpacked, and what went wrong."""
    limit = min(LARGEST_MEMBER, shutil.disk_usage(tempfile.gettempdir()).free // 2)
    limit = min(limit, max(SMALL, LARGEST_RATIO * file.size))
    problem, written = "", 0
    with tempfile.TemporaryFile(buffering=0) as temporary:
        source = io.BufferedReader(Window(file, 0, file.size))
        try:
            for data in _decompressed(source, compression(file)):
                written += len(data)
                if written > limit or not _written(temporary, data):
                    problem = "too_large"
                    os.ftruncate(temporary.fileno(), 0)
                    break
        except (EOFError, MemoryError):
            problem = "truncated"
        except (OSError, zlib.error, lzma.LZMAError, ValueError):
            problem = "unreadable"
        return Descriptor(os.dup(temporary.fileno())), problem


def _written(file: io.FileIO, data: bytes) -> bool:
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
    except OSError:  # the disk is full
        return False
    return True


def _decompressed(source: BinaryIO, method: str) -> Iterator[bytes]:
    if method == "xz":
        yield from _from_xz(source)
        return
    stream = gzip.GzipFile(fileobj=source) if method == "gz" else bz2.BZ2File(source)
    with stream:
        while data := stream.read(_CHUNK):
            yield data


def _from_xz(source: BinaryIO) -> Iterator[bytes]:
    """As `lzma.open`, which has no limit on the memory that a file may ask for."""
    rest = source.read(_CHUNK)
    while rest:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
        while not stream.eof:
            if stream.needs_input and not rest and not (rest := source.read(_CHUNK)):
                raise EOFError
            data = stream.decompress(rest, _CHUNK)
            rest = b""
            yield data
        rest = (stream.unused_data or source.read(_CHUNK)).lstrip(b"\0")


def members(file: Descriptor) -> tuple[dict[str, Member], str]:
    """The members by name, and the reason why the archive itself needs a row: it ends early, or goes on as no tar."""
    names, found, links = Names(), {}, []
    place, problem = -1, ""
    try:
        source: Any = Directory(file, _LONGEST_HEADER)
        archive: Any = tarfile.TarFile(fileobj=source, encoding="utf-8", errors="surrogateescape")
        with archive:
            info = archive.next()
            while info is not None:
                if archive.offset <= place or info.size < 0:  # made to go round for ever
                    problem = "unreadable"
                    break
                place = archive.offset
                if not info.isdir():
                    name = names.unique(info.name)
                    member = _member(info, file.size)
                    found[name] = dataclasses.replace(member, reason=judged(member, name))
                    if info.issym() or info.islnk():
                        links.append((name, _target(info)))
                archive.members.clear()
                info = archive.next()
            problem = problem or _ending(file, archive.offset)
    except (tarfile.ReadError, EOFError):
        problem = "truncated" if found else "unreadable"
    except MemoryError:
        problem = "too_large"
    except Exception:  # tarfile parses numbers and text of damaged headers in many ways
        problem = "unreadable"
    folders = {name.rpartition("/")[0] for name in found}
    for name, target in links:
        reason = "linked_twice" if target in found or target in folders else "broken_link"
        found[name] = dataclasses.replace(found[name], reason=reason)
    return found, problem or ("" if found else "empty_file")


def _member(info: tarfile.TarInfo, archive_size: int) -> Member:
    reason = ""
    if info.issym() or info.islnk():
        return Member(0, info.offset, reason="broken_link")
    if not info.isreg():
        return Member(0, info.offset, reason="special_file")
    if info.issparse():
        reason = "packed"
    elif info.offset_data + info.size > archive_size:
        reason = "truncated"
    size = min(info.size, 2**63 - 1)
    return Member(size, info.offset_data, size, int(info.chksum), reason=reason)


def _target(info: tarfile.TarInfo) -> str:
    """The member that a link leads to."""
    base = os.path.dirname(info.name) if info.issym() else ""  # noqa: PTH120
    return os.path.normpath(os.path.join(base, info.linkname)).removeprefix("./").lstrip("/")  # noqa: PTH118


def _ending(file: Descriptor, place: int) -> str:
    """tarfile takes any damaged header for the end; the real one is a block of zeros, or that of the file."""
    block = file.read(place, 512)
    if not block.strip(b"\0"):
        return ""
    return "truncated" if len(block) < 512 else "unreadable"
