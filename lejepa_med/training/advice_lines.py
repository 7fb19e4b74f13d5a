"""Lines of `diagnostics.jsonl` as the rules of the advice look at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lejepa_med.config import PretrainConfig

SETTLED = 0.1
"""Share of the steps before which random weights are still being shaped: no verdict on the representation earlier."""
RECENT = 3
"""Lines that are averaged before a noisy number is judged; one batch is an anecdote."""

Line = dict[str, Any]
Lines = Sequence[Line]


def settled_lines(lines: Lines, config: PretrainConfig, share: float = SETTLED) -> list[Line]:
    """Those after a share of the steps."""
    return [line for line in lines if line["step"] + 1 >= share * config.train.steps]


def recent_mean(lines: Lines, name: str) -> float | None:
    """The mean of a number over the last lines; None where it is not measured."""
    values = [line[name] for line in lines[-RECENT:] if name in line]
    return sum(values) / len(values) if values else None
