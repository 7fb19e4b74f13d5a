"""Pretraining inside a benchmark: a run that goes on where it was, and is not measured before its end."""

from __future__ import annotations

from pathlib import Path

from lejepa_med import api
from lejepa_med.config import PretrainConfig
from lejepa_med.training.run import Progress


def train_to_the_end(config: PretrainConfig, run: Path, progress: Progress | None = None) -> None:
    """Begins a run or goes on with it; SystemExit where a signal stopped it, since half a run is not to be measured."""
    source, preprocess = api.open_source(None, config)
    api.run_pretraining(config, source, preprocess, run, resume=(run / "config.yaml").exists(), progress=progress)
    if (run / "STOPPED").exists():
        raise SystemExit("stopped; run it again to go on")
