"""The site: generated pages name all that is public, every page is in the navigation, every link leads somewhere."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import check_offline
import generate
import pytest
import yaml
from pydantic import BaseModel

from lejepa_med.cli.main import parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = generate.pages()


def written_pages() -> dict[str, str]:
    """The pages of docs/, and the generated ones, as the site gets them."""
    own = {file.relative_to(DOCS).as_posix(): file.read_text(encoding="utf-8") for file in DOCS.rglob("*.md")}
    return {place: generate.rewritten(text, place) for place, text in (own | PAGES).items()}


def test_every_public_name_has_its_entry() -> None:
    modules = generate.public_modules()
    assert {"lejepa_med", "lejepa_med.objective", "lejepa_med.config", "lejepa_med.weights"} <= set(modules)
    assert modules["lejepa_med"] == ["__version__", "embed", "load_backbone", "pretrain"]
    for module, names in modules.items():
        page = PAGES[f"reference/python/{module}.md"]
        assert re.findall(r"^::: (.+)$", page, re.M) == [f"{module}.{name}" for name in names]


def test_no_module_hides_its_public_names() -> None:
    """Also an `__all__` that is annotated or built would have to be found."""
    holders = [f for f in (ROOT / "lejepa_med").rglob("*.py") if re.search(r"^__all__", f.read_text(), re.M)]
    assert holders and all(generate.public_names(file) for file in holders)


def test_entries_beside_all_exist() -> None:
    import importlib

    for module, names in generate.BEHIND_THE_VERBS.items():
        assert all(hasattr(importlib.import_module(module), name) for name in names)


def test_every_verb_and_option_is_on_the_page_of_the_command_line() -> None:
    page = PAGES["reference/cli.md"]
    verbs = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert re.findall(r"^## (\w+)$", page, re.M) == list(verbs)
    for verb, sub in verbs.items():  # type: ignore[union-attr]
        section = page.split(f"\n## {verb}\n")[1].split("\n## ")[0]
        options = [option for action in sub._actions for option in action.option_strings if action.dest != "help"]
        assert all(f"`{option}`" in section for option in options)


def fields(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str]]:
    """Every field at every depth, found without the generator's own walk."""
    for name, definition in model.model_json_schema().get("$defs", {}).items():
        found = next((m for m in _all_models() if m.__name__ == name), None)
        if found is not None and "properties" in definition:
            yield from ((found, field) for field in found.model_fields)
    yield from ((model, field) for field in model.model_fields)


def _all_models() -> Iterator[type[BaseModel]]:
    waiting = [BaseModel]
    while waiting:
        model = waiting.pop()
        yield model
        waiting += model.__subclasses__()


@pytest.mark.parametrize("kind", generate.KINDS)
def test_every_config_field_is_on_its_page_with_its_meaning(kind: str) -> None:
    page = PAGES[f"reference/config/{kind}.md"]
    found = list(fields(generate.KINDS[kind]))
    assert len(found) > 3
    for model, name in found:
        description = model.model_fields[name].description or ""
        cell = description.replace("|", "\\|").replace("\n", " ")
        assert re.search(rf"^\| `{name}` \| .* \| {re.escape(cell)} \|$", page, re.M), (model.__name__, name)


def test_every_kind_of_config_has_a_page() -> None:
    kinds = parser()._subparsers._group_actions[0].choices["config"]._actions  # type: ignore[union-attr, call-overload, index]
    assert set(next(action.choices for action in kinds if action.dest == "kind")) == set(generate.KINDS)


def test_types_are_readable() -> None:
    texts = [cell for page in generate.KINDS for cell in PAGES[f"reference/config/{page}.md"].splitlines()]
    assert not [text for text in texts if re.search(r"<class|typing\.|NoneType|Annotated|PosixPath", text)]


def nav_pages(entries: object) -> Iterator[str]:
    """The places that mkdocs.yml names."""
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, list):
        for entry in entries:
            yield from nav_pages(entry)
    elif isinstance(entries, dict):
        yield from nav_pages(list(entries.values()))


def test_every_page_is_in_the_navigation() -> None:
    named = list(nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert len(named) == len(set(named))
    folders = tuple(place for place in named if place.endswith("/"))
    listed = {place for place in named if not place.endswith("/")} | {p for p in PAGES if p.startswith(folders)}
    assert listed == set(written_pages()), "list it in mkdocs.yml"


LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")


def anchors(markdown: str) -> set[str]:
    """The anchors of a page's headings, as MkDocs makes them; headings of the same text are numbered."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", re.sub(r"^(`{3,}).*?^\1", "", markdown, flags=re.M | re.S), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        ascii_text = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        slug = base = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_text).strip().lower())
        number = 0
        while slug in found:
            number += 1
            slug = f"{base}_{number}"
        found.add(slug)
    return found


def test_links_lead_somewhere() -> None:
    pages = written_pages()
    broken, checked = [], 0
    for place, text in pages.items():
        prose = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.M | re.S)
        for link in LINK.findall(prose):
            path, _, anchor = link.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(place), path)) if path else place
            checked += 1
            if target in pages:
                if anchor and anchor not in anchors(pages[target]):
                    broken.append(f"{place}: {link}")
            elif not (DOCS / target).is_file():
                broken.append(f"{place}: {link}")
    assert not broken and checked > 150


def test_links_out_of_docs_get_pages_of_their_own() -> None:
    assert generate.rewritten("[c](../configs/benchmark/example.yaml)", "results.md") == (
        "[c](source/configs/benchmark/example.yaml.md)"
    )
    assert generate.rewritten("[t](tutorials) [p](docs/plan.md#logs)", "index.md") == (
        "[t](tutorials/01_first_backbone.md) [p](plan.md#logs)"
    )
    assert generate.rewritten("[x](no_such_file.md)", "index.md") == "[x](no_such_file.md)"
    assert "configs/benchmark/example.yaml" in PAGES["source/index.md"]
    assert "python tutorials/09_medmnist3d.py" in PAGES["tutorials/09_medmnist3d.md"]


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/a.js">', '<img alt="" src="//cdn.example/a.png">',
        '<link rel="stylesheet" href="https://cdn.example/a.css">', "a { background: url(https://cdn.example/a.png) }",
        "@import 'https://cdn.example/a.css';",
    ],
)  # fmt: skip
def test_what_is_fetched_is_seen(text: str, tmp_path: Path) -> None:
    assert check_offline.fetched(text)
    (tmp_path / "page.html").write_text(text)
    assert check_offline.main(tmp_path) == 1


def test_links_to_read_are_no_fetches(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<a href="https://arxiv.org/abs/2511.08544">paper</a><img src="a.png">')
    assert check_offline.main(tmp_path) == 0
    assert check_offline.main(tmp_path / "nothing") == 2
