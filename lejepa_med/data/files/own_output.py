"""Folders that this package writes: what they are known by, and whether one may be written into.

An archive often has them inside. Their files are no scans of a hospital: converted volumes would be second copies under
other patients, pictures of a run would be images.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from lejepa_med.errors import DataError

Kind = Literal["index", "cache", "converted", "run"]

_ALL_OF: dict[Kind, set[str]] = {
    "index": {"scan.sqlite", "salt"},
    "cache": {"cache.json", "volumes"},
    "run": {"config.yaml", "metrics.jsonl"},
}
_ANY_OF: dict[Kind, set[str]] = {
    "index": {"scan.sqlite", "salt", "files.parquet"},
    "cache": {"cache.json", "volumes", "manifest.parquet"},
}
"""What there is after a kill, or after a user took a damaged file away."""
_CONVERTED = re.compile(r"series\.csv|index|[0-9a-f]{16}\.nii\.gz|\..*")


def kind_of(names: Collection[str]) -> Kind | None:
    """What a folder with entries of these names is; None unless it is surely one of them."""
    for kind, needed in _ALL_OF.items():
        if all(name in names for name in needed):
            return kind
    volumes = any(name.endswith(".nii.gz") for name in names)
    return "converted" if volumes and "series.csv" in names and all(map(_CONVERTED.fullmatch, names)) else None


def check_out(verb: str, out: Path, kind: Literal["index", "cache", "converted"]) -> None:
    """Raises `DataError` where `out` holds anything but what this verb wrote there before."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{verb}: --out {out} is a file; choose a folder")
    try:
        names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    except OSError:
        raise DataError(f"{verb}: --out {out} cannot be read; change its rights, or choose another") from None
    known = all(map(_CONVERTED.fullmatch, names)) if kind == "converted" else names & _ANY_OF[kind]
    if names and not known:
        raise DataError(f"{verb}: --out {out} holds other files; choose a new folder, or one of an earlier `{verb}`")
