"""The sections of a report that are made from numbers alone."""

from __future__ import annotations

from pathlib import Path

from lejepa_med.config.evaluation import slug
from lejepa_med.evaluation.report_comparisons import area_difference_table, area_table, rival_table
from lejepa_med.evaluation.report_data import NOT_EVALUATED, Benchmark, Row, without_paths
from lejepa_med.evaluation.report_figures import budget_figure, budget_panels, looks_of
from lejepa_med.evaluation.report_formats import as_html
from lejepa_med.evaluation.report_names import METHODS, method_title, strata_name
from lejepa_med.evaluation.report_page import (
    bullets,
    captioned,
    folded,
    heading,
    image,
    legend,
    panels,
    paragraph,
    plain_table,
    unfolding,
)
from lejepa_med.evaluation.report_protocol import protocol_paragraphs
from lejepa_med.evaluation.report_summary import (
    arms_paragraph,
    cautions,
    contest_items,
    rival_paragraph,
    single_budgets,
    summary_paragraphs,
)
from lejepa_med.evaluation.report_tables import difference_table, metrics_table, score_table
from lejepa_med.evaluation.report_text import duplicate_sentence, listing, method_paragraph, quoted
from lejepa_med.viz.lines import key_of
from lejepa_med.viz.style import save_figure, svg

_SPLITS = {
    "holdout": "by a hash of the patient", "official": "the official one of the label file",
    "holdout by site": "by site: test patients are of sites that train nothing",
}  # fmt: skip
_UNITS = {"study": "studies", "patient": "patients", "series": "scans"}


def summary_section(benchmark: Benchmark, figures: Path) -> str:
    """Who is ahead, where the data cannot tell, and what to be careful with."""
    del figures
    parts = [paragraph(benchmark.config.remark, "absent-note")] if benchmark.config.remark else []
    parts += [paragraph(text) for text in (arms_paragraph(benchmark), rival_paragraph(benchmark))]
    items, budgets = contest_items(benchmark), single_budgets(benchmark)
    parts += [bullets(items), paragraph(budgets)] if items else []
    parts += [paragraph(text, "absent-note") for text in cautions(benchmark)]
    parts += [paragraph(f"A part failed: {text}", "absent-note") for text in _failures(benchmark)]
    for task, paragraphs in summary_paragraphs(benchmark):
        parts.append(heading(task))
        parts += [paragraph(text) for text in paragraphs]
    return "\n".join(parts)


def results_section(benchmark: Benchmark, figures: Path) -> str:
    """Per task the figure over budgets, the comparison with the strongest rival, and the tables of every method."""
    parts = []
    for task in benchmark.summary["tasks"]:
        parts += [heading(task), _budgets(benchmark, task, figures)]
        rival = rival_table(benchmark, task)
        if rival is not None:
            parts.append(as_html(rival, rival.title.partition(": ")[2]))
        area, differences = area_table(benchmark, task), area_difference_table(benchmark, task)
        if area is not None:
            parts.append(as_html(area, "Area under the budget curve"))
        if differences is not None:
            parts.append(as_html(differences, f"Area: {benchmark.reference} minus ..."))
        shown = benchmark.headline_methods(task)
        parts += [_method_tables(benchmark, task, method) for method in shown]
        for method in [method for method in benchmark.methods(task) if method not in shown]:
            said = paragraph(method_paragraph(benchmark, task, method))
            parts.append(unfolding(method_title(method), said + _method_tables(benchmark, task, method)))
    return "\n".join(parts)


def data_section(benchmark: Benchmark, figures: Path) -> str:
    """What was counted: scans, patients, labels, and what pretraining has seen."""
    del figures
    parts = []
    pretraining = benchmark.pretraining()
    if pretraining is not None:
        volumes, patients = pretraining
        text = f"{benchmark.reference} was pretrained, without labels, on {volumes} scans of {patients} patients."
        parts.append(paragraph(text))
    leaks = benchmark.summary["leaks"]
    if leaks:
        said = [
            f"{listing([quoted(n) for n in leaks if leaks[n] == found])}: {found}"
            for found in sorted({*leaks.values()})
        ]
        parts.append(paragraph(f"Leak check, pretraining patients against test patients. {'; '.join(said)}."))
    if benchmark.summary.get("duplicates"):
        parts.append(paragraph(duplicate_sentence(benchmark.summary["duplicates"])))
    for task, described in benchmark.summary["tasks"].items():
        parts.append(heading(f"{task}, {described['kind']}"))
        parts.append(plain_table(["", "training", "test"], _counts(described), numeric=(1, 2)))
        parts.append(paragraph(_remarks(benchmark, task, described), "note"))
    return "\n".join(parts)


def protocol_section(benchmark: Benchmark, figures: Path) -> str:
    """How the numbers were made."""
    del figures
    return "\n".join(paragraph(text) for text in protocol_paragraphs(benchmark))


def configs_section(benchmark: Benchmark, figures: Path) -> str:
    """The files that repeat this, as they are."""
    del figures
    parts = [folded("benchmark.yaml", (benchmark.folder / "benchmark.yaml").read_text())]
    for name in ("config.yaml", "spec.yaml"):
        if benchmark.run is not None and (benchmark.run / name).is_file():
            parts.append(folded(f"{name} of the run", (benchmark.run / name).read_text()))
    return "\n".join(parts)


def _budgets(benchmark: Benchmark, task: str, figures: Path) -> str:
    """The figure of a task: for the page panel by panel, as a file in one."""
    save_figure(budget_figure(benchmark, task), figures / f"budgets-{slug(task)}")
    drawn = [
        image(svg(figure), "svg+xml", f"{task}: {METHODS[name]} over label budgets")
        for name, figure in budget_panels(benchmark, task).items()
    ]
    caption = (
        "Score on test patients over the number of labels. Lines: mean over draws of the labels (and over repeats of "
        "an arm); bands: 95 % interval over test patients, these draws and repeats. Thick: ours; thin: rivals; dashed: "
        "controls. "
        "All labels stand at their mean number, moved right where they would touch the budget before them."
    )
    return captioned(_legend(benchmark, task) + panels(drawn, "20rem"), caption)


def _method_tables(benchmark: Benchmark, task: str, method: str) -> str:
    """Scores, differences and further metrics, as the page captions them."""
    title = method_title(method)
    scores, differences = score_table(benchmark, task, method), difference_table(benchmark, task, method)
    metrics = metrics_table(benchmark, task, method)
    captions = (title, f"{title}: {benchmark.reference} minus ...", f"{title}: all metrics")
    found = zip((scores, differences, metrics), captions, strict=True)
    return "\n".join(as_html(table, caption) for table, caption in found if table is not None)


def _counts(described: Row) -> list[list[str]]:
    unit = _UNITS[described.get("unit", "series")]
    rows = [
        [what, *(str(described[f"{side}_{name}"]) for side in ("train", "test"))]
        for what, name in ((unit, "rows"), ("patients", "patients"))
    ]
    if unit == "patients":
        rows = rows[:1]
    name_of = {"multilabel": "with", "ordinal": "level"}.get(described["kind"], "class")
    for number, name in enumerate(described["classes"] if "train_labels" in described else ()):
        counts = [str(described[f"{side}_labels"][number]) for side in ("train", "test")]
        if "train_known" in described:
            known = [described[f"{side}_known"][number] for side in ("train", "test")]
            counts = [f"{count} of {of}" for count, of in zip(counts, known, strict=True)]
        rows.append([f"{name_of} {name}", *counts])
    return rows


def _remarks(benchmark: Benchmark, task: str, described: Row) -> str:
    """Sample, split, what was left out and why, and whether patients are known."""
    said = []
    if described.get("unit", "series") != "series":
        said.append(
            f"A sample is a {described['unit']}: features are averaged over all its labelled series "
            f"({described['series']} in all)."
        )
    said.append(f"Split: {_SPLITS.get(described.get('split', 'holdout'), described.get('split'))}.")
    if described.get("set_aside"):
        said.append(f"{described['set_aside']} samples are on neither side.")
    said.append(
        f"Left out: {described['missing_labels']} rows of the label file without a value, {described['unmatched_ids']} "
        f"that are not in the cache. Budgets count per {strata_name(described['kind'])}."
    )
    said += _left_out(described)
    unknown = benchmark.unknown_patients(task)
    if unknown is None:
        said.append("The config names no index that is there, so nothing is said about scans without a patient id.")
    elif not unknown:
        said.append("The patient id of every test scan is known.")
    return " ".join(said)


def _left_out(described: Row) -> list[str]:
    """Budgets that do not fit, each with its reason; methods for other kinds of task in one sentence."""
    texts = described.get("left_out", ())
    methods = [method for method in METHODS if any(text.startswith(f"{method}: ") for text in texts)]
    said = [f"Not evaluated: {text}." for text in texts if text.partition(": ")[0] not in METHODS]
    return [*said, f"Not evaluated: {', '.join(methods)}, not for such a task."] if methods else said


def _failures(benchmark: Benchmark) -> list[str]:
    """What went wrong and in how many cells, without paths; missing weights are said elsewhere."""
    failed = [cell for cell in benchmark.cells if cell["status"] == "failed"]
    said = []
    for message in sorted({cell["message"] for cell in failed}):
        own = [cell for cell in failed if cell["message"] == message]
        names = ", ".join(sorted({cell["encoder"] for cell in own}))
        said.append(f"{without_paths(message)} ({len(own)} of {len(benchmark.cells)} cells; {names})")
    return said


def _legend(benchmark: Benchmark, task: str) -> str:
    looks = looks_of(benchmark)
    entries = []
    for encoder in benchmark.encoders:
        statuses = [benchmark.status(task, method, encoder) for method in benchmark.methods(task)]
        statuses = [status for status in statuses if status != NOT_EVALUATED]
        if statuses:
            there = "" in statuses
            name = encoder.name if there else f"{encoder.name} ({statuses[0]})"
            entries.append((name, key_of(looks[encoder.name]), there))
    return legend(entries)
