"""Who is kept aside is a function of the patient's key, and archives only grow."""

from __future__ import annotations

import numpy as np
import pytest

from lejepa_med.data import splits
from lejepa_med.data.splits import is_held_out, is_monitored


def patients(count: int) -> list[str]:
    return [f"patient{number}" for number in range(count)]


def test_no_more_are_monitored_than_a_held_out_loss_needs() -> None:
    few, many = is_monitored(patients(2000), 0.1, 0), is_monitored(patients(60_000), 0.1, 0)
    assert few.sum() == pytest.approx(200, abs=50)
    assert many.sum() == pytest.approx(512, abs=80)
    twice = is_monitored(patients(30_000) * 2, 0.1, 0)
    assert twice.sum() / 2 == pytest.approx(512, abs=80), "patients count, not their series"


def test_growth_releases_patients_and_keeps_nobody_aside_that_was_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MAX_MONITORED", 20)
    before = is_monitored(patients(150), 0.3, 0)
    for count in (150, 200, 400, 1500):
        after = is_monitored(patients(count), 0.3, 0)
        assert after.sum() == pytest.approx(20, abs=12)
        assert not (after[:150] & ~before).any()
        before = np.concatenate([before & after[:150], before[150:]])
    assert before.sum() < 5, "most of the first are released by now"


def test_small_archives_keep_nobody_aside() -> None:
    assert not is_monitored(patients(20), 0.1, 0).any()
    assert not is_monitored([], 0.1, 0).any()


def test_a_side_does_not_depend_on_the_others() -> None:
    whole = is_held_out(patients(300), 0.3, 1)
    assert (is_held_out(patients(300)[100:], 0.3, 1) == whole[100:]).all()
    assert whole.mean() == pytest.approx(0.3, abs=0.1)
