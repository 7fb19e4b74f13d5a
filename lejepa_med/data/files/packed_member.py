"""A member of a zip or tar archive: what the archive claims of it, its name, and whether the claims are believed."""

from __future__ import annotations

from dataclasses import dataclass

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
NOT_READ = (".7z", ".rar", ".tar.zst")
"""Archives that are not read in place; inside an archive, neither are those of `SUFFIXES`."""
LARGEST_MEMBER = 64 << 30
SMALL = 64 << 20
"""What claims or unpacks to no more than this may be compressed any amount."""
LARGEST_RATIO = 1000
"""Deflate reaches 1,032 on constant data; scans rarely pass 20."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. `start` is where its header (zip) or its bytes (tar) are; `method` how they are packed."""

    size: int
    start: int
    packed_size: int = 0
    check: int = 0
    method: str = "stored"
    reason: str = ""


class Names:
    """Gives members names that can stand in a path: text, relative, each once. They are only names."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def unique(self, name: str) -> str:
        """A name for a member; a second member of one name gets it below a folder `~2`."""
        text = name.replace("\0", "").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        text = "/".join(part for part in text.split("/") if part not in ("", ".")) or "~"
        result, number = text, 2
        while result in self._given:
            result, number = f"~{number}/{text}", number + 1
        self._given.add(result)
        return result


def judged(member: Member, name: str) -> str:
    """Why a member is not read, from its name and its claims; empty when it is."""
    if member.reason:
        return member.reason
    if not member.size:
        return "empty_file"
    if name.lower().endswith(SUFFIXES + NOT_READ):
        return "packed"
    too_dense = member.size > SMALL and member.size > LARGEST_RATIO * max(1, member.packed_size)
    return "too_large" if member.size > LARGEST_MEMBER or too_dense else ""
