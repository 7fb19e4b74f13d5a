"""Images that occur on both sides of a split: exact copies, and near duplicates under other keys.

Patients are never split, but the same scan may lie in an archive twice, under two ids. Copies of all pixels stop a
benchmark; near duplicates are counted and named. Near means that thumbnails (16^3 or 32^2 voxels of the whole volume,
mean 0, norm 1) correlate by `NEAR` or more; docs/evaluation_protocol.md says what that finds in real scans.

    OUT/thumbnails.npz    per dimension: series keys, digests of the entries, thumbnails in half precision (2 or 8 KB)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.config.evaluation import EncoderConfig
from lejepa_med.data.cache import Cache
from lejepa_med.data.inference import to_unit
from lejepa_med.data.pretraining_record import FILE, read_record
from lejepa_med.errors import DataError
from lejepa_med.evaluation.grid import Grid, PreparedTask
from lejepa_med.evaluation.labels import named_keys
from lejepa_med.resampling import resize
from lejepa_med.spec import InferenceSpec

Result = dict[str, Any]
Progress = Callable[[str, int, int], None]
NEAR = 0.97
_SIDES = {2: 32, 3: 16}
_PAIRS = 10  # that a result names
_ROWS_PER_PRODUCT = 4096


@dataclass(frozen=True)
class _Comparison:
    """`tested` series against `seen` ones, for a task or a pretrained encoder."""

    kind: str
    name: str
    tested: tuple[str, ...]
    seen: tuple[str, ...]


def find_duplicates(grid: Grid, out: Path, progress: Progress | None = None) -> dict[str, Result]:
    """Per task (`tasks`) and per run whose pretraining series are in the cache (`pretraining`): how many test series
    have an exact copy and how many a near duplicate on the other side, and the worst pairs.

    Raises:
        DataError: there are exact copies, and the config does not allow them.
    """
    comparisons = [_of_task(name, task) for name, task in grid.tasks.items()]
    comparisons += [one for one in (_of_run(grid, encoder) for encoder in grid.config.encoders) if one is not None]
    digest_of = dict(zip(grid.cache.table["series_key"], grid.cache.table["sha256"], strict=True))
    exact = {(one.kind, one.name): _copies(one, digest_of) for one in comparisons}
    if not grid.config.allow_duplicates:
        for one in comparisons:
            _refuse(one, exact[one.kind, one.name])
    series = sorted({key for one in comparisons for key in (*one.tested, *one.seen)})
    thumbnails = Thumbnails.of(grid.cache, series, digest_of, out / "thumbnails.npz", progress)
    found: dict[str, Result] = {"tasks": {}, "pretraining": {}}
    for one in comparisons:
        near = thumbnails.pairs(one.tested, one.seen)
        found[one.kind][one.name] = {
            "tested": len(one.tested),
            "seen": len(one.seen),
            "exact": len(exact[one.kind, one.name]),
            "near": len({tested for tested, _, _ in near}),
            "threshold": NEAR,
            "worst": [[tested, seen, round(r, 4)] for tested, seen, r in near[:_PAIRS]],
        }
    return found


class Thumbnails:
    """Small standardised copies of volumes, by series key; pictures and volumes apart."""

    def __init__(self, rows: dict[int, tuple[dict[str, int], NDArray[np.float16]]]) -> None:
        self._rows = rows

    @classmethod
    def of(
        cls, cache: Cache, series: Iterable[str], digest_of: dict[str, str], file: Path, progress: Progress | None
    ) -> Thumbnails:
        """Those of `series`, from `file` where their entries are the same; new ones are added to it."""
        stored = _read(file)
        series = list(series)
        missing = [key for key in series if (key, digest_of[key]) not in stored]
        for number, key in enumerate(missing):
            stored[key, digest_of[key]] = _thumbnail(cache, key)
            if progress is not None and (number % 64 == 63 or number + 1 == len(missing)):
                progress("check for duplicates", number + 1, len(missing))
        if missing:
            _write(file, stored)
        rows = {}
        for ndim, side in _SIDES.items():
            keys = [key for key in series if len(stored[key, digest_of[key]]) == side**ndim]
            values = [stored[key, digest_of[key]] for key in keys]
            rows[ndim] = ({key: row for row, key in enumerate(keys)}, np.array(values, dtype=np.float16))
        return cls(rows)

    def pairs(self, tested: Iterable[str], seen: Iterable[str]) -> list[tuple[str, str, float]]:
        """(tested, seen, r) of thumbnails that correlate by `NEAR` or more, the most alike first."""
        found: list[tuple[str, str, float]] = []
        tested, seen = list(tested), list(seen)
        for position, values in self._rows.values():
            first = [key for key in tested if key in position]
            second = [key for key in seen if key in position]
            right = [position[key] for key in second]
            for start in range(0, len(first), _ROWS_PER_PRODUCT):
                names = first[start : start + _ROWS_PER_PRODUCT]
                left = values[[position[key] for key in names]].astype(np.float32)
                for begin in range(0, len(right), _ROWS_PER_PRODUCT):
                    r = left @ values[right[begin : begin + _ROWS_PER_PRODUCT]].astype(np.float32).T
                    rows, columns = np.nonzero(r >= NEAR)
                    found += [
                        (names[row], second[begin + column], float(r[row, column]))
                        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
                        if names[row] != second[begin + column]
                    ]
        return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


def standardised(image: NDArray[np.floating]) -> NDArray[np.float16]:
    """Mean 0 and norm 1; a constant image becomes 0, which is like nothing."""
    values = image.ravel().astype(np.float64)
    values -= values.mean()
    norm = np.linalg.norm(values)
    return np.asarray(values / norm if norm > 1e-9 else values * 0, dtype=np.float16)


def _thumbnail(cache: Cache, key: str) -> NDArray[np.float16]:
    volume = cache.read(key)
    image = to_unit(volume.array, volume.modality, InferenceSpec().ct_window_hu)
    ndim = image.ndim - 1
    return standardised(resize(image, (_SIDES[ndim],) * ndim).numpy())


def _of_task(name: str, task: PreparedTask) -> _Comparison:
    keys = task.labelled.table["series_key"]
    tested, seen = keys[task.is_in(task.split.test)], keys[task.is_in(task.split.train)]
    return _Comparison("tasks", name, tuple(tested), tuple(seen))


def _of_run(grid: Grid, encoder: EncoderConfig) -> _Comparison | None:
    """All test series against the run's pretraining series that are in the cache; None if none is."""
    if encoder.kind != "run":
        return None
    folder = encoder.path if encoder.path.is_dir() else encoder.path.parent
    if not (folder / FILE).exists():
        return None
    tested = list(dict.fromkeys(key for name, task in grid.tasks.items() for key in _of_task(name, task).tested))
    known = set(grid.cache.table["series_key"]) - set(tested)
    seen = tuple(sorted(set(read_record(folder)["series_key"]) & known))
    return _Comparison("pretraining", encoder.name, tuple(tested), seen) if seen else None


def _copies(one: _Comparison, digest_of: dict[str, str]) -> list[tuple[str, str]]:
    """(tested, seen) with the same bytes: the same voxels, in the same order and type."""
    first = {digest_of[key]: key for key in reversed(one.seen)}
    return [(key, first[digest_of[key]]) for key in one.tested if digest_of[key] in first]


def _refuse(one: _Comparison, copies: list[tuple[str, str]]) -> None:
    if copies:
        pairs = named_keys([f"{tested} = {seen}" for tested, seen in copies])
        where = "training series" if one.kind == "tasks" else "series that it was pretrained on"
        name = f"task {one.name}" if one.kind == "tasks" else f"encoder {one.name}"
        raise DataError(
            f"{name}: {len(copies)} test series have the same pixels as {where} of other patients ({pairs}); say "
            "that they are one patient (`group_column`, or `patients` in the index), or set allow_duplicates=true"
        )


def _read(file: Path) -> dict[tuple[str, str], NDArray[np.float16]]:
    if not file.exists():
        return {}
    with np.load(file, allow_pickle=False) as stored:
        return {
            (str(key), str(digest)): row
            for ndim in _SIDES
            for key, digest, row in zip(
                stored[f"series_key_{ndim}d"], stored[f"sha256_{ndim}d"], stored[f"thumbnails_{ndim}d"], strict=True
            )
        }


def _write(file: Path, rows: dict[tuple[str, str], NDArray[np.float16]]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for ndim, side in _SIDES.items():
        own = {names: row for names, row in rows.items() if len(row) == side**ndim}
        arrays[f"series_key_{ndim}d"] = np.array([key for key, _ in own], dtype=str)
        arrays[f"sha256_{ndim}d"] = np.array([digest for _, digest in own], dtype=str)
        arrays[f"thumbnails_{ndim}d"] = np.array(list(own.values()), dtype=np.float16).reshape(len(own), side**ndim)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}.partial.npz")
    np.savez(temporary, allow_pickle=False, **arrays)
    temporary.replace(file)
