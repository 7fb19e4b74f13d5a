"""What tables hold: scores and paired differences by budget, and all metrics with the most labels."""

from __future__ import annotations

from dataclasses import dataclass

from lejepa_med.evaluation.report_data import Benchmark, Row, encoders_in
from lejepa_med.evaluation.report_names import (
    DASH,
    METRICS,
    PERCENT,
    Budget,
    budget_name,
    column_name,
    labels_per,
    measure_of,
    method_title,
    number,
)
from lejepa_med.evaluation.report_text import verdict

MARKS = {"ahead": "▲", "behind": "▼", "cannot tell": "○"}


@dataclass(frozen=True)
class Entry:
    """One cell of a table: a number, its interval, and how it is set."""

    value: str
    interval: str = ""
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of entries. A row whose second item is a text says why it has no numbers."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...] | str], ...]
    note: str


def score_table(benchmark: Benchmark, task: str, method: str) -> Table:
    """Means with 95 % intervals: arms by budgets, the highest mean of a column marked."""
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
    note = (
        f"{_sentence_case(described_metric(benchmark, task))}, higher is better, on {tested(benchmark, task)}: mean "
        "over seeds and repeats, below it the 95 % interval over patients, seeds (and an arm's repeats). "
        "Bold: the highest mean of a column, whether or not the data can tell it apart."
    )
    return Table(f"{task}: {method_title(method)}", *_heads(benchmark, task, method), tuple(rows), note)


def difference_table(benchmark: Benchmark, task: str, method: str) -> Table | None:
    """The reference minus every other arm, paired; None where there is nothing to compare."""
    budgets, reference = benchmark.budgets(task, method), benchmark.reference
    rows: list[tuple[str, tuple[Entry, ...] | str]] = []
    compared = False
    for encoder in encoders_in(benchmark, task, method):
        if encoder.name == reference:
            continue
        status = benchmark.status(task, method, encoder)
        found = [benchmark.difference_of.get((task, method, encoder.name, budget)) for budget in budgets]
        compared = compared or any(found)
        rows.append((encoder.name, status or tuple(difference_entry(row) for row in found)))
    if not compared:
        return None
    note = (
        f"Paired difference in {difference_unit(benchmark, task)}, 95 % interval below it. ▲ {reference} is ahead, ▼ "
        "behind, ○ the interval covers 0: the data cannot tell. Intervals are not corrected for their number."
    )
    title = f"{task}: {reference} minus the others, {lower_title(method)}"
    return Table(title, *_heads(benchmark, task, method), tuple(rows), note)


def metrics_table(benchmark: Benchmark, task: str, method: str) -> Table | None:
    """Every metric of a task with the most labels, arms by metrics, the best of a column marked; None without any."""
    budget = largest_budget(benchmark, task, method)
    arms = [encoder.name for encoder in encoders_in(benchmark, task, method)]
    found = {arm: benchmark.row_of.get((task, method, arm, budget)) for arm in arms}
    scored = {arm: row for arm, row in found.items() if row is not None and row["scores"]}
    if not scored:
        return None
    metrics = list(next(iter(scored.values()))["scores"])
    best = {metric: _best_arm(scored, metric) for metric in metrics}
    rows: list[tuple[str, tuple[Entry, ...] | str]] = []
    for encoder in encoders_in(benchmark, task, method):
        row = scored.get(encoder.name)
        why = benchmark.status(task, method, encoder) or "failed with this many labels"
        rows.append((encoder.name, why if row is None else tuple(_metric_entry(row, m, best[m]) for m in metrics)))
    labels = next(iter(scored.values()))["labels"]
    which = f"all {labels} labels" if budget == "all" else f"{budget} {labels_per(_kind(benchmark, task))}"
    note = (
        f"With {which}, on {tested(benchmark, task)}; 95 % intervals. ↑ higher is better, ↓ lower is better. "
        f"{_definitions(metrics)}Bold: the best mean of a column, whether or not the data can tell it apart."
    )
    title = f"{task}: all metrics, {lower_title(method)}"
    return Table(title, "metric", tuple(column_name(metric) for metric in metrics), tuple(rows), note)


def tested(benchmark: Benchmark, task: str) -> str:
    """`40 scans of 31 test patients`."""
    described = benchmark.summary["tasks"][task]
    rows, patients = described["test_rows"], described["test_patients"]
    name = {"study": "studies", "patient": "patients"}.get(described.get("unit", "series"), "scans")
    return f"{patients} test patients" if name == "patients" else f"{rows} {name} of {patients} test patients"


def described_metric(benchmark: Benchmark, task: str) -> str:
    """`balanced accuracy in per cent`."""
    metric = benchmark.summary["tasks"][task]["metric"]
    return f"{METRICS[metric]}{' in per cent' if metric in PERCENT else ''}"


def difference_unit(benchmark: Benchmark, task: str) -> str:
    """What differences of the headline are counted in."""
    metric = benchmark.summary["tasks"][task]["metric"]
    return "percentage points" if metric in PERCENT else METRICS[metric]


def lower_title(method: str) -> str:
    """The method's name inside a sentence: abbreviations keep their capitals."""
    title = method_title(method)
    return title if title.startswith("LoRA") else title[0].lower() + title[1:]


def largest_budget(benchmark: Benchmark, task: str, method: str) -> Budget:
    """The last budget where any arm has a result, or the last at all."""
    budgets = benchmark.budgets(task, method)
    scored = {k[3] for k, row in benchmark.row_of.items() if k[:2] == (task, method) and row["value"] is not None}
    return next((budget for budget in reversed(budgets) if budget in scored), budgets[-1])


def difference_entry(row: Row | None) -> Entry:
    """A signed number, its mark and its interval."""
    if row is None or row["difference"] is None:
        return Entry(DASH)
    outcome = verdict(row)
    value = f"{number(row['difference'], row['metric'], sign=True)} {MARKS[outcome]}"
    return Entry(value, bounds(row, row["metric"]), outcome.replace(" ", "-"))


def bounds(interval: Row, metric: str) -> str:
    """`[0.1, 0.3]`, or nothing."""
    if interval["low"] is None or interval["high"] is None:
        return ""
    return f"[{number(interval['low'], metric)}, {number(interval['high'], metric)}]"


def _heads(benchmark: Benchmark, task: str, method: str) -> tuple[str, tuple[str, ...]]:
    names = []
    for budget in benchmark.budgets(task, method):
        rows = [row for key, row in benchmark.row_of.items() if (key[0], key[1], key[3]) == (task, method, budget)]
        names.append(f"all ({rows[0]['labels']})" if budget == "all" else budget_name(budget))
    return labels_per(_kind(benchmark, task)), tuple(names)


def _kind(benchmark: Benchmark, task: str) -> str:
    return str(benchmark.summary["tasks"][task]["kind"])


def _best(benchmark: Benchmark, task: str, method: str, budget: Budget) -> str | None:
    rows = [row for key, row in benchmark.row_of.items() if (key[0], key[1], key[3]) == (task, method, budget)]
    scored = [row for row in rows if row["value"] is not None]
    return max(scored, key=lambda row: float(row["value"]))["encoder"] if scored else None


def _best_arm(rows: dict[str, Row], metric: str) -> str | None:
    """The arm with the best mean; None where no arm has one."""
    values = {arm: row["scores"][metric]["value"] for arm, row in rows.items()}
    known = {arm: float(value) for arm, value in values.items() if value is not None}
    if not known:
        return None
    return (min if measure_of(metric).lower_is_better else max)(known, key=lambda arm: known[arm])


def _score_entry(row: Row | None, best: bool) -> Entry:
    if row is None or row["value"] is None:
        return Entry(DASH if row is None else row["status"].replace("_", " "))
    return Entry(number(row["value"], row["metric"]), bounds(row, row["metric"]), "best" if best else "")


def _metric_entry(row: Row, metric: str, best: str | None) -> Entry:
    found = row["scores"][metric]
    if found["value"] is None:
        return Entry(DASH)
    return Entry(number(found["value"], metric), bounds(found, metric), "best" if row["encoder"] == best else "")


def _definitions(metrics: list[str]) -> str:
    """What a reader has to know about some of these metrics."""
    said = {
        "ece": "ECE: expected calibration error, 15 bins of the top label's confidence. ",
        "hd95": "HD95: 95th percentile of the distances between surfaces. ",
        "kappa": "Kappa: weighted by squared distance. ",
        "level_mae": "MAE: mean distance of the answered level from the true one. ",
    }
    return "".join(said[metric] for metric in metrics if metric in said)


def _sentence_case(text: str) -> str:
    return text if text[:2].isupper() or text.startswith("R²") else text[0].upper() + text[1:]
