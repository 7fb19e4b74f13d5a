"""What the online probe measures: labelled scans of training patients, by cross-validation over patients.

No test patient takes part, labels never reach the backbone, and the settings of the probes do not depend on the step:
scores of one run can be compared with one another. They are no benchmark: the images were seen in pretraining.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.backbones import Backbone
from lejepa_med.config import PretrainConfig
from lejepa_med.config.evaluation import ProbeRecipe
from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.cache import Cache, CachedVolume
from lejepa_med.data.splits import is_held_out
from lejepa_med.errors import ConfigError, DataError
from lejepa_med.evaluation.device import use_bf16
from lejepa_med.evaluation.features import extract_features
from lejepa_med.evaluation.labels import LabelledSet, load_labels
from lejepa_med.evaluation.metrics import headline, scores
from lejepa_med.evaluation.probes import ProbeTask, fit_linear, knn_probe, patient_folds, rotate, standardise

_RECIPE = ProbeRecipe()
_MIN_PATIENTS = 10


@dataclass(frozen=True)
class _Labels:
    """Samples of a task, the fold of each, and where their series are among the probe's (`rows`, `sample_of`)."""

    labelled: LabelledSet
    rows: NDArray[np.int64]
    sample_of: NDArray[np.int64]
    task: ProbeTask
    fold: NDArray[np.int64]


class OnlineProbe:
    """Linear and k-NN probes of `online_probe.tasks` on series of `data.cache`.

    Raises:
        ConfigError: the config names no cache.
        DataError: labels cannot be used, or too few patients other than test patients have one.
    """

    def __init__(self, config: PretrainConfig) -> None:
        if config.data.cache is None:
            raise ConfigError("online_probe: probes scans of a cache; set data.cache, or online_probe.tasks to []")
        self._cache = Cache.open(config.data.cache)
        table = self._cache.select(config.data.modalities, config.data.sequences)
        settings, holdout = config.online_probe, config.data.holdout
        table = table[~is_held_out(table["patient_key"], holdout.test_fraction, holdout.seed)].reset_index(drop=True)
        series: dict[str, int] = {}
        self._tasks: dict[str, _Labels] = {}
        for task in settings.tasks:
            labelled = load_labels(task, table, settings.index)
            kept = ~is_held_out(labelled.groups, holdout.test_fraction, holdout.seed)  # groups of the label file
            if labelled.sides is not None:
                kept &= np.asarray(labelled.sides) == "train"
            self._tasks[task.name] = _prepare(task, labelled, np.flatnonzero(kept), settings.max_series, series)
        self._series = tuple(series)

    def __call__(self, backbone: Backbone, check: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """One line per task: task, metric, its values linear and knn, chance, series, patients, seconds.

        `backbone` is in evaluation mode and carries its spec. `check` is called before every volume.
        """
        began = time.perf_counter()
        assert backbone.spec is not None
        device = next(backbone.parameters()).device
        bf16 = device.type == "cuda" and use_bf16("auto", device)
        features = extract_features(
            backbone, self._volumes(check), backbone.spec.inference, device=device, autocast=bf16
        )
        lines = []
        for name, labels in self._tasks.items():
            check()
            line = _score(name, _mean_by(labels.sample_of, features[labels.rows]), labels)
            lines.append(line | {"seconds": round(time.perf_counter() - began, 3)})
        return lines

    def _volumes(self, check: Callable[[], None]) -> Iterator[CachedVolume]:
        for key in self._series:
            check()
            yield self._cache.read(key)


def _prepare(
    task: TaskConfig, labelled: LabelledSet, kept: NDArray[np.int64], most: int, series: dict[str, int]
) -> _Labels:
    """Adds the series of a task to `series`, a number for each."""
    draw = np.random.default_rng(0)
    chosen = np.sort(draw.permutation(kept)[:most])
    probe = ProbeTask.of(labelled, chosen)
    patients = len(set(probe.groups))
    if patients < _MIN_PATIENTS:
        raise DataError(
            f"online_probe: task {task.name} has labels of {patients} patients that are not kept for testing; "
            f"{_MIN_PATIENTS} are needed"
        )
    fold = patient_folds(probe.strata, probe.groups)
    if labelled.kind in ("classification", "ordinal"):
        for number in np.unique(fold):
            if len(np.unique(probe.target[fold != number])) < 2:
                raise DataError(
                    f"online_probe: task {task.name}: without a fifth of the patients one class is left; "
                    "give labels of more patients"
                )
    members = [labelled.members[sample] for sample in chosen]
    rows = [series.setdefault(key, len(series)) for keys in members for key in keys]
    sample_of = np.repeat(np.arange(len(chosen)), [len(keys) for keys in members])
    return _Labels(labelled, np.array(rows, dtype=np.int64), sample_of, probe, fold)


def _mean_by(sample_of: NDArray[np.int64], features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the series of each sample."""
    starts = np.flatnonzero(np.diff(sample_of, prepend=-1))
    counts = np.bincount(sample_of)[:, None].astype(np.float32)
    return np.asarray(np.add.reduceat(features, starts, axis=0) / counts, dtype=np.float32)


def _score(name: str, features: NDArray[np.float32], labels: _Labels) -> dict[str, Any]:
    task, kind = labels.task, labels.labelled.kind
    shape = (len(features), task.classes) if task.classes else (len(features),)
    linear, nearest = np.zeros(shape), np.zeros(shape)
    for number in np.unique(labels.fold):
        fit, held = np.flatnonzero(labels.fold != number), np.flatnonzero(labels.fold == number)
        values = standardise(features, fit)
        part = task.part(fit)
        nearest[held] = knn_probe(values[fit], values[held], part, _RECIPE)
        rows, others = rotate(values[fit], values[held])
        linear[held] = fit_linear(rows, part, others, _RECIPE.preset_penalty)
    metric = headline(kind)
    return {
        "task": name,
        "metric": metric,
        "linear": _value(scores(kind, task.target, linear), metric),
        "knn": _value(scores(kind, task.target, nearest), metric),
        "chance": _chance(task),
        "series": len(features),
        "patients": len(set(task.groups)),
    }


def _value(found: dict[str, float], metric: str) -> float:
    return round(found[metric], 6)


def _chance(task: ProbeTask) -> float:
    """What the headline is where features tell nothing."""
    if task.kind == "multilabel":
        return 0.5
    return 1 / len(np.unique(task.target)) if task.kind == "classification" else 0.0
