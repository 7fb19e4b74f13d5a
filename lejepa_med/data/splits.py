"""Which patients are held out: a pure function of the patient's key, so an archive can grow without reshuffling."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def is_held_out(patient_keys: Iterable[str], test_fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for patients kept for testing. Stable: a patient's side never depends on who else is in the archive."""
    return np.array([_uniform(key, seed) < test_fraction for key in patient_keys], dtype=bool)


MIN_MONITORED = 8
"""With fewer patients than this a held-out loss says nothing, so none is kept aside."""


MAX_MONITORED = 512
"""About as many are enough for any held-out loss: the rest of a large archive is trained on."""


def is_monitored(patient_keys: Sequence[str], fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for patients kept aside from pretraining to measure its loss on; nobody, if they were under 8 patients.

    Independent of `is_held_out`: of the patients that are not tested on, this share is monitored, or about 512 of them
    if that is less. Then a growing archive lowers the share: a patient that was there before stays aside or is
    released to training, and nobody who was trained on is ever kept aside.
    """
    share = min(fraction, MAX_MONITORED / max(1, len(set(patient_keys))))
    chosen = np.array([_uniform(key, seed, "monitor") < share for key in patient_keys], dtype=bool)
    patients = {key for key, monitored in zip(patient_keys, chosen, strict=True) if monitored}
    return chosen if MIN_MONITORED <= len(patients) < len(set(patient_keys)) else np.zeros_like(chosen)


def _uniform(key: str, seed: int, purpose: str = "holdout") -> float:
    digest = hashlib.sha256(f"{purpose} {seed} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
