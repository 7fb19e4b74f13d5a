"""Finished runs that can be compared: each rebuilt from its config and newest checkpoint, all with one held-out set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lejepa_med.backbones import build
from lejepa_med.config import PretrainConfig, SelectConfig, load_config
from lejepa_med.data.dataset import Source, split_monitored
from lejepa_med.data.pretraining_record import FILE, is_complete, read_record
from lejepa_med.data.splits import MIN_MONITORED
from lejepa_med.data.training_source import cache_source
from lejepa_med.errors import DataError, UserError, WeightsError
from lejepa_med.objective.lejepa import resolve_lam
from lejepa_med.training.checkpoint_file import load_checkpoint
from lejepa_med.training.log import read_log
from lejepa_med.training.model import Pretrainer
from lejepa_med.weights import load_strictly

_SAME = ("kind", "plane", "modalities", "sequences", "holdout", "monitor_fraction")
_TRAIN_SHARE = 0.1  # of the last lines of metrics.jsonl: single steps are too noisy to compare


class NotScoredError(UserError):
    """Why one run has no score; the others are still ranked."""


@dataclass
class RunScore:
    """One row of the ranking. `totals` has one value per draw, in the same order for every run.

    `prediction`, `sigreg` and `total` are means over draws on held-out patients, `train_total` is the run's own record.
    """

    path: Path
    name: str
    lam: float = float("nan")
    steps: int = 0
    batch: int = 0
    train_total: float = float("nan")
    prediction: float = float("nan")
    sigreg: float = float("nan")
    totals: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def total(self) -> float:
        return float(np.mean(self.totals)) if self.totals else float("nan")

    @property
    def total_sd(self) -> float:
        """Standard deviation of the total over draws; NaN with one draw."""
        return float(np.std(self.totals, ddof=1)) if len(self.totals) > 1 else float("nan")


@dataclass(frozen=True)
class Candidate:
    """A run that may be scored, with its config."""

    row: RunScore
    config: PretrainConfig


def open_candidates(paths: Sequence[Path], select: SelectConfig) -> tuple[list[RunScore], list[Candidate]]:
    """One row per run, and those of them that may be scored.

    Raises:
        DataError: a path is no run directory, or the runs differ in what decides on the held-out patients.
    """
    rows, candidates = [], []
    unique = list({path.resolve(): path for path in paths}.values())
    for path, name in zip(unique, distinct_names(unique), strict=True):
        if not (path / "config.yaml").exists():
            raise DataError(f"run {path}: there is no config.yaml; give folders that `lejepa-med pretrain` wrote")
        rows.append(RunScore(path, name))
        try:
            config = load_config(PretrainConfig, path / "config.yaml")
            _fill_record(rows[-1], config)
        except UserError as error:
            rows[-1].problem = first_line(error, rows[-1])
            continue
        if select.cache is not None:
            config = config.model_copy(update={"data": config.data.model_copy(update={"cache": select.cache})})
        candidates.append(Candidate(rows[-1], config))
    for candidate in candidates[1:]:
        _require_same(candidates[0], candidate)
    return rows, candidates


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, numbered where several are alike: a parent's name may be a person's, and these are shared."""
    folders = [path.resolve().name for path in paths]
    names: list[str] = []
    for folder in folders:
        numbered = (f"{folder} ({number})" for number in itertools.count(2))
        free = (name for name in itertools.chain([folder], numbered) if name not in names)
        names.append(next(name for name in free if name == folder or name not in folders))
    return names


def first_line(error: Exception, row: RunScore) -> str:
    """A message as one line that names the run, not where it lies."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    text = kind + (str(error).splitlines() or [""])[0].rstrip(":")
    text = text.replace(str(row.path.resolve()), row.name)
    return text.replace(str(row.path), row.name) if row.path.name else text  # `.` stands in every sentence


def _fill_record(row: RunScore, config: PretrainConfig) -> None:
    """What the run's own files say. Raises NotScoredError where it cannot be compared at all."""
    if not (row.path / "DONE").exists():
        raise NotScoredError("it is not finished; end it with `lejepa-med pretrain --resume`")
    if config.data.cache is None:
        raise NotScoredError("its data was given in Python, and no cache holds its held-out patients")
    if config.objective.kind != "lejepa":
        raise NotScoredError(f"it was trained with {config.objective.kind}: losses of LeJEPA runs are compared")
    row.lam = resolve_lam(config.objective.lam, config.train.batch_size)
    row.batch = config.train.batch_size
    if row.lam <= 0:
        raise NotScoredError("its lam is 0: total / lam^alpha does not exist")
    try:
        totals = [float(line["total"]) for line in read_log(row.path, "metrics") if not line.get("skipped")]
    except (KeyError, TypeError, ValueError):
        raise NotScoredError("its metrics.jsonl is damaged") from None
    if not totals:
        raise NotScoredError("its metrics.jsonl is damaged")
    row.train_total = float(np.mean(totals[-max(1, round(_TRAIN_SHARE * len(totals))) :]))


def _require_same(first: Candidate, other: Candidate) -> None:
    """Whatever decides on the held-out patients and the shape of the input must be that of the first run."""

    def refuse(what: str, there: Any, here: Any) -> None:
        raise DataError(
            f"run {other.row.name}: {what} is {there}, but {here} in {first.row.name}; "
            "only runs with the same held-out patients and input can be compared, select them apart"
        )

    caches = [item.config.data.cache for item in (first, other)]
    if caches[0] is not None and caches[1] is not None and caches[0].resolve() != caches[1].resolve():
        refuse("data.cache", caches[1], caches[0])
    for name in _SAME:
        mine, theirs = (getattr(item.config.data, name) for item in (first, other))
        if mine != theirs:
            refuse(f"data.{name}", theirs, mine)
    if first.config.spatial_dims != other.config.spatial_dims:
        refuse("the number of axes", other.config.spatial_dims, first.config.spatial_dims)
    if first.config.model.in_channels != other.config.model.in_channels:
        refuse("model.in_channels", other.config.model.in_channels, first.config.model.in_channels)


def held_out_source(config: PretrainConfig) -> Source:
    """The patients that `data.monitor_fraction` keeps aside. Raises DataError where there are too few."""
    source = cache_source(config)
    _, aside = split_monitored(source, config.data.monitor_fraction, config.data.holdout.seed)
    if aside is None:
        raise DataError(
            f"data.monitor_fraction {config.data.monitor_fraction} of {len(set(source.patients))} patients keeps fewer "
            f"than {MIN_MONITORED} aside, so no held-out loss can be measured; pretrain with a larger fraction"
        )
    return aside


def rebuild(candidate: Candidate, held_out: Source) -> Pretrainer:
    """Backbone and projector of the newest checkpoint, strictly loaded; fills in the steps done.

    Raises:
        UserError: the checkpoint is missing, damaged or of another network, or the run was trained on `held_out`.
    """
    row = candidate.row
    _require_unseen(row, held_out)
    folder = row.path / "checkpoints"
    if not (folder / "latest").exists():
        raise NotScoredError("it has no checkpoint; the projector is needed, not only the backbone")
    state = load_checkpoint(folder)
    model = Pretrainer(build(candidate.config.model), candidate.config.projector)
    try:
        load_strictly(model, state["model"], row.name)
    except WeightsError as error:
        raise NotScoredError(f"its checkpoint is not of the network in its config.yaml ({error})") from None
    row.steps = int(state["step"])
    return model


def _require_unseen(row: RunScore, held_out: Source) -> None:
    """A run from before patients were kept aside was trained on them: its loss there is no held-out loss."""
    if not (row.path / FILE).exists():
        raise NotScoredError(f"its {FILE} is missing, so whom it was trained on is not known")
    record = read_record(row.path)
    aside = set(held_out.patients)
    seen = aside & set(record.loc[record["origin"] == "run", "patient_key"])
    if seen:
        raise NotScoredError(
            f"it was trained on {len(seen)} of the {len(aside)} held-out patients: when it started, too few were "
            "there to keep any aside, or its version did not; pretrain it anew on the cache as it is now"
        )
    before = aside & set(record["patient_key"])
    if before:
        raise NotScoredError(
            f"it started from weights (init_from) that were trained on {len(before)} of the {len(aside)} held-out "
            "patients"
        )
    if not is_complete(record):
        raise NotScoredError("it started from weights (init_from) without a record of whom they were trained on")
