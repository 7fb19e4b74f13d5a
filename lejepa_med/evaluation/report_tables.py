"""The same numbers as HTML, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lejepa_med.evaluation.report_data import (
    DASH,
    METRICS,
    MINUS,
    PERCENT,
    Benchmark,
    Budget,
    Row,
    budget_name,
    encoders_in,
    number,
    strata_name,
    without_paths,
)
from lejepa_med.evaluation.report_text import method_title, verdict

_MARKS = {"ahead": "▲", "behind": "▼", "cannot tell": "○"}
_CSV = (
    "task", "kind", "method", "encoder", "encoder_kind", "budget", "labels", "seeds", "status", "metric", "value",
    "low", "high", "difference", "difference_low", "difference_high", "seconds",
)  # fmt: skip
_TEX = {ord(sign): f"\\{sign}" for sign in "&%_#${}"} | {ord("\\"): "\\textbackslash{}", ord("²"): "$^2$"}
_TEX |= {ord(MINUS): "$-$", ord(DASH): "--", ord("○"): "$\\circ$"}
_TEX |= {ord("▲"): "$\\blacktriangle$", ord("▼"): "$\\blacktriangledown$"}


@dataclass(frozen=True)
class Entry:
    """One cell of a table: a number, its interval, and how it is set."""

    value: str
    interval: str = ""
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of entries under budgets. A row whose second item is a text says why it has no numbers."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...] | str], ...]
    note: str


def score_table(benchmark: Benchmark, task: str, method: str) -> Table:
    """Means with 95 % intervals: encoders by budgets, the highest mean of a column marked."""
    budgets = benchmark.budgets(task, method)
    best = {budget: _best(benchmark, task, method, budget) for budget in budgets}
    rows: list[tuple[str, tuple[Entry, ...] | str]] = []
    for encoder in encoders_in(benchmark, task, method):
        status = benchmark.status(task, method, encoder)
        found = [benchmark.row_of.get((task, method, encoder.name, budget)) for budget in budgets]
        entries = tuple(
            _score_entry(row, row is not None and row["encoder"] == best[budget])
            for row, budget in zip(found, budgets, strict=True)
        )
        rows.append((encoder.name, status or entries))
    described = benchmark.summary["tasks"][task]
    metric = described["metric"]
    note = (
        f"{METRICS[metric].capitalize() if metric != 'r2' else 'R²'}{' in per cent' if metric in PERCENT else ''} on "
        f"{described['test_rows']} scans of {described['test_patients']} test patients: mean over seeds, below it the "
        "95 % interval over patients. Bold: the highest mean of a column, whether or not the data can tell it apart."
    )
    return Table(
        f"{task}: {method_title(method)}", _corner(described), _columns(benchmark, task, method), tuple(rows), note
    )


def difference_table(benchmark: Benchmark, task: str, method: str) -> Table | None:
    """The reference minus every other encoder, paired; None where there is nothing to compare."""
    budgets, reference = benchmark.budgets(task, method), benchmark.reference
    rows: list[tuple[str, tuple[Entry, ...] | str]] = []
    compared = False
    for encoder in encoders_in(benchmark, task, method):
        if encoder.name == reference:
            continue
        status = benchmark.status(task, method, encoder)
        found = [benchmark.difference_of.get((task, method, encoder.name, budget)) for budget in budgets]
        compared = compared or any(found)
        rows.append((encoder.name, status or tuple(_difference_entry(row) for row in found)))
    if not compared:
        return None
    described = benchmark.summary["tasks"][task]
    unit = "percentage points" if described["metric"] in PERCENT else METRICS[described["metric"]]
    note = (
        f"Paired difference in {unit}, 95 % interval below it. ▲ {reference} is ahead, ▼ behind, "
        "○ the interval covers 0: the data cannot tell."
    )
    title = f"{task}: {reference} minus the others, {method_title(method).lower()}".replace("k-nn", "k-NN")
    return Table(title, _corner(described), _columns(benchmark, task, method), tuple(rows), note)


def tables(benchmark: Benchmark) -> list[Table]:
    """All tables, task by task."""
    found: list[Table] = []
    for task in benchmark.summary["tasks"]:
        for method in benchmark.methods(task):
            differences = difference_table(benchmark, task, method)
            found += [score_table(benchmark, task, method), *([differences] if differences else [])]
    return found


def as_html(table: Table, caption: str, with_note: bool = True) -> str:
    """A table that scrolls sideways on a small screen, its first column standing still."""
    head = "".join(f"<th scope=col>{html.escape(name)}" for name in table.columns)
    body = []
    for name, entries in table.rows:
        if isinstance(entries, str):
            cells = f"<td class=absent colspan={len(table.columns)}>{html.escape(entries)}"
        else:
            cells = "".join(
                f'<td class="{entry.style}">{entry.value}<span class=ci>{entry.interval}</span>' for entry in entries
            )
        body.append(f"<tr><th scope=row>{html.escape(name)}{cells}")
    note = f"<p class=note>{html.escape(table.note)}</p>" if with_note else ""
    return (
        f"<div class=wide><table class=scores><caption>{html.escape(caption)}</caption><thead><tr><th scope=col>"
        f"{html.escape(table.corner)}{head}</thead><tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def as_markdown(all_tables: Sequence[Table]) -> str:
    """Every table as a pipe table under its title."""
    lines = []
    for table in all_tables:
        lines += [f"## {table.title}", "", f"| {table.corner} | {' | '.join(table.columns)} |"]
        lines.append(f"|---|{'---|' * len(table.columns)}")
        for name, entries in table.rows:
            cells = _flat(entries, len(table.columns))
            lines.append(f"| {name.replace('|', '/')} | {' | '.join(cells)} |")
        lines += ["", table.note, ""]
    return "\n".join(lines)


def as_latex(all_tables: Sequence[Table]) -> str:
    """Every table with booktabs rules, ready to `\\input`."""
    lines = ["% needs \\usepackage{booktabs,amssymb}"]
    for table in all_tables:
        lines += ["\\begin{table}", "\\centering", f"\\caption{{{_tex(table.title + '. ' + table.note)}}}"]
        lines += [f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}", "\\toprule"]
        lines.append(" & ".join(_tex(name) for name in (table.corner, *table.columns)) + " \\\\")
        lines.append("\\midrule")
        for name, entries in table.rows:
            if isinstance(entries, str):
                cells = [f"\\multicolumn{{{len(table.columns)}}}{{l}}{{{_tex(entries)}}}"]
            else:
                cells = [_tex(cell) for cell in _flat(entries, len(table.columns))]
            lines.append(" & ".join([_tex(name), *cells]) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(lines)


def as_csv(benchmark: Benchmark) -> str:
    """One line per task, method, encoder and budget; values as fractions, differences are reference minus encoder."""
    others = sorted({name for row in benchmark.summary["rows"] for name in row["scores"]})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*_CSV, *others], lineterminator="\n")
    writer.writeheader()
    for row in benchmark.summary["rows"]:
        line = {name: row.get(name) for name in _CSV}
        difference = benchmark.difference_of.get((row["task"], row["method"], row["encoder"], row["budget"]))
        if difference is not None:
            line |= {"difference": difference["difference"]}
            line |= {f"difference_{end}": difference[end] for end in ("low", "high")}
        line["seconds"] = round(seconds(benchmark, row["encoder"], row["method"], row["task"], row["budget"]), 3)
        writer.writerow(line | {name: row["scores"].get(name, {}).get("value") for name in others})
    return stream.getvalue()


def seconds(
    benchmark: Benchmark, encoder: str, method: str, task: str | None = None, budget: Budget | None = None
) -> float:
    """Time of the cells of an encoder and method, of one task and budget or of all."""
    return math.fsum(
        cell["seconds"]
        for cell in benchmark.cells
        if (cell["encoder"], cell["method"]) == (encoder, method)
        and task in (None, cell["task"])
        and budget in (None, cell["budget"])
    )


def messages(benchmark: Benchmark) -> list[str]:
    """What went wrong, without paths; missing weights are said elsewhere."""
    failed = {cell["message"] for cell in benchmark.cells if cell["status"] == "failed"}
    return sorted(without_paths(message) for message in failed)


def _corner(described: Row) -> str:
    return f"labels per {strata_name(described['kind'])}"


def _columns(benchmark: Benchmark, task: str, method: str) -> tuple[str, ...]:
    names = []
    for budget in benchmark.budgets(task, method):
        rows = [row for key, row in benchmark.row_of.items() if (key[0], key[1], key[3]) == (task, method, budget)]
        names.append(f"all ({rows[0]['labels']})" if budget == "all" else budget_name(budget))
    return tuple(names)


def _best(benchmark: Benchmark, task: str, method: str, budget: Budget) -> str | None:
    rows = [row for key, row in benchmark.row_of.items() if (key[0], key[1], key[3]) == (task, method, budget)]
    scored = [row for row in rows if row["value"] is not None]
    return max(scored, key=lambda row: float(row["value"]))["encoder"] if scored else None


def _score_entry(row: Row | None, best: bool) -> Entry:
    if row is None or row["value"] is None:
        return Entry(DASH if row is None else row["status"].replace("_", " "))
    value = number(row["value"], row["metric"])
    return Entry(value, _bounds(row), "best" if best else "")


def _difference_entry(row: Row | None) -> Entry:
    if row is None or row["difference"] is None:
        return Entry(DASH)
    outcome = verdict(row)
    value = f"{number(row['difference'], row['metric'], sign=True)} {_MARKS[outcome]}"
    return Entry(value, _bounds(row), outcome.replace(" ", "-"))


def _bounds(row: Row) -> str:
    if row["low"] is None or row["high"] is None:
        return ""
    return f"[{number(row['low'], row['metric'])}, {number(row['high'], row['metric'])}]"


def _flat(entries: tuple[Entry, ...] | str, columns: int) -> list[str]:
    if isinstance(entries, str):
        return [entries] + [""] * (columns - 1)
    return [f"{entry.value} {entry.interval}".strip() for entry in entries]


def _tex(text: str) -> str:
    return text.translate(_TEX)
