"""`select`: which of several runs is best, from the loss alone; with probe results also how far that can be trusted.

The paper (arXiv 2511.08544, section 6) finds that train_loss / lambda^alpha ranks runs as their probes do. Here the
loss of every run is measured again on the same held-out patients and views (`selection_scoring`). One alpha ranks all
runs; the agreement with probe results is told with an interval, alpha chosen on other runs (`selection_statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lejepa_med.config import SelectConfig, ViewsConfig
from lejepa_med.config.selection import PAPER_ALPHA
from lejepa_med.data.dataset import Source
from lejepa_med.errors import DataError
from lejepa_med.evaluation.device import pick_device
from lejepa_med.evaluation.selection_results import Outcome, read_results
from lejepa_med.evaluation.selection_runs import (
    Candidate,
    NotScoredError,
    RunScore,
    first_line,
    held_out_source,
    open_candidates,
    rebuild,
)
from lejepa_med.evaluation.selection_scoring import Protocol, use_batch_statistics
from lejepa_med.evaluation.selection_statistics import (
    ALPHAS,
    MIN_GROUP,
    Array,
    Correlation,
    agreement,
    best_alphas,
    correlate,
    correlate_left_out,
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ranked:
    """A scored run at its place: `score = total / lam^alpha`, with one alpha for all runs."""

    row: RunScore
    alpha: float
    score: float


@dataclass(frozen=True)
class Agreement:
    """How one outcome agrees with what is known of the runs: `(name, over all runs, among runs of equal length)`.

    The first is the held-out loss as the ranking uses it: with the alpha of the settings, or with `auto` under alphas
    that were chosen on other runs, since the one that all results chose would be judged by what it was fitted to.
    """

    outcome: Outcome
    predictors: list[tuple[str, Correlation, Correlation]]


@dataclass(frozen=True)
class Selection:
    """The ranking, best run first, the runs without a score, and the agreement with probe results where there are.

    `notes` name results that were found but not used.
    """

    ranked: list[Ranked]
    not_scored: list[RunScore]
    agreements: list[Agreement]
    config: SelectConfig
    views: ViewsConfig
    held_out_patients: int
    samples: int
    notes: list[str]


def select_runs(
    paths: Sequence[Path], select: SelectConfig, results: Sequence[Path] = (), progress: Progress | None = None
) -> Selection:
    """Scores and ranks runs. One that cannot be scored is left out with its reason.

    Raises:
        DataError: no run can be scored, runs differ in their held-out patients, or results cannot be used.
    """
    device = pick_device(select.device)
    rows, candidates = open_candidates(paths, select)
    outcomes, notes = read_results(rows, results, select)
    if not candidates:
        raise DataError(_none_scored(rows))
    held_out = held_out_source(candidates[0].config)
    protocol = Protocol.build(select, candidates[0].config, held_out, device)
    for number, candidate in enumerate(candidates):
        _score(candidate, protocol, held_out)
        if progress is not None:
            progress("runs", number + 1, len(candidates))
    scored = [row for row in rows if not row.problem]
    if not scored:
        raise DataError(_none_scored(rows))
    return Selection(
        ranked=rank(scored, outcomes, select),
        not_scored=[row for row in rows if row.problem],
        agreements=agreements(scored, outcomes, select, progress),
        config=select,
        views=protocol.views,
        held_out_patients=len(set(held_out.patients)),
        samples=protocol.samples,
        notes=notes,
    )


def _score(candidate: Candidate, protocol: Protocol, held_out: Source) -> None:
    """All draws of one run, or the reason why there are none: its failure must not cost the others."""
    row = candidate.row
    try:
        model = rebuild(candidate, held_out)
        use_batch_statistics(model.to(protocol.device))
        for draw in range(protocol.select.draws):
            protocol.score(model, row, draw)
        if not np.isfinite(row.total):
            raise NotScoredError("its held-out loss is not finite")
    except Exception as error:
        row.problem, row.totals = first_line(error, row), []


def _none_scored(rows: Sequence[RunScore]) -> str:
    return f"no run can be scored: {'; '.join(f'{row.name}: {row.problem}' for row in rows)}"


def scores_by_alpha(rows: Sequence[RunScore], totals: Sequence[float], alphas: Sequence[float] = ALPHAS) -> Array:
    """`total / lam^alpha`, `[alpha, run]`."""
    lams = np.array([row.lam for row in rows])
    return np.stack([np.asarray(totals) / lams**alpha for alpha in alphas])


def rank(rows: Sequence[RunScore], outcomes: Sequence[Outcome], select: SelectConfig) -> list[Ranked]:
    """Runs by their score, best first, all under one alpha.

    With one alpha a run of lower loss and equal or larger lambda is never behind. An alpha for each run from its
    fellows, as the correlation needs it, would not give that.
    """
    alpha = _alpha_of_all(rows, outcomes) if select.alpha == "auto" else select.alpha
    scores = scores_by_alpha(rows, [row.total for row in rows], [alpha])[0]
    ranked = [Ranked(row, alpha, float(score)) for row, score in zip(rows, scores, strict=True)]
    return sorted(ranked, key=lambda item: (item.score, item.row.name))


def _alpha_of_all(rows: Sequence[RunScore], outcomes: Sequence[Outcome]) -> float:
    """The alpha with the highest rho over all runs, averaged over outcomes; the paper's without enough of them."""
    found = []
    for outcome in outcomes:
        having = [row for row in rows if row.name in outcome.values]
        if len(having) >= MIN_GROUP:
            scores = scores_by_alpha(having, [row.total for row in having])
            values = np.array([outcome.values[row.name] for row in having])
            ones, one_group = np.ones((1, len(having))), np.zeros(len(having), dtype=np.int64)
            found.append(agreement(scores, values, ones, one_group))
    usable = [rho for rho in found if np.isfinite(rho).all()]
    return ALPHAS[int(best_alphas(np.mean(usable, axis=0))[0])] if usable else PAPER_ALPHA


def agreements(
    rows: Sequence[RunScore], outcomes: Sequence[Outcome], select: SelectConfig, progress: Progress | None = None
) -> list[Agreement]:
    """For every outcome what predicts it, the score first."""
    found = []
    for number, outcome in enumerate(outcomes):
        having = sorted((row for row in rows if row.name in outcome.values), key=lambda row: row.name)
        if having:
            found.append(_agreement(having, outcome, select))
        if progress is not None:
            progress("intervals", number + 1, len(outcomes))
    return found


def _agreement(rows: Sequence[RunScore], outcome: Outcome, select: SelectConfig) -> Agreement:
    results = np.array([outcome.values[row.name] for row in rows])
    kinds = sorted({(row.steps, row.batch) for row in rows})
    lengths = [kinds.index((row.steps, row.batch)) for row in rows]
    losses = {
        "held-out loss": [row.total for row in rows],
        "training loss": [row.train_total for row in rows],
    }
    predictors = []
    for name, totals in losses.items():
        if not np.isfinite(totals).all():
            continue
        scores = scores_by_alpha(rows, totals)
        left_out = [correlate_left_out(scores, results, of) for of in (None, lengths)]
        predictors.append((f"{name}, alpha of other runs", left_out[0], left_out[1]))
        for alpha in _fixed_alphas(select):
            fixed = -scores_by_alpha(rows, totals, [alpha])[0]
            label = f"{name}, alpha {alpha:g}"
            predictors.append((label, correlate(fixed, results), correlate(fixed, results, lengths)))
    alone = {"samples seen": [float(row.steps * row.batch) for row in rows], "lam": [row.lam for row in rows]}
    for name, numbers in alone.items():
        values = np.array(numbers)
        predictors.append((f"{name} alone", correlate(values, results), correlate(values, results, lengths)))
    if select.alpha != "auto":
        used = f"held-out loss, alpha {select.alpha:g}"
        predictors.sort(key=lambda item: item[0] != used)
    return Agreement(outcome, predictors)


def _fixed_alphas(select: SelectConfig) -> list[float]:
    given = [] if select.alpha == "auto" else [select.alpha]
    return sorted({0.0, PAPER_ALPHA, *given})
