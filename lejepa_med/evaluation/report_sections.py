"""The sections of a report that are made from numbers alone."""

from __future__ import annotations

from pathlib import Path

from lejepa_med.config.evaluation import slug
from lejepa_med.evaluation.report_data import DASH, METHODS, NOT_EVALUATED, Benchmark, strata_name
from lejepa_med.evaluation.report_figures import CONTROLS, PANELS, budget_figure, budget_panels, encoder_colours
from lejepa_med.evaluation.report_page import captioned, folded, image, legend, panels, paragraph, plain_table
from lejepa_med.evaluation.report_tables import as_html, difference_table, messages, score_table, seconds
from lejepa_med.evaluation.report_text import (
    method_title,
    missing_paragraph,
    protocol_paragraphs,
    summary_paragraphs,
)
from lejepa_med.training.log import read_log
from lejepa_med.viz.style import save_figure, svg


def summary_section(benchmark: Benchmark, figures: Path) -> str:
    """Who is ahead, where the data cannot tell, and what is missing."""
    del figures
    parts = []
    for task, paragraphs in summary_paragraphs(benchmark):
        parts.append(f"<h3>{paragraph(task)[3:-4]}</h3>")
        parts += [paragraph(text) for text in paragraphs]
    missing = missing_paragraph(benchmark)
    if missing:
        parts.append(paragraph(missing, "absent-note"))
    parts += [paragraph(f"A part failed: {text}", "absent-note") for text in messages(benchmark)]
    for name, found in benchmark.summary["leaks"].items():
        if found != "checked":
            parts.append(paragraph(f"{name}: {found}.", "absent-note"))
    return "\n".join(parts)


def results_section(benchmark: Benchmark, figures: Path) -> str:
    """Per task the figure over budgets and its tables."""
    parts = []
    for task in benchmark.summary["tasks"]:
        parts.append(f"<h3>{paragraph(task)[3:-4]}</h3>")
        save_figure(budget_figure(benchmark, task), figures / f"budgets-{slug(task)}")
        drawn = [
            image(svg(figure), "svg+xml", f"{task}: {METHODS[name]} over label budgets")
            for name, figure in budget_panels(benchmark, task).items()
            if name in benchmark.methods(task)
        ]
        caption = (
            "Score on test patients over the number of labels. Lines: mean over draws of the labels; bands: 95 % "
            "interval over test patients. Dashed: controls."
        )
        parts.append(captioned(_legend(benchmark, task) + panels(drawn, "20rem"), caption))
        for number, method in enumerate(benchmark.methods(task)):
            scores, differences = score_table(benchmark, task, method), difference_table(benchmark, task, method)
            parts.append(as_html(scores, method_title(method), with_note=number == 0))
            if differences is not None:
                caption = f"{method_title(method)}: {benchmark.reference} minus ..."
                parts.append(as_html(differences, caption, with_note=number == 0))
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
    for name, found in benchmark.summary["leaks"].items():
        parts.append(paragraph(f"Leak check of {name}, its pretraining patients against the test patients: {found}."))
    for task, described in benchmark.summary["tasks"].items():
        rows = [
            ["scans", str(described["train_rows"]), str(described["test_rows"])],
            ["patients", str(described["train_patients"]), str(described["test_patients"])],
        ]
        for number, name in enumerate(described["classes"]):
            counts = [str(described[f"{side}_labels"][number]) for side in ("train", "test")]
            rows.append([f"class {name}", *counts])
        parts.append(f"<h3>{paragraph(task)[3:-4]}, {described['kind']}</h3>")
        parts.append(plain_table(["", "training", "test"], rows, numeric=(1, 2)))
        left_out = (
            f"Left out: {described['missing_labels']} rows of the label file without a value, "
            f"{described['unmatched_ids']} that are not in the cache. "
            f"Budgets count per {strata_name(described['kind'])}."
        )
        parts.append(paragraph(left_out, "note"))
    return "\n".join(parts)


def protocol_section(benchmark: Benchmark, figures: Path) -> str:
    """How the numbers were made."""
    del figures
    return "\n".join(paragraph(text) for text in protocol_paragraphs(benchmark))


def costs_section(benchmark: Benchmark, figures: Path) -> str:
    """Seconds of pretraining and of every encoder's cells."""
    del figures
    parts = []
    timing = read_log(benchmark.run, "timing") if benchmark.run is not None else []
    if timing:
        speed = sorted(line["samples_per_s"] for line in timing)[len(timing) // 2]
        wait = sum(line["data_wait"] for line in timing) / len(timing)
        memory = max(line["memory"] for line in timing) / 2**30
        text = (
            f"Pretraining of {benchmark.reference}: {len(timing)} steps, median {speed:.1f} samples per second, "
            f"{wait:.0%} of the time waiting for data, at most {memory:.1f} GiB of memory."
        )
        parts.append(paragraph(text.replace("%", " %")))
    used = [method for method in METHODS if any(cell["method"] == method for cell in benchmark.cells)]
    rows = []
    for encoder in benchmark.config.encoders:
        times = [seconds(benchmark, encoder.name, method) for method in used]
        done = [any((c["encoder"], c["method"]) == (encoder.name, m) for c in benchmark.cells) for m in used]
        rows.append([encoder.name, *(f"{t:,.1f}" if there else DASH for t, there in zip(times, done, strict=True))])
    head = ["seconds", *(METHODS[method] for method in used)]
    parts.append(plain_table(head, rows, numeric=range(1, len(head))))
    note = "Sum over tasks, budgets and seeds. The first frozen cell of an encoder holds the time of its features."
    parts.append(paragraph(note, "note"))
    return "\n".join(parts)


def configs_section(benchmark: Benchmark, figures: Path) -> str:
    """The files that repeat this, as they are."""
    del figures
    parts = [folded("benchmark.yaml", (benchmark.folder / "benchmark.yaml").read_text())]
    for name in ("config.yaml", "spec.yaml"):
        if benchmark.run is not None and (benchmark.run / name).is_file():
            parts.append(folded(f"{name} of the run", (benchmark.run / name).read_text()))
    return "\n".join(parts)


def _legend(benchmark: Benchmark, task: str) -> str:
    colours = encoder_colours(benchmark.config.encoders)
    methods = [method for method in benchmark.methods(task) if method in PANELS]
    entries = []
    for encoder in benchmark.config.encoders:
        statuses = [benchmark.status(task, method, encoder) for method in methods]
        statuses = [status for status in statuses if status != NOT_EVALUATED]
        if not statuses:
            continue
        there = "" in statuses
        name = encoder.name if there else f"{encoder.name} ({statuses[0]})"
        entries.append((name, colours[encoder.name], encoder.kind in CONTROLS, there))
    return legend(entries)
