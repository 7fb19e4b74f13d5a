"""README's Python block runs as it stands, but for the places and sizes that a reader chooses.

Those of docs/weights.md and docs/backbones.md are run by the tests of weights and of backbones.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import workshop
from shell_blocks import ROOT

SMALL = {
    'Path("/path/to/archive")': 'Path("archive")',
    '{"steps": 20000}': '{"steps": 1, "batch_size": 4}',
    '"new_scan.nii.gz"': 'next(str(file) for file in Path("archive").rglob("*.nii.gz"))',
}
"""What a reader replaces, and sizes that a test has time for."""


@pytest.mark.long
def test_the_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for written, small in SMALL.items():
        assert written in block
        block = block.replace(written, small)
    workshop.furnish(tmp_path, subjects=8)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "runs" / "brain" / "DONE").exists()
    table = names["table"].to_pandas()  # type: ignore[attr-defined]
    assert isinstance(table, pd.DataFrame) and len(table) == 1 and len(table["embedding"][0]) == 512
