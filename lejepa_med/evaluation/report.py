"""The report of a benchmark: one page for people, the numbers for papers and scripts.

    OUT/report.html     self-contained: text, tables, curves, pictures, configs
    OUT/results.md  results.tex
    OUT/results.csv  areas.csv  costs.csv
    OUT/figures/*.png  *.svg

Keys of series and patients stay out of it, and so do paths, except in the configs as the user wrote them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lejepa_med.data.cache import write_atomically
from lejepa_med.evaluation import report_page as html_page
from lejepa_med.evaluation.report_answers import answers_section
from lejepa_med.evaluation.report_comparisons import tables
from lejepa_med.evaluation.report_costs import costs_csv, costs_section
from lejepa_med.evaluation.report_csv import areas_csv, results_csv
from lejepa_med.evaluation.report_data import Benchmark
from lejepa_med.evaluation.report_formats import as_latex, as_markdown
from lejepa_med.evaluation.report_pictures import curves_section, neighbours_section, tokens_section, views_section
from lejepa_med.evaluation.report_sections import (
    configs_section,
    data_section,
    protocol_section,
    results_section,
    summary_section,
)
from lejepa_med.evaluation.report_text import counted, listing

Progress = Callable[[str, int, int], None]
Section = Callable[[Benchmark, Path], str]
_SECTIONS: tuple[tuple[str, Section], ...] = (
    ("Summary", summary_section),
    ("Results", results_section),
    ("Errors and calibration", answers_section),
    ("Pretraining", curves_section),
    ("Views", views_section),
    ("Patch tokens", tokens_section),
    ("Nearest neighbours", neighbours_section),
    ("Data", data_section),
    ("Protocol", protocol_section),
    ("Costs", costs_section),
    ("Configs", configs_section),
)


def write_report(benchmark: Path, out: Path, progress: Progress | None = None) -> Path:
    """Writes the report of a finished benchmark folder into `out`; returns the page.

    Pictures need the run and the cache that the benchmark's config names; where they are gone, the page says so.

    Raises:
        DataError: the folder holds no finished benchmark.
    """
    opened = Benchmark.open(benchmark)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    all_tables = tables(opened)
    for name, made in (("results", results_csv), ("areas", areas_csv), ("costs", costs_csv)):
        write_atomically(out / f"{name}.csv", made(opened).encode())
    write_atomically(out / "results.md", as_markdown(all_tables, opened.config.remark).encode())
    write_atomically(out / "results.tex", as_latex(all_tables).encode())
    sections = []
    for done, (title, section) in enumerate(_SECTIONS):
        content = section(opened, figures)
        if content:
            sections.append((title, content))
        if progress is not None:
            progress(f"report, {title.lower()}", done + 1, len(_SECTIONS))
    tasks = listing(list(opened.summary["tasks"]))
    title = f"{opened.reference or 'Benchmark'} on {tasks}"
    lead = f"{counted(len(opened.encoders), 'arm')}, {counted(len(opened.cells), 'cell')}, tested on held-out patients."
    page = out / "report.html"
    write_atomically(page, html_page.page(title, lead, sections).encode())
    return page
