"""How long the cells that are left will take, from the seconds of those that are done in the same folder.

A cell takes what the nearest finished ones took: same encoder, method and budget; else same encoder and method; else
the same method. Nothing finished of a method: its time is not known, and no number is made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lejepa_med.evaluation.cells import cell_file, is_done
from lejepa_med.evaluation.grid import Cell

_NEARNESS: tuple[Callable[[dict[str, Any]], tuple[Any, ...]], ...] = (
    lambda cell: (cell["encoder"], cell["method"], cell["budget"]),
    lambda cell: (cell["encoder"], cell["method"]),
    lambda cell: (cell["method"],),
)


@dataclass(frozen=True)
class Estimate:
    """`seconds` of one process for the cells whose time is known; `unknown`: methods of which no cell has finished.

    `idle` cells have no weights: they will say so, and are not to do.
    """

    todo: int
    idle: int
    measured: int
    seconds: float
    unknown: tuple[str, ...]

    def sentence(self, workers: int) -> str:
        """One line: what is left, how long it takes, and where that is from."""
        return self._left(workers) + (f"; {self.idle} cells have no weights and will say so" if self.idle else "")

    def _left(self, workers: int) -> str:
        if not self.todo:
            return "all cells are done"
        if not self.measured:
            return f"{self.todo} cells to do; no finished cell in the folder to tell how long they take"
        hours = self.seconds / workers / 3600
        took = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
        text = (
            f"{self.todo} cells to do, about {took} with {workers} worker{'s' if workers > 1 else ''}, by the median "
        )
        text += f"seconds of {self.measured} finished ones (features not counted)"
        return text + (f"; not known: {', '.join(self.unknown)}" if self.unknown else "")


def estimate(out: Path, cells: Sequence[Cell], without_weights: Collection[str] = ()) -> Estimate:
    """For the cells of a grid that `out` does not hold yet; `without_weights` names encoders."""
    finished = [json.loads(cell_file(out, cell).read_text()) for cell in cells if is_done(out, cell)]
    left = [cell for cell in cells if not is_done(out, cell)]
    todo = [cell for cell in left if cell.encoder not in without_weights]
    measured = [cell for cell in finished if isinstance(cell.get("seconds"), float)]
    tables = []
    for key in _NEARNESS:
        by_key: dict[tuple[Any, ...], list[float]] = {}
        for cell in measured:
            by_key.setdefault(key(cell), []).append(cell["seconds"])
        tables.append({name: median(seconds) for name, seconds in by_key.items()})
    total, unknown = 0.0, set()
    for cell in todo:
        near = (table.get(key(vars(cell))) for key, table in zip(_NEARNESS, tables, strict=True))
        seconds = next((found for found in near if found is not None), None)
        if seconds is None:
            unknown.add(cell.method)
        else:
            total += seconds
    return Estimate(len(todo), len(left) - len(todo), len(measured), total, tuple(sorted(unknown)))
