"""Batches of a small labelled set: every row once per epoch, for a given number of steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def batches_per_epoch(rows: int, batch_size: int) -> int:
    """How many near-equal batches of about this size; never one of a single row, which BatchNorm cannot use."""
    return max(1, min(round(rows / batch_size), rows // 2))


def epochs_of_batches(
    generator: np.random.Generator, rows: int, batch_size: int, steps: int
) -> Iterator[NDArray[np.int64]]:
    """Near-equal parts of a new permutation per epoch, `steps` of them."""
    done = 0
    while True:
        for batch in np.array_split(generator.permutation(rows), batches_per_epoch(rows, batch_size)):
            if done == steps:
                return
            yield batch
            done += 1
