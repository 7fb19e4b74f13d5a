"""Imports point one way (DESIGN 2), and neither `import lejepa_med` nor `--help` waits for torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lejepa_med

PACKAGE = Path(lejepa_med.__file__).parent
LINES = (
    ("errors", "file_locks"),
    ("spec",),
    ("config",),
    ("randomness", "resampling", "distributed", "compute", "compiling", "machine", "whole_files"),
    ("objective", "views", "backbones", "data"),
    ("weights",),
    ("training",),
    ("viz",),
    ("evaluation",),
    ("api",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LINES) for name in names}
FREE = ("_version", "__init__", "__main__")
SYNTHETIC_MAY_USE = ("lejepa_med.data.volume", "lejepa_med.data.synthetic")


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that a source names, also inside functions and TYPE_CHECKING blocks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their direction"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(module: str, source: str) -> list[str]:
    """Imports of `module` (`lejepa_med.data.cache`) that point up or sideways."""
    own = module.split(".")[1]
    wrong = []
    for target in imported(ast.parse(source)):
        parts = target.split(".")
        if parts[0] != "lejepa_med" or parts[1] in FREE or own in FREE:
            continue
        inside_data = own == parts[1] == "data"
        if inside_data and module.startswith("lejepa_med.data.synthetic"):
            allowed = target.startswith(SYNTHETIC_MAY_USE)
        elif inside_data:
            allowed = not target.startswith("lejepa_med.data.synthetic")
        else:
            allowed = own == parts[1] or LEVEL[parts[1]] < LEVEL[own]
        if not allowed:
            wrong.append(f"{module} imports {target}")
    return wrong


def test_every_module_imports_from_below_only() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 80
    wrong = []
    for file in files:
        module = ".".join(("lejepa_med", *file.relative_to(PACKAGE).with_suffix("").parts))
        wrong += wrong_imports(module, file.read_text(encoding="utf-8"))
    assert wrong == []


def test_every_part_of_the_package_has_its_line() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - set(FREE) == set(LEVEL), "name it in LINES, and draw it in DESIGN 2"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lejepa_med.objective.sigreg", "from lejepa_med.training import loop"),
        ("lejepa_med.views.geometry", "from lejepa_med.data.volume import Volume"),
        ("lejepa_med.training.loop", "def f():\n    import lejepa_med.viz.pca"),
        ("lejepa_med.data.synthetic.head", "from lejepa_med.data.cache import Cache"),
        ("lejepa_med.data.cache", "from lejepa_med.data import synthetic"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(wrong_imports(module, source)) == 1


COMMAND = """
from lejepa_med.cli.main import main
try:
    main({words})
except SystemExit as end:
    assert not end.code
"""
NOTHING_HEAVY = """
import sys
heavy = {'torch', 'monai', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "code",
    ["import lejepa_med", COMMAND.format(words=["--help"]), COMMAND.format(words=["pretrain", "--help"])],
    ids=["import", "help", "help of a verb"],
)
def test_torch_is_not_imported(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code + NOTHING_HEAVY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
