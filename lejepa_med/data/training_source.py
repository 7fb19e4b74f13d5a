"""Which items of a cache a pretraining config reads, how they meet in batches, and how large their base crops are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.config import PretrainConfig
from lejepa_med.data.cache import Cache
from lejepa_med.data.dataset import CacheSource, DatasetSource, ListSource, Sampler, Source, other_dimensions
from lejepa_med.data.sampler import StepSampler
from lejepa_med.data.splits import is_held_out
from lejepa_med.data.weighted_sampler import WeightedSampler
from lejepa_med.errors import ConfigError, DataError
from lejepa_med.randomness import generator


def cache_source(config: PretrainConfig) -> CacheSource:
    """Volumes, slices or images of `data.cache`; test patients are left out.

    Raises:
        ConfigError: the config names no cache.
        DataError: there is no such cache, or it has no patient to train on.
    """
    if config.data.cache is None:
        raise ConfigError("config: data.cache is required; make it with `lejepa-med prepare INDEX --out CACHE`")
    cache = Cache.open(config.data.cache, verify=config.data.verify == "first")
    table = cache.select(config.data.modalities, config.data.sequences)
    if config.data.official_split is not None:
        held_out = ~_on_training_side(table, config.data.official_split)
    else:
        held_out = is_held_out(table["patient_key"], config.data.holdout.test_fraction, config.data.holdout.seed)
        if held_out.all():
            raise DataError(f"cache {cache.folder}: every patient is held out; lower data.holdout.test_fraction")
    plane = config.data.plane if config.data.kind == "slices" else None
    return CacheSource(cache, table[~held_out].reset_index(drop=True), plane)


def _on_training_side(table: pd.DataFrame, file: Path) -> NDArray[np.bool_]:
    """Rows of the manifest that an official split trains on; patients of its other sides are left out as a whole.

    Raises:
        DataError: no such table, another word in it, or no row of the manifest on the training side.
    """
    try:
        split = pd.read_csv(file, dtype=str, usecols=["series_key", "split"]).dropna()
    except (OSError, ValueError):
        raise DataError(
            "data.official_split: no CSV table with the columns series_key and split; `prepare` writes one as "
            "labels.csv beside a cache of a published layout that has a split"
        ) from None
    unknown = sorted(set(split["split"]) - {"train", "val", "test"})
    if unknown:
        raise DataError(f"data.official_split: {unknown[0]!r} in column split; expected train, val or test")
    side = table["series_key"].map(dict(zip(split["series_key"], split["split"], strict=True)))
    known = table["patient_key"].fillna("") != ""
    elsewhere = set(table["patient_key"][known & side.isin(["val", "test"])])
    trains = ((side == "train") & ~(known & table["patient_key"].isin(elsewhere))).to_numpy()
    if not trains.any():
        raise DataError(f"data.official_split: none of the {len(table)} series of the cache is on its side `train`")
    return np.asarray(trains)


def build_sampler(config: PretrainConfig, source: Source) -> Sampler:
    """Batches as `data.balance` and `data.patient_weight` ask; by default epochs of patients."""
    data, size = config.data, config.train.batch_size
    if data.balance == "none" and data.patient_weight == "equal":
        return StepSampler(source.patients, size, config.seed, source.groups)
    axes = {"none": 0, "modality": 1, "sequence": 2}[data.balance]  # what is no MRI has no sequence, but a modality
    kinds = [kind[:axes] for kind in source.kinds]
    return WeightedSampler(source, size, config.seed, kinds, data.patient_weight == "studies")


def base_size(config: PretrainConfig, source: Source) -> tuple[int, ...]:
    """Voxels of a base crop: `base_crop_mm` at the spacing of the data, or the whole first item (images, datasets).

    A list of scans that are all smaller: the largest extent along each axis.

    Raises:
        DataError: the data have other dimensions than the views.
    """
    item = source.read(0, generator("first"))
    if len(item.shape) != config.spatial_dims:
        raise other_dimensions(item, config.spatial_dims)
    if config.views.base_crop_mm is None or config.data.kind == "images" or isinstance(source, DatasetSource):
        return item.shape
    size = tuple(max(1, round(config.views.base_crop_mm / mm)) for mm in item.spacing_mm)
    return tuple(map(min, size, source.largest)) if isinstance(source, ListSource) else size
