"""The pages of the site that nobody writes by hand, and the links that leave docs/. A hook of MkDocs (mkdocs.yml).

index.md, changelog.md ...      README.md, CHANGELOG.md and the other pages of the repository's root
reference/config/KIND.md        the fields of every config kind, from the pydantic models
reference/cli.md                every verb, from argparse
reference/python/MODULE.md      every name in an `__all__`, which mkdocstrings fills in
source/...                      the files in configs/ and docker/, as they are
tutorials/NAME.md               the tutorials, as they read in a notebook
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lejepa_med import config as configs
from lejepa_med.cli.main import parser

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))
from repository_pages import ROOT_PAGES, rewritten, source_pages, tutorial_pages  # noqa: E402  MkDocs loads a lone file

KINDS: dict[str, type[BaseModel]] = {
    "index": configs.IndexSettings,
    "prepare": configs.PrepareConfig,
    "plan": configs.PlanConfig,
    "pretrain": configs.PretrainConfig,
    "probe": configs.ProbeConfig,
    "finetune": configs.FinetuneConfig,
    "benchmark": configs.BenchmarkConfig,
    "select": configs.SelectConfig,
}
BEHIND_THE_VERBS = {
    "lejepa_med.data.index.archive": ("index",),
    "lejepa_med.data.converting": ("convert",),
    "lejepa_med.data.preparing": ("prepare",),
    "lejepa_med.evaluation.benchmark": ("run_benchmark",),
    "lejepa_med.evaluation.report": ("write_report",),
    "lejepa_med.errors": ("UserError", "ConfigError", "DataError", "WeightsError", "OutputExistsError"),
}
"""Functions and errors that users call or catch, in modules without an `__all__`."""


@cache
def pages() -> dict[str, str]:
    """Every generated page: its place in the site, and its Markdown."""
    made = {page: (ROOT / file).read_text(encoding="utf-8") for file, page in ROOT_PAGES.items()}
    made |= {f"reference/config/{kind}.md": config_page(kind) for kind in KINDS}
    made["reference/cli.md"] = cli_page()
    made |= {f"reference/python/{name}.md": python_page(name) for name in public_modules()}
    made["reference/python/behind_the_verbs.md"] = verbs_page()
    made |= source_pages() | tutorial_pages()
    return made


# --- config models


def config_page(kind: str) -> str:
    """Every field of a config kind with its type, default and description, one table per section of the file."""
    model = KINDS[kind]
    lines = [f"# Config fields: `{kind}`", "", f"`lejepa-med config {kind}` prints the same as YAML. "]
    lines += [f"In Python: `lejepa_med.config.{model.__name__}`. Every file also takes `version`.", ""]
    for path, section in sections(model):
        lines += [f"## `{path}`" if path else "## Top level", "", *_summary(section, bool(path))]
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(name, field, path) for name, field in section.model_fields.items()] + [""]
    return "\n".join(lines)


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A model and those inside it, each with its place; items of lists and of unions say which kind they are."""
    yield path, model
    for name, field in model.model_fields.items():
        nested = models_in(field.annotation)
        inner = f"{path}.{name}".lstrip(".")
        for item in nested:
            tags = get_args(item.model_fields["kind"].annotation) if "kind" in item.model_fields else ()
            tag = f" (kind: {', '.join(tags)})" if len(nested) > 1 and tags else ""
            many = ".0" if get_origin(field.annotation) in (tuple, list) else ".KEY" if _is_map(field) else ""
            yield from sections(item, f"{inner}{many}{tag}")


def _is_map(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is dict


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def _summary(section: type[BaseModel], nested: bool) -> list[str]:
    own = section.__doc__ if section.__doc__ and nested else None
    return [" ".join(own.split()), ""] if own else []


def _row(name: str, field: FieldInfo, path: str) -> str:
    default = _default(field) or f"[below](#{_anchor(f'{path}.{name}')})"
    cells = [f"`{name}`", type_text(field.annotation, field.metadata), default, field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _anchor(path: str) -> str:
    return re.sub(r"[^\w-]", "", path)


def _default(field: FieldInfo) -> str:
    """The default in the words of a YAML file; empty for a section with its own table."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if isinstance(value, BaseModel) and type(value).model_fields else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(_plain(item) for item in value)}]"
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    return str(value) or '""'


def type_text(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type in the words of a YAML file, with its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    bounds = [f"{sign} {getattr(item, name)}" for item in metadata for name, sign in _SIGNS if hasattr(item, name)]
    suffix = f", {', '.join(bounds)}" if bounds else ""
    if origin is Annotated:
        return type_text(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return " or ".join(f"`{_plain(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(argument) for argument in arguments)) + suffix
    if origin in (tuple, list):
        return f"list of {_items(arguments)}{suffix}"
    if origin is dict:
        return f"map of {type_text(arguments[0])} to {type_text(arguments[1])}"
    return _NAMES.get(annotation, "section") + suffix


def _items(arguments: tuple[Any, ...]) -> str:
    kept = [argument for argument in arguments if argument is not Ellipsis]
    count = f"{len(kept)} times " if len(kept) > 1 else ""
    return count + type_text(kept[0]) if kept else "anything"


_SIGNS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
_NAMES = {
    int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", type(None): "`null`",
    Any: "anything",
}  # fmt: skip


# --- command line


def cli_page() -> str:
    """Every verb with its arguments, from argparse."""
    verbs = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    lines = [
        "# Command line",
        "",
        "Exit codes: 0 done; 1 `doctor` or `plan` found the main job impossible; 2 a mistake ",
    ]
    lines += ["of yours, in one sentence; 130 interrupted. `key.path=value` changes a setting of the verbs with a "]
    lines += ["config ([configuration](../configuration.md)).", ""]
    for name, verb in verbs.choices.items():
        usage = " ".join(verb.format_usage().removeprefix("usage: ").split())
        lines += [f"## {name}", "", f"{verb.description}.", "", f"`{usage}`", "", "| argument | meaning |", "|---|---|"]
        lines += [_argument(action) for action in verb._actions if action.dest != "help"] + [""]
    return "\n".join(lines)


def _argument(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest).upper()
    choices = f" One of {', '.join(f'`{choice}`' for choice in action.choices)}." if action.choices else ""
    needed = " Required." if action.required and action.option_strings else ""
    meaning = f"{action.help or ''}{choices}{needed}".strip().replace("|", "\\|")
    return f"| `{name}` | {meaning[:1].upper() + meaning[1:]} |"


# --- Python


@cache
def public_modules() -> dict[str, list[str]]:
    """Modules with an `__all__`, and the names in it."""
    found = {}
    for file in sorted((ROOT / "lejepa_med").rglob("*.py")):
        names = public_names(file)
        if names:
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = names
    return found


def public_names(file: Path) -> list[str]:
    """The names in the `__all__` of a file, read and not run."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return [str(name) for name in ast.literal_eval(node.value)]  # type: ignore[attr-defined]
    return []


def python_page(module: str) -> str:
    """One entry for each public name of a module; mkdocstrings puts signature and docstring there."""
    file = ROOT / Path(*module.split("."))
    source = (file / "__init__.py") if file.is_dir() else file.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    lines = [f"# {module}", "", text, ""]
    if module == "lejepa_med.config":
        lines += ["Fields of the models: [config fields](../config/pretrain.md) and its neighbours.", ""]
    return "\n".join(lines + [line for name in public_modules()[module] for line in _entry(f"{module}.{name}")])


def verbs_page() -> str:
    """What the verbs call, and the errors they turn into a sentence."""
    lines = ["# Functions behind the verbs, and errors", ""]
    for module, names in BEHIND_THE_VERBS.items():
        lines += [line for name in names for line in _entry(f"{module}.{name}")]
    return "\n".join(lines)


def _entry(name: str) -> list[str]:
    members = ["    options:", "      members: false"] if name.startswith("lejepa_med.config.") else []
    return [f"::: {name}", *members, ""]


# --- MkDocs


def on_config(config: Any) -> Any:
    """Entries of the navigation that end in a slash become the generated pages below it."""
    made = pages()

    def expanded(entries: list[Any]) -> list[Any]:
        return [{name: _below(value) for name, value in entry.items()} for entry in entries]

    def _below(value: Any) -> Any:
        if isinstance(value, list):
            return expanded(value)
        if not value.endswith("/"):
            return value
        below = [page for page in made if page.startswith(value)]
        named = value != "tutorials/"  # those have a title of their own
        return [{page.removeprefix(value).removesuffix(".md"): page} if named else page for page in below]

    config.nav = expanded(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages."""
    from mkdocs.structure.files import File

    for place, markdown in pages().items():
        files.append(File.generated(config, place, content=markdown))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mends the links of one page."""
    return rewritten(markdown, page.file.src_uri)
