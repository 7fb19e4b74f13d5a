"""The numbers of a report for scripts: scores are fractions, differences are the reference minus the encoder."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from lejepa_med.evaluation.report_data import Benchmark, Row
from lejepa_med.evaluation.report_names import Budget

_RESULTS = (
    "task", "kind", "method", "encoder", "encoder_kind", "role", "budget", "labels", "seeds", "repeats", "status",
    "metric", "value", "low", "high", "difference", "difference_low", "difference_high", "p", "p_adjusted",
    "strongest_rival", "rival_p_adjusted", "tuned", "seconds",
)  # fmt: skip
_AREAS = (
    "task", "kind", "method", "encoder", "role", "metric", "value", "low", "high", "difference", "difference_low",
    "difference_high", "p", "p_adjusted", "p_adjusted_all",
)  # fmt: skip


def results_csv(benchmark: Benchmark) -> str:
    """One line per task, method, arm and budget, with every metric and its interval.

    `p_adjusted` counts all comparisons with that arm, `rival_p_adjusted` those with the strongest rivals.
    """
    metrics = sorted({name for row in benchmark.summary["rows"] for name in row["scores"]})
    rivals = {(row["task"], row["method"], row["other"], row["budget"]): row for row in _rivals(benchmark)}
    lines = []
    for row in benchmark.summary["rows"]:
        line = {name: row.get(name) for name in _RESULTS} | {"role": benchmark.roles[row["encoder"]]}
        key = (row["task"], row["method"], row["encoder"], row["budget"])
        line |= _difference(benchmark.difference_of.get(key))
        line |= {"strongest_rival": key in rivals, "rival_p_adjusted": rivals.get(key, {}).get("p_adjusted")}
        cells = benchmark.cells_of(row["encoder"], row["method"], row["task"], row["budget"])
        line["tuned"] = max((cell["tuned"] for cell in cells if cell.get("tuned")), default=None)
        line["seconds"] = round(seconds(benchmark, row["encoder"], row["method"], row["task"], row["budget"]), 3)
        for name in metrics:
            found = row["scores"].get(name, {})
            line |= {name: found.get("value"), f"{name}_low": found.get("low"), f"{name}_high": found.get("high")}
        lines.append(line)
    return as_csv([*_RESULTS, *(f"{name}{end}" for name in metrics for end in ("", "_low", "_high"))], lines)


def areas_csv(benchmark: Benchmark) -> str:
    """One line per task, method and arm: the area under the budget curve, and the paired difference.

    `p_adjusted` counts all tasks of the method, `p_adjusted_all` those of all methods.
    """
    lines = []
    for (task, method, arm), row in benchmark.area_of.items():
        line = {name: row.get(name) for name in _AREAS} | {"role": benchmark.roles[arm]}
        difference = benchmark.area_difference_of.get((task, method, arm))
        line["p_adjusted_all"] = (difference or {}).get("p_adjusted_all")
        lines.append(line | _difference(difference))
    return as_csv(_AREAS, lines)


def as_csv(columns: Sequence[str], lines: Iterable[Row]) -> str:
    """A header and one line each; what is None stays empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def seconds(
    benchmark: Benchmark, arm: str, method: str, task: str | None = None, budget: Budget | None = None
) -> float:
    """Time of the cells of an arm and method, of one task and budget or of all."""
    return math.fsum(cell["seconds"] for cell in benchmark.cells_of(arm, method, task, budget))


def _difference(row: Row | None) -> Row:
    if row is None:
        return {}
    found = {"difference": row["difference"], "p": row["p"], "p_adjusted": row["p_adjusted"]}
    return found | {f"difference_{end}": row[end] for end in ("low", "high")}


def _rivals(benchmark: Benchmark) -> list[Row]:
    return list(benchmark.summary.get("best_rival", ()))
