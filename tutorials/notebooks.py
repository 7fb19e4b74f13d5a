"""Writes `tutorials/notebooks/NAME.ipynb` from each script: `python tutorials/notebooks.py`.

The scripts are the source: they are what is read, edited and tested. The notebooks are kept beside them, without
outputs, so that they open from the repository in Jupyter or Colab; a test says when they are behind. Nothing but the
standard library is needed, since the format (nbformat 4.5) is JSON.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parent
NOTEBOOKS = TUTORIALS / "notebooks"
_MARKER = re.compile(r"^# %%( \[markdown\])?$")


def scripts() -> list[Path]:
    """The tutorials, by number."""
    return sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))


def cells(script: str) -> list[tuple[str, str]]:
    """(`markdown` or `code`, text) of each cell; a Markdown cell without the `# ` of its comments."""
    found: list[tuple[str, list[str]]] = []
    for line in script.splitlines():
        marker = _MARKER.match(line)
        if marker:
            found.append(("markdown" if marker[1] else "code", []))
        elif not found:
            raise ValueError("a tutorial begins with `# %%`")
        elif found[-1][0] == "markdown" and line:
            if not line.startswith("#"):
                raise ValueError(f"a Markdown cell holds code: {line}")
            found[-1][1].append(line.removeprefix("#").removeprefix(" "))
        else:
            found[-1][1].append(line)
    return [(kind, "\n".join(lines).strip("\n")) for kind, lines in found]


def notebook(script: str) -> dict[str, Any]:
    """The notebook of a script, as nbformat 4.5 has it."""
    content = []
    for number, (kind, text) in enumerate(cells(script)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell |= {"execution_count": None, "outputs": []} if kind == "code" else {}
        content.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": content, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def write_all(folder: Path) -> list[Path]:
    """The files that were written."""
    folder.mkdir(exist_ok=True)
    written = []
    for script in scripts():
        file = folder / f"{script.stem}.ipynb"
        text = json.dumps(notebook(script.read_text(encoding="utf-8")), indent=1, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
        written.append(file)
    return written


if __name__ == "__main__":
    print(*write_all(NOTEBOOKS), sep="\n")
