"""Entries of a cache: where one lies, what its name is made from, and how it is written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.preprocess import CODE_VERSION
from lejepa_med.spec import PreprocessSpec
from lejepa_med.whole_files import cannot_write, whole_file


class Written(NamedTuple):
    """What a stored entry is checked against."""

    sha256: str
    bytes: int


def entry_name(series_key: str, fingerprint: str, preprocess: PreprocessSpec) -> str:
    """Address of one prepared volume."""
    text = "\n".join((series_key, fingerprint, preprocess.key(), str(CODE_VERSION)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def entry_path(folder: Path, entry: str) -> Path:
    return folder / "volumes" / entry[:2] / f"{entry}.npy"


class _Hashing:
    """A stream that knows the checksum of what went through it."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.digest, self.size = stream, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        return int(self.stream.write(content))


def write_entry(folder: Path, entry: str, array: NDArray[np.generic]) -> Written:
    """Stores one array atomically; several processes may write the same entry."""
    path = entry_path(folder, entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    with whole_file(path) as stream:
        hashing = _Hashing(stream)
        np.save(hashing, array, allow_pickle=False)
    return Written(hashing.digest.hexdigest(), hashing.size)
