"""Pages made from files of the repository outside docs/: README and its like, configs, recipes, tutorials."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tutorials"))
import notebooks  # noqa: E402  cells of a tutorial

ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "source/contributing.md",
    "SECURITY.md": "source/reporting.md",
    "CODE_OF_CONDUCT.md": "source/conduct.md",
    "configs/README.md": "source/configs.md",
    "docker/README.md": "source/docker.md",
}
_LANGUAGES = {".yaml": "yaml", ".py": "python", ".sh": "bash"}
_LINK = re.compile(r"""(?P<before>\]\(|\bsrc="|\bhref=")(?P<path>[^)#"\s:]+)(?P<after>[#)"])""")


def tutorial_pages() -> dict[str, str]:
    """Each tutorial as it reads in a notebook."""
    made = {}
    for script in notebooks.scripts():
        cells = notebooks.cells(script.read_text(encoding="utf-8"))
        parts = [text if kind == "markdown" else f"````python\n{text}\n````" for kind, text in cells]
        name = f"tutorials/{script.name}"
        parts.insert(1, f"Run it: `python {name}`, or open `tutorials/notebooks/{script.stem}.ipynb`.")
        made[f"tutorials/{script.stem}.md"] = "\n\n".join(parts) + "\n"
    return made


def source_pages() -> dict[str, str]:
    """Each shipped config and recipe as a page, and one that lists them."""
    files = [f for folder in ("configs", "docker") for f in sorted((ROOT / folder).rglob("*"))]
    files = [f for f in files if f.is_file() and f.suffix != ".md" and "__pycache__" not in f.parts]
    names = [f.relative_to(ROOT).as_posix() for f in [*files, ROOT / "LICENSE", ROOT / "CITATION.cff"]]
    index = "\n".join(f"- [`{name}`]({name.removeprefix('source/')}.md)" for name in names)
    made = {"source/index.md": f"# Shipped configs and recipes\n\nAs they lie in the repository.\n\n{index}\n"}
    for name in names:
        language = _LANGUAGES.get(Path(name).suffix, "text")
        content = (ROOT / name).read_text(encoding="utf-8")
        made[f"source/{name}.md"] = f"# `{name}`\n\n````{language}\n{content.rstrip()}\n````\n"
    return made


def rewritten(markdown: str, page: str) -> str:
    """Links as the site needs them: those to files outside docs/ lead to their pages."""
    origin = {place: file for file, place in ROOT_PAGES.items()}.get(page)
    if origin is None and page.startswith(("reference/", "source/")):
        return markdown
    folder = posixpath.dirname(origin if origin is not None else f"docs/{page}")

    def replaced(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match["path"]))
        place = _place(target)
        relative = posixpath.relpath(place, posixpath.dirname(page) or ".") if place else match["path"]
        return match["before"] + relative + match["after"]

    return _LINK.sub(replaced, markdown)


def _place(target: str) -> str | None:
    """Where in the site a file of the repository is; None leaves the link as it is, and MkDocs complains of it."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target in ROOT_PAGES:
        return ROOT_PAGES[target]
    path = ROOT / target
    if target.split("/")[0] == "tutorials":
        return f"tutorials/{path.stem if path.suffix == '.py' else '01_first_backbone'}.md"
    if target.split("/")[0] in ("configs", "docker") and path.is_dir():
        return "source/index.md"
    return f"source/{target}.md" if path.is_file() else None
