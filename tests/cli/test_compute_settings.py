"""What the documentation says of `compute` is what the command line offers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lejepa_med.cli.main import main
from lejepa_med.config import IndexSettings, PrepareConfig, load_config

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.mark.parametrize("kind", ["index", "prepare"])
def test_config_prints_where_the_work_runs(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", kind]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["compute"] == {"workers": 0, "scheduler": None}
    for name in ("workers", "scheduler"):
        (line,) = [line for line in printed.splitlines() if line.strip().startswith(f"{name}:")]
        assert len(line.partition("#")[2]) > 20, "a field without its meaning"
        assert f"compute.{name}" in PAGE.read_text()


@pytest.mark.parametrize("kind", [IndexSettings, PrepareConfig])
def test_the_command_line_names_a_cluster(kind: type[IndexSettings] | type[PrepareConfig]) -> None:
    compute = load_config(kind, None, ["compute.scheduler=tcp://10.0.0.1:8786", "compute.workers=4"]).compute
    assert (compute.scheduler, compute.workers) == ("tcp://10.0.0.1:8786", 4)
