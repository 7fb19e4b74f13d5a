"""Pretraining on the training side of an official split: the other sides, and their patients, are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_caches import numbered, write_cache

from lejepa_med.config import PretrainConfig
from lejepa_med.data.training_source import cache_source
from lejepa_med.errors import DataError

PATIENTS = ("p0", "p0", "p1", "p2", "", "")


def config(tmp_path: Path, split: str | None) -> PretrainConfig:
    if not (tmp_path / "cache").exists():
        write_cache(tmp_path / "cache", numbered(6, kind=np.int16), patient_key=PATIENTS)
    if split is not None:
        (tmp_path / "labels.csv").write_text(split)
    data = {"cache": tmp_path / "cache", "official_split": tmp_path / "labels.csv", "holdout": {"test_fraction": 0.9}}
    return PretrainConfig.model_validate({"data": data})


def test_only_the_training_side_is_used(tmp_path: Path) -> None:
    text = "series_key,split,label\n" + "".join(
        f"s{number},{side},1\n" for number, side in enumerate(("train", "test", "train", "val", "train"))
    )
    assert list(cache_source(config(tmp_path, text)).keys) == ["s2", "s4"]  # p0 tests too; s5 is on no side


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        (None, "no CSV table with the columns series_key and split; `prepare` writes one"),
        ("series_key,side\ns0,train\n", "no CSV table with the columns"),
        ("series_key,split\ns0,training\n", "'training' in column split; expected train, val or test"),
        ("series_key,split\nx,train\n", "none of the 6 series of the cache is on its side `train`"),
    ],
)
def test_what_is_no_split_is_told(tmp_path: Path, split: str | None, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        cache_source(config(tmp_path, split))
