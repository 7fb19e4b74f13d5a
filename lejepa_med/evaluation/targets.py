"""What the texts of label columns mean: class numbers, ordered levels, 0/1 per label, or values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.config.tasks import TaskConfig
from lejepa_med.errors import DataError

Kind = Literal["classification", "regression", "multilabel", "ordinal", "segmentation"]
Target = NDArray[np.int64] | NDArray[np.float64]
MAX_INTEGER_CLASSES = 10
"""`kind: auto` takes up to this many different whole numbers for classes; `ordinal` allows no more."""


@dataclass(frozen=True)
class Targets:
    """`target` [sample]: class or level numbers (positions in `classes`), or values. Multilabel: [sample, label]
    of 0, 1 and NaN where nothing is known, `classes` being the labels' names."""

    kind: Kind
    target: Target
    classes: tuple[str, ...]


def targets_of(task: TaskConfig, labels: pd.DataFrame) -> Targets:
    """Targets of samples from their label texts, one column per label column.

    Raises:
        DataError: the texts are not of the task's kind, or there is nothing to tell apart.
    """
    if task.kind == "multilabel":
        return _multilabel(task, labels)
    texts = labels.iloc[:, 0]
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    infinite, numeric = int(np.isinf(numbers).sum()), bool(np.isfinite(numbers).all())
    if infinite:
        raise DataError(f"task {task.name}: {infinite} of {len(texts)} labels are infinite; expected finite numbers")
    if texts.nunique() < 2:
        raise DataError(f"task {task.name}: all {len(texts)} labels found in the cache are the same; nothing to learn")
    whole = numeric and bool((numbers == np.round(numbers)).all())
    levels = len(np.unique(numbers)) if numeric else 0
    kind = task.kind
    if kind == "auto":
        few = whole and texts.nunique() <= MAX_INTEGER_CLASSES
        kind = "classification" if few or not numeric else "regression"
    if kind == "ordinal" and (not whole or levels > MAX_INTEGER_CLASSES):
        found = f"{levels} different" if numeric else f"{int((~np.isfinite(numbers)).sum())} that are no numbers"
        raise DataError(
            f"task {task.name}: {found} among {len(texts)} labels; ordinal expects up to {MAX_INTEGER_CLASSES} "
            "different whole numbers"
        )
    if kind == "regression":
        if not numeric:
            count = int((~np.isfinite(numbers)).sum())
            raise DataError(f"task {task.name}: {count} of {len(texts)} labels are no numbers; expected a regression")
        return Targets("regression", numbers, ())
    return _classes(task, "ordinal" if kind == "ordinal" else "classification", texts, numbers)


def _classes(task: TaskConfig, kind: Kind, labels: pd.Series, numbers: NDArray[np.float64]) -> Targets:
    numeric = bool(np.isfinite(numbers).all())
    texts = [f"{number:g}" for number in numbers] if numeric else [str(text) for text in labels]
    classes = sorted(set(texts), key=float if numeric else str)
    if len(classes) < 2:
        raise DataError(f"task {task.name}: all {len(texts)} labels found in the cache are the same; nothing to learn")
    if len(classes) > max(MAX_INTEGER_CLASSES, len(texts) // 2):
        raise DataError(
            f"task {task.name}: {len(classes)} different labels in {len(texts)} rows are no classes; "
            f"is column `{labels.name}` the right one?"
        )
    position = {name: number for number, name in enumerate(classes)}
    return Targets(kind, np.array([position[text] for text in texts], dtype=np.int64), tuple(classes))


def _multilabel(task: TaskConfig, labels: pd.DataFrame) -> Targets:
    numbers = labels.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wrong = labels.notna().to_numpy() & ~np.isin(numbers, (0.0, 1.0))
    for name, count in zip(labels.columns, wrong.sum(0), strict=True):
        if count:
            raise DataError(
                f"task {task.name}: {count} cells of column `{name}` hold something other than 0 or 1; "
                "multilabel expects 0, 1 or nothing"
            )
    if not ((numbers == 0).any(0) & (numbers == 1).any(0)).any():
        raise DataError(
            f"task {task.name}: none of the {numbers.shape[1]} labels has both 0 and 1 among the {len(numbers)} "
            "samples found in the cache; nothing to learn"
        )
    return Targets("multilabel", numbers, tuple(str(name) for name in labels.columns))
