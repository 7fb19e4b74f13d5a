"""The rules of the advice that look at the online probe: a line's `probes` are the lines of `probes.jsonl` so far."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from lejepa_med.config import PretrainConfig
from lejepa_med.training.advice_lines import RECENT, Lines, recent_mean, settled_lines

SAME_PATIENT = 0.5
"""Rate of nearest neighbours of the same patient that is worth a question; chance is 1 / 63 with two scans each."""
SAME_PATIENT_BY_CHANCE = 5.0
"""Times chance, where few patients with many scans make a high rate likely."""
MIN_PROBES = 6
"""Probe scores before flat can be told from rising."""
FLAT_ERRORS = 2.0
"""Standard errors by which the last half of the probe scores must beat the first half not to be called flat."""
HALF = 0.5
"""Share of the steps after which a probe should be above that of the fresh weights."""


def same_patient(lines: Lines, config: PretrainConfig) -> str | None:
    """Scans of one patient are each other's neighbours: a question, or a verdict where the probe of the first task
    stays flat."""
    settled = settled_lines(lines, config)
    rate, chance = recent_mean(settled, "same_patient_nn"), recent_mean(settled, "same_patient_chance")
    if rate is None or chance is None or rate < max(SAME_PATIENT, min(0.9, SAME_PATIENT_BY_CHANCE * chance)):
        return None
    seen = f"of scans of one patient, {rate:.0%} are nearest to another of the same (by chance {chance:.0%})"
    _, scores = _first_task(lines)
    if len(scores) < MIN_PROBES:
        return (
            f"{seen}: is it anatomy, or scanner and positioning? Probe a label that changes within patients, or a "
            f"split by site, before trusting the loss"
        )
    if not is_flat(scores):
        return None
    return (
        f"{seen} while the probe stays at {scores[-1]:.3f}: an identity shortcut; put scans of one patient under "
        f"stronger intensity and crop augmentation (views), or train on more patients"
    )


def probe_not_above_start(lines: Lines, config: PretrainConfig) -> str | None:
    """The newest scores of the first task are not above that of the fresh weights, late in the run."""
    probes = lines[-1].get("probes", [])
    if not probes or probes[0]["step"] != 0 or probes[-1]["step"] < HALF * config.train.steps:
        return None
    task, scores = _first_task(lines)
    if len(scores) <= RECENT:
        return None
    now = sum(scores[-RECENT:]) / RECENT
    if now > scores[0]:
        return None
    return (
        f"the online probe of {task} is at {now:.3f} (mean of the last {RECENT}) and was {scores[0]:.3f} with fresh "
        f"weights: nothing is learned that this label needs; look whether the views show it (`lejepa-med views`), and "
        f"at the ranks, before training longer"
    )


def _first_task(lines: Lines) -> tuple[str, list[float]]:
    probes = lines[-1].get("probes", [])
    task = str(probes[0]["task"]) if probes else ""
    return task, [float(line["linear"]) for line in probes if line["task"] == task and "linear" in line]


def is_flat(probes: Sequence[float]) -> bool:
    """Whether the last half is not above the first by more than its scatter explains (from neighbouring differences,
    which a slow rise does not inflate)."""
    half = len(probes) // 2
    gain = sum(probes[-half:]) / half - sum(probes[:half]) / half
    squares = [(b - a) ** 2 / 2 for a, b in itertools.pairwise(probes)]
    error = math.sqrt(sum(squares) / len(squares) * 2 / half)
    return gain <= FLAT_ERRORS * error
