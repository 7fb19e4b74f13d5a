"""The directory of a zip archive: which members can be read in place, and why the others cannot."""

from __future__ import annotations

import dataclasses
import struct
import zipfile

from lejepa_med.data.files.byte_window import Descriptor, Directory
from lejepa_med.data.files.packed_member import Member, Names, judged

_LONGEST_DIRECTORY = 64 << 20  # some 700,000 members; zipfile needs about ten times as much memory for it
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflate", zipfile.ZIP_BZIP2: "bzip2"}
_ENCRYPTED = 1


def members(file: Descriptor) -> tuple[dict[str, Member], str]:
    """The members by name, and the reason why the archive itself needs a row."""
    try:
        with zipfile.ZipFile(Directory(file, _LONGEST_DIRECTORY)) as archive:
            listed = archive.infolist()
    except MemoryError:
        return {}, "too_large"
    except (zipfile.BadZipFile, OSError, ValueError, IndexError, struct.error, NotImplementedError, EOFError):
        return {}, "unreadable"
    names, found = Names(), {}
    for info in listed:
        if info.filename.endswith("/") and not info.file_size:
            continue
        name = names.unique(info.filename.replace("\\", "/"))
        member = _member(info, file.size)
        found[name] = dataclasses.replace(member, reason=judged(member, name))
    return found, "" if found else "empty_file"


def _member(info: zipfile.ZipInfo, archive_size: int) -> Member:
    method = _METHODS.get(info.compress_type, "")
    reason = ""
    if info.flag_bits & _ENCRYPTED:
        reason = "encrypted"
    elif not method:  # deflate64, LZMA and newer ones
        reason = "packed"
    elif info.header_offset < 0 or info.header_offset + 30 + info.compress_size > archive_size:
        reason = "truncated"
    elif method == "stored" and info.file_size != info.compress_size:
        reason = "unreadable"
    size = max(0, min(info.file_size, 2**63 - 1))
    return Member(size, info.header_offset, info.compress_size, info.CRC, method, reason)
