"""Random numbers as a pure function of a key such as (seed, step, position): no global state, no order of calls."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on the key alone, so that every rank, worker and device draws the same."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
