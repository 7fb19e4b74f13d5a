"""Tables against the strongest rival, with adjusted p values, and of areas under the budget curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lejepa_med.config.evaluation import EncoderConfig
from lejepa_med.evaluation.report_data import NO_WEIGHTS, NOT_EVALUATED, Benchmark, Row
from lejepa_med.evaluation.report_names import (
    METHODS,
    SIGNIFICANT,
    budget_name,
    method_title,
    number,
    p_value,
)
from lejepa_med.evaluation.report_tables import (
    Entry,
    Table,
    bounds,
    difference_entry,
    difference_table,
    difference_unit,
    metrics_table,
    score_table,
)

Line = tuple[str, tuple[Entry, ...] | str]


def rival_table(benchmark: Benchmark, task: str) -> Table | None:
    """The reference and its strongest rival at every budget of every method, and their areas; None without a rival."""
    rows: list[Line] = []
    for method in benchmark.methods(task):
        for found in benchmark.against_rival(task, method):
            name = f"{method_title(method)}: {budget_name(found['budget'])}"
            mine, other = (
                benchmark.row_of[task, method, arm, found["budget"]] for arm in (found["reference"], found["other"])
            )
            rows.append((name, _rival_entries(found, mine, other)))
        rival = benchmark.rival(task, method)
        area = benchmark.area_difference_of.get((task, method, rival or ""))
        if rival is not None and area is not None and benchmark.reference is not None:
            mine, other = (benchmark.area_of[task, method, arm] for arm in (benchmark.reference, rival))
            rows.append((f"{method_title(method)}: area", _rival_entries(area, mine, other)))
    if not rows:
        return None
    columns = (str(benchmark.reference), "strongest rival", "its score", "difference", "p", "p, Holm")
    note = (
        "The strongest rival of a method is the one with the largest area under the budget curve, a choice on the test "
        f"patients that favours the rival. Difference: {benchmark.reference} minus the rival, paired, in "
        f"{difference_unit(benchmark, task)}; p two-sided, of the bootstrap. Holm: adjusted over all tasks and budgets "
        f"of a method (areas: over tasks); bold where it is at most {SIGNIFICANT:g}."
    )
    return Table(f"{task}: {benchmark.reference} and its strongest rival", "labels", columns, tuple(rows), note)


def area_table(benchmark: Benchmark, task: str) -> Table | None:
    """Areas under the budget curve: arms by methods; None where no method has two budgets."""
    methods, rows = _area_lines(benchmark, task, benchmark.area_of, _area_entry)
    if not methods:
        return None
    note = (
        "Mean of the headline over the logarithm of the number of labels, from the smallest budget to the largest that "
        "an arm has; 95 % intervals. Compare within a column: methods may have other budgets."
    )
    return Table(f"{task}: area under the budget curve", "method", _names(methods), rows, note)


def area_difference_table(benchmark: Benchmark, task: str) -> Table | None:
    """The reference's area minus the others', paired, with Holm's p; None where there is nothing to compare."""
    methods, rows = _area_lines(benchmark, task, benchmark.area_difference_of, _area_difference_entry)
    if not methods:
        return None
    note = (
        f"Paired over the budgets that both have, in {difference_unit(benchmark, task)}: 95 % interval and Holm's p "
        f"over tasks; in brackets over all tasks and methods. ▲ {benchmark.reference} is ahead, ▼ behind, "
        "○ the interval covers 0: the data cannot tell."
    )
    title = f"{task}: {benchmark.reference} minus the others, area under the budget curve"
    return Table(title, "method", _names(methods), rows, note)


def tables(benchmark: Benchmark) -> list[Table]:
    """All tables, task by task."""
    found: list[Table | None] = []
    for task in benchmark.summary["tasks"]:
        found += [rival_table(benchmark, task), area_table(benchmark, task), area_difference_table(benchmark, task)]
        for method in benchmark.methods(task):
            found += [score_table(benchmark, task, method), difference_table(benchmark, task, method)]
            found.append(metrics_table(benchmark, task, method))
    return [table for table in found if table is not None]


def _rival_entries(difference: Row, mine: Row, other: Row) -> tuple[Entry, ...]:
    metric, p = difference["metric"], difference["p_adjusted"]
    return (
        Entry(number(mine["value"], metric), bounds(mine, metric)),
        Entry(difference["other"], "", "text"),
        Entry(number(other["value"], metric), bounds(other, metric)),
        difference_entry(difference),
        Entry(p_value(difference["p"])),
        Entry(p_value(p), "", "best" if p is not None and p <= SIGNIFICANT else ""),
    )


def _area_lines(
    benchmark: Benchmark,
    task: str,
    found: Mapping[tuple[str, str, str], Row],
    entry_of: Callable[[Row | None], Entry],
) -> tuple[list[str], tuple[Line, ...]]:
    """The methods of a task that have any of these numbers, and a line for every arm that has some, or says why not."""
    methods = [m for m in benchmark.methods(task) if any(key[:2] == (task, m) for key in found)]
    rows: list[Line] = []
    for encoder in benchmark.encoders:
        own = [found.get((task, method, encoder.name)) for method in methods]
        absent = _absence(benchmark, task, methods, encoder)
        if any(own) or absent:
            rows.append((encoder.name, absent or tuple(entry_of(row) for row in own)))
    return methods, tuple(rows)


def _absence(benchmark: Benchmark, task: str, methods: list[str], encoder: EncoderConfig) -> str:
    """Why an arm has no number in any of these columns; empty where it has some, or was not to be evaluated there."""
    statuses = {benchmark.status(task, method, encoder) for method in methods} - {NOT_EVALUATED}
    return "" if "" in statuses or not statuses else min(statuses, key=lambda status: status != NO_WEIGHTS)


def _area_entry(row: Row | None) -> Entry:
    return (
        Entry("\N{EN DASH}") if row is None else Entry(number(row["value"], row["metric"]), bounds(row, row["metric"]))
    )


def _area_difference_entry(row: Row | None) -> Entry:
    entry = difference_entry(row)
    if row is None or row["p_adjusted"] is None:
        return entry
    everything = row.get("p_adjusted_all")
    of_all = "" if everything is None else f" ({p_value(everything)})"
    return Entry(entry.value, f"{entry.interval} p = {p_value(row['p_adjusted'])}{of_all}", entry.style)


def _names(methods: list[str]) -> tuple[str, ...]:
    return tuple(METHODS[method] for method in methods)
