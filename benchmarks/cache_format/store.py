"""What a format is: how an array is written, and how boxes of it are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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


def write_npy(array: Array, path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
