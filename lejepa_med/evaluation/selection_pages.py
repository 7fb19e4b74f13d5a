"""A selection as text, tables and a picture.

    OUT/selection.csv    one row per run, best first; runs without a score last, with the reason
    OUT/selection.json   the same, the protocol, and the agreement with probe results
    OUT/selection.md     what is printed, as a page
    OUT/selection.png    score against probe result, or the ranking (and selection.svg)
    OUT/select.yaml      settings with the views spelled out: `--config` to score more runs in the same way
Runs are named by their folders; no path, patient or series is in these files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lejepa_med.config import SelectConfig, dump_yaml
from lejepa_med.config.selection import PAPER_ALPHA
from lejepa_med.data.cache import write_atomically
from lejepa_med.evaluation.report_names import METRICS
from lejepa_med.evaluation.selection import Agreement, Ranked, Selection
from lejepa_med.evaluation.selection_runs import RunScore
from lejepa_med.evaluation.selection_statistics import MIN_GROUP, Correlation
from lejepa_med.viz.selection import Panel, RunPoint, agreement_figure, ranking_figure
from lejepa_med.viz.style import save_figure

_COLUMNS = {
    "rank": "rank", "run": "run", "lam": "lam", "steps": "steps", "batch": "batch",
    "prediction": "prediction", "sigreg": "sigreg", "total": "total", "total_sd": "sd of draws",
    "alpha": "alpha", "score": "score",
    "score_paper": f"at alpha {PAPER_ALPHA}", "train_total": "training loss",
}  # fmt: skip
Table = list[list[str]]


def write_selection(selection: Selection, out: Path) -> None:
    """The files of the module's first lines."""
    out.mkdir(parents=True, exist_ok=True)
    content = as_json(selection)
    pd.DataFrame(content["runs"]).to_csv(out / "selection.csv", index=False)
    write_atomically(out / "selection.json", json.dumps(content, indent=1, allow_nan=False).encode())
    write_atomically(out / "selection.md", markdown(selection).encode())
    write_atomically(out / "select.yaml", dump_yaml(settings(selection)).encode())
    save_figure(_figure(selection), out / "selection")


def settings(selection: Selection) -> SelectConfig:
    """What repeats this protocol on other runs, whatever their order."""
    return selection.config.model_copy(update={"views": selection.views, "cache": None})


def as_json(selection: Selection) -> dict[str, Any]:
    """Plain values; numbers that do not exist are null."""
    runs = [_row(place, item) for place, item in enumerate(selection.ranked, start=1)]
    runs += [_unscored(row) for row in selection.not_scored]
    return {
        "runs": runs,
        "protocol": {
            "held_out_patients": selection.held_out_patients,
            "patients_per_draw": selection.samples,
            **settings(selection).model_dump(mode="json", exclude={"version", "cache", "device"}),
        },
        "agreements": [_agreement_json(agreement) for agreement in selection.agreements],
        "notes": selection.notes,
    }


def _row(place: int, item: Ranked) -> dict[str, Any]:
    row = item.row
    numbers = {"prediction": row.prediction, "sigreg": row.sigreg, "total": row.total, "total_sd": row.total_sd}
    numbers |= {"alpha": item.alpha, "score": item.score}
    numbers |= {"score_paper": row.total / row.lam**PAPER_ALPHA, "train_total": row.train_total}
    start = {"rank": place, "run": row.name, "lam": row.lam, "steps": row.steps, "batch": row.batch}
    return start | {name: _number(value) for name, value in numbers.items()} | {"not_scored": ""}


def _unscored(row: RunScore) -> dict[str, Any]:
    empty = dict.fromkeys(_COLUMNS)
    known = {"run": row.name, "lam": _number(row.lam), "train_total": _number(row.train_total)}
    return empty | known | {"not_scored": row.problem}


def _agreement_json(agreement: Agreement) -> dict[str, Any]:
    outcome = agreement.outcome
    return {
        "task": outcome.task,
        "method": outcome.method,
        "metric": outcome.metric,
        "budget": outcome.budget,
        "values": outcome.values,
        "sentences": sentences(agreement),
        "predictors": [
            {"name": name, "all_runs": _correlation_json(overall), "equal_length": _correlation_json(within)}
            for name, overall, within in agreement.predictors
        ],
    }


def _correlation_json(correlation: Correlation) -> dict[str, Any]:
    return {name: _number(value) if isinstance(value, float) else value for name, value in vars(correlation).items()}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def plain_text(selection: Selection) -> str:
    """What is printed."""
    parts = [protocol_sentence(selection), _aligned(_ranking_table(selection))]
    parts += [f"not scored: {row.name}: {row.problem}" for row in selection.not_scored]
    parts += selection.notes
    for agreement in selection.agreements:
        parts += [agreement.outcome.title, _aligned(_agreement_table(agreement)), "\n".join(sentences(agreement))]
    return "\n\n".join([*parts, closing_sentence(selection)])


def markdown(selection: Selection) -> str:
    """The same as a page, with the settings that repeat it."""
    parts = ["# Runs ranked by their held-out loss", protocol_sentence(selection)]
    parts += [_pipes(_ranking_table(selection)), "![ranking](selection.png)"]
    parts += [f"Not scored: **{row.name}**: {row.problem}." for row in selection.not_scored]
    parts += [f"{note[0].upper()}{note[1:]}." for note in selection.notes]
    for agreement in selection.agreements:
        parts += [f"## {agreement.outcome.title}", _pipes(_agreement_table(agreement)), *sentences(agreement)]
    parts += [closing_sentence(selection), "## Settings", f"```yaml\n{dump_yaml(settings(selection))}```"]
    return "\n\n".join(parts) + "\n"


def protocol_sentence(selection: Selection) -> str:
    """Patients, draws and views that all runs were scored on."""
    views, config = selection.views, selection.config
    sizes = [f"{views.num_global} global of {_size(views.global_size)}"]
    sizes += [f"{views.num_local} local of {_size(views.local_size)}"] if views.num_local else []
    crop = f"base crops of {views.base_crop_mm:g} mm" if views.base_crop_mm is not None else "whole arrays"
    origin = "as given" if config.views is not None else "geometry of the first run, default intensities"
    return (
        f"Scored on {selection.samples} of {selection.held_out_patients} held-out patients per draw, {config.draws} "
        f"draw{'s' if config.draws > 1 else ''}, seed {config.seed}; {config.num_slices} directions; "
        f"views: {' and '.join(sizes)} from {crop} ({origin})."
    )


def _size(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def closing_sentence(selection: Selection) -> str:
    """What the order rests on."""
    alpha = selection.ranked[0].alpha
    formula = f"score = total / lam^{alpha:g}"
    if selection.config.alpha != "auto":
        return f"{formula}, lower is better."
    if not selection.agreements:
        return f"{formula} (the paper's exponent), lower is better; no probe results were found."
    return (
        f"{formula}, lower is better, for all runs: the exponent under which the probe results of all of them together "
        f"agree best with the loss ({PAPER_ALPHA:g} where they do not tell). So the order has seen these results; the "
        f"correlation with alpha of other runs has not."
    )


def sentences(agreement: Agreement) -> list[str]:
    """What may be claimed, and no more."""
    name, overall, within = agreement.predictors[0]
    said = [f"{_spelled(name)} over {overall.runs} runs: {_claim(overall)}."]
    if within.runs:
        said.append(f"Among runs of equal length and batch ({within.runs} runs): {_claim(within)}.")
    else:
        said.append(f"No length has {MIN_GROUP} runs: length alone may explain the order.")
    seen = next((overall for name, overall, _ in agreement.predictors if name == "samples seen alone"), None)
    if seen is not None and math.isfinite(seen.value):
        said.append(f"Number of samples seen alone: Spearman {_with_ends(seen)}.")
    return said


def _spelled(name: str) -> str:
    return name[0].upper() + name[1:]


def _claim(correlation: Correlation) -> str:
    if not math.isfinite(correlation.value):
        return f"no Spearman correlation: {correlation.note}"
    text = f"Spearman {_with_ends(correlation)}"
    if correlation.note:
        return f"{text}; {correlation.note}, so nothing is claimed for other runs"
    if correlation.low <= 0:
        return f"{text}, 95 % interval over runs; it reaches 0, so these runs do not show that the loss ranks them"
    return f"{text}, 95 % interval over runs; claim no more than {correlation.low:.2f}"


def _with_ends(correlation: Correlation) -> str:
    if not math.isfinite(correlation.low):
        return f"{correlation.value:.2f}"
    return f"{correlation.value:.2f} ({correlation.low:.2f} to {correlation.high:.2f})"


def _ranking_table(selection: Selection) -> Table:
    rows = [_row(place, item) for place, item in enumerate(selection.ranked, start=1)]
    return [list(_COLUMNS.values()), *[[_cell(row[name]) for name in _COLUMNS] for row in rows]]


def _agreement_table(agreement: Agreement) -> Table:
    table = [["Spearman with the result of", "all runs", "runs", "equal length and batch", "runs"]]
    for name, overall, within in agreement.predictors:
        table.append([name, _correlation_cell(overall), str(overall.runs), _correlation_cell(within), str(within.runs)])
    return table


def _correlation_cell(correlation: Correlation) -> str:
    return _with_ends(correlation) if math.isfinite(correlation.value) else "-"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(table: Table) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def _pipes(table: Table) -> str:
    head, *rows = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table]
    return "\n".join([head, f"|{'---|' * len(table[0])}", *rows])


def _figure(selection: Selection) -> Any:
    alpha = PAPER_ALPHA if selection.config.alpha == "auto" else selection.config.alpha
    points = []
    for item in selection.ranked:
        row, scale = item.row, item.row.lam**alpha
        points.append(RunPoint(row.name, row.total / scale, row.total_sd / scale, row.lam, row.steps))
    label = f"held-out loss / λ^{alpha:g}" if alpha else "held-out loss"
    if not selection.agreements:
        return ranking_figure(points, label)
    return agreement_figure(points, [_panel(agreement, alpha) for agreement in selection.agreements], label)


def _panel(agreement: Agreement, alpha: float) -> Panel:
    """The chart shows one alpha; the correlation with alpha left out stands beside it."""
    named = {name: overall for name, overall, _ in agreement.predictors}
    shown, left_out = named[f"held-out loss, alpha {alpha:g}"], named["held-out loss, alpha of other runs"]
    outcome = agreement.outcome
    title = f"{outcome.title}\nSpearman {_correlation_cell(shown)} at alpha {alpha:g}"
    title += f"\n{_correlation_cell(left_out)} with alpha of other runs"
    return Panel(title, METRICS.get(outcome.metric, outcome.metric), outcome.values)
