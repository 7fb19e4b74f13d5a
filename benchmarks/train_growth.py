"""How a training step grows with batch and archive, and what a setting changes: everything that is compared takes turns
in one process, so that other work on the machine slows all of it alike.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

from train_step import Clock, Step, batches


def alternate(settings: Sequence[dict[str, Any]], rounds: int, warm: int = 2) -> list[list[float]]:
    """Seconds of whole steps of each setting, in turns; the first `warm` rounds do not count."""
    from lejepa_med.config import PlanConfig, validate

    configs = [validate(PlanConfig, values, "benchmark") for values in settings]
    steps = [Step(config) for config in configs]
    took: list[list[float]] = [[] for _ in configs]
    with contextlib.ExitStack() as stack:
        fed = [
            stack.enter_context(batches(config, warm + rounds, step.device))
            for config, step in zip(configs, steps, strict=True)
        ]
        for number in range(warm + rounds):
            for seconds, source, step in zip(took, fed, steps, strict=True):
                began = time.perf_counter()
                _, batch, _ = next(source)
                step(batch, number)
                Clock(step.device).synchronise()
                seconds.append(time.perf_counter() - began)
    return [seconds[warm:] for seconds in took]


def epochs(settings: Sequence[dict[str, Any]], volumes: Sequence[int]) -> list[dict[str, Any]]:
    """Seconds of one pass over each archive, by the same model, and those until the first batch is there.

    In each round an archive does its share of its steps, as many rounds as the smallest has steps.
    """
    from lejepa_med.config import PlanConfig, validate

    configs = [validate(PlanConfig, values, "benchmark") for values in settings]
    step = Step(configs[0])
    counts = [number // config.train.batch_size for number, config in zip(volumes, configs, strict=True)]
    took, starts = [0.0 for _ in counts], []
    with contextlib.ExitStack() as stack:
        fed = []
        for config, count in zip(configs, counts, strict=True):
            began = time.perf_counter()
            source = stack.enter_context(batches(config, 1 + count, step.device))
            _, batch, _ = next(source)
            starts.append(time.perf_counter() - began)
            for _ in range(1 if fed else 2):
                step(batch, 0)
            fed.append(source)
        for _ in range(min(counts)):
            for place, source in enumerate(fed):
                began = time.perf_counter()
                for _ in range(counts[place] // min(counts)):
                    number, batch, _ = next(source)
                    step(batch, number)
                Clock(step.device).synchronise()
                took[place] += time.perf_counter() - began
    return [
        {"volumes": number, "steps": count, "seconds": seconds, "start_s": start}
        for number, count, seconds, start in zip(volumes, counts, took, starts, strict=True)
    ]


def line(xs: Sequence[float], ys: Sequence[float]) -> dict[str, float]:
    """Least squares: y = intercept + slope x, and the largest distance from it as a share of the y measured there."""
    slope, intercept = statistics.linear_regression(xs, ys)
    off = max(abs(intercept + slope * x - y) / y for x, y in zip(xs, ys, strict=True))
    return {"intercept": intercept, "slope": slope, "residual": off}


def ratio(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of first / second within a round."""
    found = [one / other for one, other in zip(first, second, strict=True)]
    return statistics.median(found), min(found), max(found)
