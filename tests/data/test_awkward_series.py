"""Every awkward series: right in every voxel, or rejected with its reason."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from awkward import CASES, CONTRAST, Case, table
from dicom_factory import difference

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.index.archive import index
from lejepa_med.data.reading import Archive
from lejepa_med.data.volume import Volume

for part in ("spacing", "planes", "parts", "turns", "files"):
    importlib.import_module(f"awkward_{part}")
PAGE = Path(__file__).parents[2] / "docs" / "dicom_cases.md"


def outcome(row: pd.Series) -> str:
    if row["verdict"] == "rejected":
        return f"rejected {row['reason']}"
    flags = f": {row['flags']}" if row["flags"] else ""
    return f"{row['num_slices']} slices{flags}"


def misplaced(volume: Volume) -> float:
    """Largest difference from the field; a whole volume may be brighter by some contrasts."""
    less = difference(volume)
    return float(np.abs(less - CONTRAST * round(float(np.median(less)) / CONTRAST)).max())


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_right_or_rejected(case: Case, tmp_path: Path) -> None:
    case.build(tmp_path / "scans")
    settings = IndexSettings.model_validate({**case.settings, "compute": {"workers": 1}})
    summary = index([tmp_path / "scans"], tmp_path / "index", settings)
    archive = Archive.open(tmp_path / "index")
    assert Counter(map(outcome, (row for _, row in archive.table.iterrows()))) == Counter(case.expected)
    assert summary.files_seen == summary.files_used + summary.files_explained
    rows = archive.rows()
    for key in rows.loc[rows["source"] == "dicom", "series_key"]:
        assert misplaced(archive.read(key)) <= case.tolerance


def test_the_page_lists_these_cases() -> None:
    assert PAGE.read_text(encoding="utf-8") == table()
    rules = PAGE.with_name("dicom_rules.md").read_text(encoding="utf-8")
    assert f"What becomes of {len(CASES)} awkward series" in rules


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
