"""Controls without a network: what pixels alone, or the shape of the box alone, can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from lejepa_med.config.evaluation import PixelsEncoder, ShapeEncoder
from lejepa_med.data.cache import Cache, CachedVolume
from lejepa_med.data.inference import centred, to_unit
from lejepa_med.resampling import resize

_AIR = 0.02


def pixel_features(
    config: PixelsEncoder,
    cache: Cache,
    series: Sequence[str],
    fit: NDArray[np.bool_],
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Principal components of shrunken volumes, `[volume, component]`; fitted on the rows `fit` only.

    Volumes are centred in the largest physical box of the set, so that one voxel means one place and size.
    """
    box = np.max([_side_mm(cache.read(key)) for key in series], axis=0)
    rows = []
    for number, key in enumerate(series):
        volume = cache.read(key)
        image = to_unit(volume.array, volume.modality, config.used_window_hu)
        spacing = np.asarray(volume.spacing_mm or (1.0,) * (image.ndim - 1))
        padded = centred(image, tuple(int(side) for side in np.ceil(box / spacing - 1e-6)))
        rows.append(resize(padded, config.size[: image.ndim - 1]).flatten().numpy())
        if progress is not None:
            progress(number + 1)
    pixels = np.stack(rows)
    components = min(config.components, int(fit.sum()) - 1, pixels.shape[1])
    pca = PCA(components, svd_solver="auto", random_state=0).fit(pixels[fit])
    return np.asarray(pca.transform(pixels), dtype=np.float32)


def shape_features(
    config: ShapeEncoder, cache: Cache, table: pd.DataFrame, progress: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """Sides of the prepared box in mm and spacing; unless off, header and the distribution of intensities."""
    rows, series = [], table["series_key"].tolist()
    header = header_features(table) if config.header else np.zeros((len(series), 0))
    for number, key in enumerate(series):
        volume = cache.read(key)
        row = [*_side_mm(volume), *(volume.spacing_mm or ()), *header[number]]
        if config.intensity:
            values = to_unit(volume.array, volume.modality, config.used_window_hu).flatten()
            body = values[values > _AIR]
            row.append(len(body) / len(values))
            row += _moments(body if len(body) > 1 else values)
        rows.append(row)
        if progress is not None:
            progress(number + 1)
    return np.asarray(rows, dtype=np.float32)


def header_features(table: pd.DataFrame) -> NDArray[np.float64]:
    """What a cache knows of how each series was scanned, `[row, number]`: slices, and which modality, sequence and
    slice axis it is (one column each, where there are several); what no series knows is left out.
    """
    columns = []
    slices = table.get("filled_slices")
    if slices is not None and bool((slices >= 0).any()):
        columns.append(slices.to_numpy(dtype=np.float64))
    for name in ("modality", "sequence", "slice_axis"):
        values = table[name].astype(str) if name in table else pd.Series(dtype=str)
        present = sorted(values.unique())
        columns += [(values == one).to_numpy(dtype=np.float64) for one in present] if len(present) > 1 else []
    return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0))


def _side_mm(volume: CachedVolume) -> NDArray[np.float64]:
    spacing = volume.spacing_mm or (1.0,) * volume.array.ndim
    return np.asarray([count * step for count, step in zip(volume.array.shape, spacing, strict=True)])


def _moments(values: torch.Tensor) -> list[float]:
    """Mean, standard deviation, skewness, kurtosis and five quantiles."""
    mean, std = float(values.mean()), float(values.std()) or 1.0
    scaled = (values - mean) / std
    quantiles = np.quantile(values.numpy(), [0.05, 0.25, 0.5, 0.75, 0.95])
    return [mean, std, float((scaled**3).mean()), float((scaled**4).mean()), *map(float, quantiles)]
