"""Caches of a few small volumes, for the tests of reading and sampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lejepa_med.data.cache import Cache, entry_name, publish_manifest, write_entry, write_settings
from lejepa_med.spec import PreprocessSpec


def write_cache(folder: Path, arrays: Sequence[Any], **columns: Sequence[Any]) -> Cache:
    """Series `s0`, `s1`, ... of patients `p0`, `p1`, ..., MRI of 1 mm; `columns` of the manifest say otherwise."""
    preprocess = PreprocessSpec()
    write_settings(folder, preprocess)
    rows = []
    for number, array in enumerate(arrays):
        key = f"s{number}"
        entry = entry_name(key, "x", preprocess)
        written = write_entry(folder, entry, array)
        row: dict[str, Any] = {"series_key": key, "patient_key": f"p{number}", "study_key": key, "group_key": key}
        row |= {"modality": "mri", "sequence": "t1", "shape": list(array.shape), "spacing_mm": [1.0] * array.ndim}
        row |= {"entry": entry, "sha256": written.sha256, "bytes": written.bytes}
        rows.append(row | {name: values[number] for name, values in columns.items()})
    publish_manifest(folder, pd.DataFrame(rows))
    return Cache.open(folder)


def numbered(count: int, shape: tuple[int, ...] = (12, 14, 10), kind: Any = np.int16) -> list[Any]:
    """Volumes whose voxels all differ."""
    size = int(np.prod(shape))
    return [(np.arange(size).reshape(shape) + 7 * number + 3).astype(kind) for number in range(count)]
