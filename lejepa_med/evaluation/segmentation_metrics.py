"""Dice and the 95th percentile of surface distances of one class in one case, as MONAI computes them."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from numpy.typing import NDArray


def dice(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """2 |P and T| / (|P| + |T|); NaN where the truth is empty."""
    if not truth.any():
        return float("nan")
    return float(2 * np.count_nonzero(predicted & truth) / (np.count_nonzero(predicted) + np.count_nonzero(truth)))


def hd95_mm(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> float:
    """The larger of the two directions' 95th percentiles; NaN where one of the two is empty."""
    if not truth.any() or not predicted.any():
        return float("nan")
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (predicted, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.5 and 1.6 call a function of their own in an old way
        found = compute_hausdorff_distance(
            pair[0], pair[1], include_background=True, percentile=95, spacing=list(spacing_mm)
        )
    return float(found)
