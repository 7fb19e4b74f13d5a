"""The configs that people start from: `configs/` beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

from lejepa_med.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]


def starting_points(kind: str) -> dict[str, Path]:
    """Name and file of every starting point of a kind; empty where there are none."""
    packaged = _PACKAGE / "starting_points"
    folder = packaged if packaged.is_dir() else _PACKAGE.parent / "configs"
    return {file.stem: file for file in sorted((folder / kind).glob("*.yaml"))}


def read_starting_point(kind: str, name: str) -> str:
    """Its YAML, comments and all. Raises ConfigError for a name that there is not."""
    found = starting_points(kind)
    if name not in found:
        there = ", ".join(found) or "none"
        raise ConfigError(f"{kind}: no starting point `{name}`; there are: {there}")
    return found[name].read_text(encoding="utf-8")
