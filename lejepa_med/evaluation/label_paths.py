"""Paths of a label file to series: by the longest end that names one indexed file, or one folder above files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

import pandas as pd

Parts = tuple[str, ...]


def series_of_paths(paths: Sequence[str], files: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Series keys of every path that names exactly one file or folder of `files` (columns path, series_key).

    A folder stands for all series below it, however deep. The start of a path may differ from that of the archive: the
    longest part of its end that occurs decides. Of two paths that so mean one place, the longer match has it.
    """
    wanted = {path: _parts(path) for path in paths}
    tails = {parts[start:] for parts in wanted.values() for start in range(len(parts))}
    lengths = {len(tail) for tail in tails}
    places: dict[Parts, set[Parts]] = defaultdict(set)
    series: dict[Parts, set[str]] = defaultdict(set)
    for place, key in _places(files):
        named = {place[-length:] for length in lengths if length <= len(place)} & tails
        for tail in named:
            places[tail].add(place)
        if named:
            series[place].add(key)
    matches = {path: match for path, parts in wanted.items() if (match := _match(parts, places)) is not None}
    longest: dict[Parts, int] = defaultdict(int)
    for length, place in matches.values():
        longest[place] = max(longest[place], length)
    return {path: tuple(sorted(series[at])) for path, (length, at) in matches.items() if length == longest[at]}


def _places(files: pd.DataFrame) -> Iterator[tuple[Parts, str]]:
    """Every file and every folder above it, with the key of a series in it; a folder once for each series."""
    files = files[files["series_key"].notna() & (files["series_key"] != "")]
    told: set[tuple[Parts, str]] = set()
    for path, key in zip(files["path"], files["series_key"].astype(str), strict=True):
        place = _parts(path)
        yield place, key
        while (place := place[:-1]) and (place, key) not in told:
            told.add((place, key))
            yield place, key


def _match(parts: Parts, places: Mapping[Parts, set[Parts]]) -> tuple[int, Parts] | None:
    """How much of a path's end occurs, and where; None if it occurs nowhere, or in several places."""
    for start in range(len(parts)):
        found = places.get(parts[start:], set())
        if found:
            return (len(parts) - start, next(iter(found))) if len(found) == 1 else None
    return None


def _parts(path: str) -> Parts:
    pure = PurePath(path.replace("\\", "/"))
    return tuple(part for part in pure.parts if part not in (pure.anchor, "."))
