"""`lejepa-med views`: as many rows as asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lejepa_med import api
from lejepa_med.cli.main import main
from lejepa_med.config import PretrainConfig
from lejepa_med.data.dataset import DatasetSource
from lejepa_med.training.run import step_datasets

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain" / "hippocampus_resnet3d.yaml"


@pytest.mark.parametrize("samples", ["0", "-2"])
def test_a_sheet_without_rows_is_one_sentence(samples: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["views", str(CONFIG), "--out", str(tmp_path / "views.png"), f"--samples={samples}"]) == 2
    assert capsys.readouterr().err == f"lejepa-med views: --samples {samples}; a sheet has one row at least\n"


def test_fewer_rows_are_the_first_of_more(tmp_path: Path) -> None:
    source = DatasetSource([torch.rand(1, 40, 40, 40, generator=torch.Generator().manual_seed(n)) for n in range(4)])
    settings = {"global_size": [16] * 3, "local_size": [8] * 3, "global_pitch_mm": None, "local_pitch_mm": None}
    config = PretrainConfig.model_validate({"views": settings, "train": {"batch_size": 4}})
    dataset, _ = step_datasets(config, source, (40, 40, 40))
    for rows in (1, 3):
        api.draw_views(config, dataset, tmp_path / f"{rows}.png", rows)
    few, many = (Image.open(tmp_path / f"{rows}.png") for rows in (1, 3))
    assert many.height - few.height == 2 * (few.height - 35)  # 35 of headers
    assert few.tobytes() == many.crop((0, 0, *few.size)).tobytes()
