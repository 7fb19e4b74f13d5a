"""Paths of a label file to series: by absolute path, by its trailing part, or by a file name that occurs once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePath

import pandas as pd


def series_of_paths(paths: Sequence[str], files: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Series keys of every path that names exactly one file or folder of `files` (columns path, series_key)."""
    files = files[files["series_key"].notna() & (files["series_key"] != "")]
    wanted = {path: _parts(path) for path in paths}
    tails = {tail for parts in wanted.values() for tail in (parts, parts[-1:])}
    places: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    series: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path, key in zip(files["path"], files["series_key"], strict=True):
        parts = _parts(path)
        for place in (parts, parts[:-1]):
            hit = False
            for length in {len(tail) for tail in tails}:
                if place[-length:] in tails:
                    places[place[-length:]].add(place)
                    hit = True
            if hit:
                series[place].add(str(key))
    found: dict[str, tuple[str, ...]] = {}
    for path, parts in wanted.items():
        for tail in (parts, parts[-1:]):
            if len(places.get(tail, ())) == 1:
                found[path] = tuple(sorted(series[next(iter(places[tail]))]))
                break
            if len(places.get(tail, ())) > 1:
                break  # ambiguous
    return found


def _parts(path: str) -> tuple[str, ...]:
    pure = PurePath(path.replace("\\", "/"))
    return tuple(part for part in pure.parts if part not in (pure.anchor, "."))
