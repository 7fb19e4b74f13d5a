"""A small cache for the verbs that read one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lejepa_med.data.cache import entry_name, publish_manifest, write_entry, write_settings
from lejepa_med.spec import PreprocessSpec


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Six pictures of 40 x 44 pixels of six patients."""
    folder, preprocess = tmp_path / "cache", PreprocessSpec()
    write_settings(folder, preprocess)
    rows = []
    for number in range(6):
        entry = entry_name(f"s{number}", "x", preprocess)
        written = write_entry(folder, entry, np.random.default_rng(number).integers(0, 200, (40, 44)).astype(np.uint8))
        row = {"series_key": f"s{number}", "patient_key": f"p{number}", "study_key": "", "modality": "mri"}
        row |= {"sequence": "", "shape": [40, 44], "spacing_mm": None, "group_key": f"s{number}"}
        rows.append(row | {"entry": entry, **written._asdict()})
    publish_manifest(folder, pd.DataFrame(rows))
    return folder
