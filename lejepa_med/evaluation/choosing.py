"""Which aggregation of slices a probe uses: the one with the smallest error under patient-grouped cross-validation.

Only labels of the budget are looked at; below five per class the first of the list serves. For linear probes the
penalty is chosen for every aggregation beforehand, on the same folds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lejepa_med.config.evaluation import ProbeRecipe
from lejepa_med.evaluation.criteria import error
from lejepa_med.evaluation.metrics import Array
from lejepa_med.evaluation.probes import (
    ProbeTask,
    choose_penalty,
    knn_probe,
    linear_probe,
    patient_folds,
    rotate,
)

Scorer = Callable[[Array, Array, ProbeTask], Array]
"""From training rows, other rows and the task of the training rows to scores of the others."""


def choose_aggregation(
    candidates: dict[str, Array], kind: str, task: ProbeTask, method: str, recipe: ProbeRecipe
) -> str:
    """The name of the features (`[row, feature]` of the labelled rows) that serve the task best."""
    names = list(candidates)
    if len(names) == 1 or not task.is_tuned:
        return names[0]
    errors = [_error_of(candidates[name], kind, task, method, recipe) for name in names]
    return names[int(np.argmin(errors))]


def _error_of(features: Array, kind: str, task: ProbeTask, method: str, recipe: ProbeRecipe) -> float:
    rows = rotate(features, features[:1])[0] if method == "linear" else features
    score = _scorer(rows, task, method, recipe)
    fold = patient_folds(task.strata, task.groups)
    found, truths = [], []
    for number in np.unique(fold):
        fit, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if task.classes and len(np.unique(task.target[fit])) < 2:
            continue
        found.append(score(rows[fit], rows[held], task.part(fit)))
        truths.append(task.target[held])
    return error(kind, np.concatenate(truths), np.concatenate(found)) if found else float("inf")


def _scorer(rows: Array, task: ProbeTask, method: str, recipe: ProbeRecipe) -> Scorer:
    if method == "knn":
        return lambda train, test, part: knn_probe(train, test, part, recipe)
    if task.kind == "multilabel":  # every label has a penalty of its own
        return lambda train, test, part: linear_probe(train, test, part, recipe)[0]
    penalty = choose_penalty(rows, task, recipe)
    one = recipe.model_copy(update={"penalties": (penalty,), "preset_penalty": penalty})
    return lambda train, test, part: linear_probe(train, test, part, one)[0]
