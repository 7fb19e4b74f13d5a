"""`embed`: scans to a table of embeddings, prepared by the spec that travels with the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lejepa_med.backbones import Backbone
from lejepa_med.data.cache import Cache, CachedVolume
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.privacy import write_private
from lejepa_med.data.reading import read_any
from lejepa_med.data.volume import Volume
from lejepa_med.errors import DataError
from lejepa_med.evaluation.features import extract_features
from lejepa_med.spec import PreprocessSpec

Progress = Callable[[str, int, int], None]


def embed(backbone: Backbone, items: Any, *, modality: str | None = None, progress: Progress | None = None) -> pa.Table:
    """Embeddings as a table `series_key, patient_key, embedding` (list of float32, `backbone.dim` long).

    `items` is a `Cache` prepared as the backbone expects, or a list of NIfTI files, images, DICOM folders or
    `(array, affine)` pairs, which are prepared by the backbone's own spec; their key is their place in the list.
    `modality` is that of NIfTI files and arrays.

    Raises:
        UserError: the backbone has no spec, an item cannot be read, or the cache was prepared otherwise.
    """
    spec = backbone.spec
    if spec is None or spec.preprocess is None:
        raise DataError(
            "embed: the backbone does not know how scans are prepared (fresh weights, or pretrained on a dataset "
            "that was prepared elsewhere); call backbone(images) on arrays instead"
        )
    volumes: Iterable[CachedVolume]
    if isinstance(items, Cache):
        if items.preprocess != spec.preprocess:
            raise DataError(f"cache {items.folder}: prepared otherwise than the backbone expects; prepare it again")
        keys, patients = list(items.table["series_key"]), list(items.table["patient_key"])
        volumes = (items.read(key) for key in keys)
    else:
        prepared = list(_prepare_items(items, modality, spec.preprocess))
        keys, patients = [volume.series_key for volume in prepared], [volume.patient_key for volume in prepared]
        volumes = prepared
    done = None if progress is None else lambda count: progress("embed", count, len(keys))
    features = extract_features(backbone, volumes, spec.inference, layers=None, progress=done)
    return pa.table({"series_key": keys, "patient_key": patients, "embedding": list(features)})


def _prepare_items(items: Sequence[Any], modality: str | None, preprocess: PreprocessSpec) -> Iterator[CachedVolume]:
    for number, item in enumerate(items):
        if isinstance(item, tuple):
            volumes = [Volume(np.asarray(item[0]), np.asarray(item[1], dtype=np.float64), modality or "unknown")]
        else:
            volumes = read_any(Path(item), modality)
        for part, volume in enumerate(volumes):
            key = f"item {number}" if len(volumes) == 1 else f"item {number} part {part}"
            try:
                prepared = prepare_volume(volume, preprocess)
            except DataError as error:
                raise DataError(f"{key}: {error}") from None
            yield CachedVolume(key, key, prepared.modality, prepared.array, prepared.spacing_mm)


def write_embeddings(table: pa.Table, file: Path, paths: Sequence[Path]) -> None:
    """The table as Parquet and, for scans given by path, the private `FILE.paths.parquet` (mode 600) beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    if paths:
        keys = [f"item {number}" for number in range(len(paths))]
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table({"series_key": keys, "path": [str(path) for path in paths]}), buffer)
        write_private(
            file.with_name(f"{file.name.removesuffix('.parquet')}.paths.parquet"), buffer.getvalue().to_pybytes()
        )
