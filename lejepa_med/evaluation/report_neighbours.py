"""Nearest neighbours of test scans: who they are, how often their labels agree, and a sheet of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.data.cache import Cache
from lejepa_med.viz.canvas import Tile, tile_sheet
from lejepa_med.viz.slices import middle_slice
from lejepa_med.viz.style import BLUE, ORANGE

NEIGHBOURS = 4


def nearest(features: NDArray[np.float32], patients: list[str], count: int = NEIGHBOURS) -> NDArray[np.int64]:
    """Rows of the `count` nearest rows of other patients, by cosine of standardised features: `[row, neighbour]`.

    Fewer columns where some row has fewer of other patients.
    """
    standard = (features - features.mean(0)) / np.where(features.std(0) > 1e-6, features.std(0), 1.0)
    unit = standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    owner = np.unique(np.asarray(patients), return_inverse=True)[1]
    cosine[owner[:, None] == owner[None]] = -np.inf
    others = len(owner) - int(np.bincount(owner).max())  # a scan has at least so many of other patients
    order = np.argsort(-cosine, axis=1, kind="stable")[:, : min(count, others)]
    return order.astype(np.int64)


def query_rows(labels: list[Any], queries: int = 4) -> list[int]:
    """The first row of up to `queries` classes, or of evenly spaced ranks of a regression target: nobody's choice."""
    if all(isinstance(label, str) for label in labels):
        return [labels.index(name) for name in sorted(set(labels))][:queries]
    order = np.argsort(np.asarray(labels, dtype=np.float64), kind="stable")
    count = min(queries, len(labels))
    return [int(order[round(place)]) for place in np.linspace(0.1, 0.9, count) * (len(labels) - 1)]


def neighbour_sheet(
    cache: Cache, series: list[str], labels: list[Any], neighbours: NDArray[np.int64], queries: list[int]
) -> Image.Image:
    """One line per query: its middle slice, then its neighbours; a frame says whether the class agrees."""
    rows = []
    for query in queries:
        tiles = [Tile(_middle(cache, series[query]), _caption(labels[query]))]
        for row in neighbours[query].tolist():
            frame = None
            if isinstance(labels[query], str):
                frame = BLUE if labels[row] == labels[query] else ORANGE
            tiles.append(Tile(_middle(cache, series[row]), _caption(labels[row]), frame))
        rows.append(tiles)
    columns = ["query", *(f"neighbour {number + 1}" for number in range(neighbours.shape[1]))]
    return tile_sheet(rows, column_titles=columns)


def agreement(labels: list[Any], neighbours: NDArray[np.int64]) -> float:
    """Share of all neighbours with the class of their query; regression: mean absolute difference of the values."""
    pairs = [(labels[query], labels[row]) for query, rows in enumerate(neighbours.tolist()) for row in rows]
    if isinstance(labels[0], str):
        return float(np.mean([first == second for first, second in pairs]))
    return float(np.mean([abs(first - second) for first, second in pairs]))


def chance_agreement(labels: list[Any], patients: list[str]) -> float:
    """The same over all pairs of scans of different patients."""
    everyone = range(len(labels))
    others = [(one, two) for one in everyone for two in everyone if patients[one] != patients[two]]
    if isinstance(labels[0], str):
        return float(np.mean([labels[one] == labels[two] for one, two in others]))
    return float(np.mean([abs(labels[one] - labels[two]) for one, two in others]))


def _middle(cache: Cache, series_key: str) -> NDArray[np.uint8]:
    volume = cache.read(series_key)
    return middle_slice(np.asarray(volume.array), volume.spacing_mm)


def _caption(label: Any) -> str:
    return label[:16] if isinstance(label, str) else f"{label:.3g}"
