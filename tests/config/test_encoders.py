"""Encoders of a benchmark: names of networks, rules of positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lejepa_med.config.evaluation import BenchmarkConfig, Timm2dEncoder
from lejepa_med.config.loading import validate
from lejepa_med.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = [
    *sorted((ROOT / "configs" / "benchmark").glob("*.yaml")),
    ROOT / "lejepa_med" / "cli" / "demo_configs" / "benchmark.yaml",
]


def test_the_prefix_of_pretraining_is_refused() -> None:
    encoder = {"kind": "timm2d", "model": "timm/vit_base_patch14_dinov2"}
    settings = {"data": {"cache": "c"}, "tasks": [{"name": "t", "kind": "segmentation"}], "encoders": [encoder]}
    with pytest.raises(ConfigError, match="write it without `timm/`: vit_base_patch14_dinov2"):
        validate(BenchmarkConfig, settings, "test")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_metas_dinov2_without_registers_goes_by_metas_rule(file: Path) -> None:
    encoders = [one for one in yaml.safe_load(file.read_text(encoding="utf-8"))["encoders"] if one["kind"] == "timm2d"]
    assert encoders
    for encoder in map(Timm2dEncoder.model_validate, encoders):
        assert encoder.model.endswith("_patch14_dinov2") and encoder.positions == "dinov2"


def test_training_dinov2_further_goes_by_metas_rule() -> None:
    file = ROOT / "configs" / "pretrain" / "slices_2d_dinov2_continued.yaml"
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["positions"] == "dinov2"
