"""YAML files and `key.path=value` overrides to frozen settings, with every mistake named at once.

Numbers stay lax: PyYAML reads `1e-3` as a string, and so do overrides.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from lejepa_med.errors import ConfigError
from lejepa_med.spec import Frozen

CONFIG_VERSION = 1
ConfigT = TypeVar("ConfigT", bound=Frozen)


def load_config(kind: type[ConfigT], file: Path | None = None, overrides: Sequence[str] = ()) -> ConfigT:
    """The settings of `kind` from a YAML file, with overrides such as `train.steps=100` applied after it.

    Raises:
        ConfigError: the file cannot be read, is from a newer version, or any key or value is wrong (all are named).
    """
    values = read_yaml(file) if file is not None else {}
    name = str(file) if file is not None else "overrides"
    for override in overrides:
        set_path(values, override)
    return validate(kind, values, name)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError where there is none."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config {file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {file}: cannot be read ({type(error).__name__})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"config {file}: not valid YAML{where}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config {file}: expected `key: value` lines at the top level, got a {type(values).__name__}")
    return values


def set_path(values: dict[str, Any], override: str) -> None:
    """Puts one `key.path=value` into nested settings; the value is read as YAML, list items by their number."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"override `{override}`: expected key.path=value")
    *parents, last = key.split(".")
    node: Any = values
    for parent, child in zip(parents, key.split(".")[1:], strict=True):
        if isinstance(node, list):
            node = node[_position(node, parent, override)]
        else:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
        if not isinstance(node, dict | list):
            raise ConfigError(f"override `{override}`: `{parent}` is a single value and holds no `{child}`")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    else:
        node[last] = value


def _position(items: list[Any], part: str, override: str) -> int:
    if not (part.isdigit() and int(part) < len(items)):
        raise ConfigError(f"override `{override}`: `{part}` is no item of a list of {len(items)}; the first is 0")
    return int(part)


def validate(kind: type[ConfigT], values: Mapping[str, Any], name: str) -> ConfigT:
    """Settings from nested values; `name` says in messages where they came from."""
    version = values.get("version", CONFIG_VERSION)
    if str(version).isdigit() and int(version) > CONFIG_VERSION:
        raise ConfigError(
            f"config {name}: version {version} is newer than this lejepa-med reads (up to {CONFIG_VERSION}); "
            "upgrade lejepa-med"
        )
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"config {name}: {'; '.join(_problems(kind, values, error))}") from None


def _problems(kind: type[BaseModel], values: Mapping[str, Any], error: ValidationError) -> list[str]:
    """Every mistake in words; the alternatives of one value (`auto` or a number) are joined."""
    found: dict[str, list[str]] = {}
    got: dict[str, str] = {}
    unknown: dict[str, list[str]] = {}  # the keys of one hint, which may be long, are named together
    for item in error.errors():
        where = ".".join(_user_path(values, item["loc"], item["type"] in ("missing", "extra_forbidden")))
        start = f"`{where}`" if where else ""
        if item["type"] == "extra_forbidden":
            hint = _hint(kind, [str(part) for part in item["loc"]])
            unknown.setdefault(hint, []).append(start)
        elif item["type"] == "missing" and isinstance(item["loc"][-1], int):
            found.setdefault(f"`{where.rpartition('.')[0]}` has too few values, got {item['input']!r}", [])
        elif item["type"] == "missing":
            found.setdefault(f"{start} is required", [])
        else:
            message = item["msg"].removeprefix("Value error, ")
            found.setdefault(start, []).append(message[0].lower() + message[1:])
            if not isinstance(item["input"], dict | list):  # a whole section says nothing about the mistake in it
                got[start] = f", got {item['input']!r}"
    strange = [f"unknown key{'s' * (len(keys) > 1)} {', '.join(keys)}; {hint}" for hint, keys in unknown.items()]
    return strange + [
        f"{start}{': ' if start and messages else ''}{' or '.join(messages)}{got.get(start, '')}"
        for start, messages in found.items()
    ]


def _user_path(values: Any, location: Sequence[int | str], keep_last: bool) -> Iterator[str]:
    """The part of pydantic's location that the user wrote, without tags of unions."""
    for number, part in enumerate(location):
        inside = part in values if isinstance(values, Mapping) else _has_item(values, part)
        if inside:
            values = values[part]
        if inside or (keep_last and number == len(location) - 1):
            yield str(part)


def _has_item(values: Any, part: int | str) -> bool:
    """A list that is too short has no such item; then the setting itself is named."""
    return isinstance(values, list) and isinstance(part, int) and part < len(values)


def _hint(kind: type[BaseModel], location: Sequence[str]) -> str:
    legal = _legal_keys(kind, location[:-1])
    near = difflib.get_close_matches(location[-1], legal, n=1)
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(legal)}"


def _legal_keys(kind: type[BaseModel], location: Sequence[str]) -> list[str]:
    models: list[type[BaseModel]] = [kind]
    for part in location:
        nested = [
            m for model in models if part in model.model_fields for m in _models(model.model_fields[part].annotation)
        ]
        tagged = [m for m in models if part in _tags(m)]
        models = nested or tagged or models
    return sorted({key for model in models for key in model.model_fields})


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict, typing.Annotated):
        return [model for argument in get_args(annotation) for model in _models(argument)]
    return []


def dump_yaml(config: BaseModel) -> str:
    """The settings as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe(kind: type[BaseModel]) -> str:
    """The full YAML of a config kind: every field with its default, its unit and meaning as a comment."""
    return "\n".join(_describe(kind, indent="")) + "\n"


def _describe(kind: type[BaseModel], indent: str) -> Iterator[str]:
    for key, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        comment = f"  # {field.description}" if field.description else ""
        models = _models(field.annotation)
        if isinstance(default, BaseModel):
            yield f"{indent}{key}:{comment}"
            yield from _describe(type(default), indent + "  ")
        elif not field.is_required():
            text = yaml.safe_dump(_plain(default), default_flow_style=True, width=1000).removesuffix("...\n").strip()
            yield f"{indent}{key}: {text}{comment}"
        elif models and get_origin(field.annotation) is tuple:  # one example of each kind of item
            yield f"{indent}{key}:{comment or '  #'} (required; a list, one item of each kind shown)"
            for model in models:
                first, *others = _describe(model, indent + "    ")
                yield f"{indent}  - {first.lstrip()}"
                yield from others
        elif models:
            yield f"{indent}{key}:{comment or '  #'} (required)"
            yield from _describe(models[0], indent + "  ")
        else:
            yield f"{indent}{key}: null{comment or '  #'} (required)"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value) if isinstance(value, Path) else value
