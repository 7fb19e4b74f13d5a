"""Opens the bytes of a scan by its path, wherever they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO


def open_binary(path: str) -> BinaryIO:
    """A file, opened for reading and seekable; raises OSError."""
    return Path(path).open("rb")
