"""`select`: runs ranked by their held-out loss."""

from __future__ import annotations

import argparse
from typing import Any

from lejepa_med.cli.progress import ProgressLine
from lejepa_med.config import SelectConfig, load_config
from lejepa_med.errors import OutputExistsError
from lejepa_med.evaluation import selection_pages as pages
from lejepa_med.evaluation.selection import select_runs


def select(options: argparse.Namespace) -> dict[str, Any]:
    """The ranking, and with probe results how well the loss predicts them; files only where `--out` names a folder."""
    config = load_config(SelectConfig, options.config, options.overrides)
    if options.out is not None and (options.out / "selection.json").exists():
        raise OutputExistsError(f"{options.out}: already holds a selection.json; choose another --out")
    selection = select_runs(options.runs, config, options.results, ProgressLine())
    if options.out is not None:
        pages.write_selection(selection, options.out)
    if options.json:
        return pages.as_json(selection)
    written = f"\n\nwritten: {options.out / 'selection.md'}" if options.out is not None else ""
    return {"text": pages.plain_text(selection) + written}
