"""Which patients are held out: a pure function of the patient's key, so an archive can grow without reshuffling."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def is_held_out(patient_keys: Iterable[str], test_fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for patients kept for testing. Stable: a patient's side never depends on who else is in the archive."""
    return np.array([_uniform(key, seed) < test_fraction for key in patient_keys], dtype=bool)


def _uniform(key: str, seed: int) -> float:
    digest = hashlib.sha256(f"holdout {seed} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
