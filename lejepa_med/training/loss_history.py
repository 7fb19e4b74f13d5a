"""What a run's own losses say of it: that the loss explodes, or that it no longer falls.

It explodes above `train.max_loss_ratio` times the reference: the lowest of the run's first loss and of all medians over
its last 100 losses. Over 42,000 steps of 155 healthy runs no loss was above 1.7 times that; runs that diverge pass 1e3.
Everything here is a function of the lines of metrics.jsonl, so a resumed run decides as an undisturbed one.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from statistics import median

from lejepa_med.config.pretraining import TrainConfig
from lejepa_med.distributed import gather_objects, rank, together
from lejepa_med.training.log import read_log_before

WINDOW = 100
"""Losses of a median: a batch that is hard by chance moves none."""
FIRST = 5
"""Losses before a verdict."""
FLOOR = 0.01
"""Of the first loss: a collapse without SIGReg brings losses of 1e-8, whose noise is no explosion."""
MIN_FALL = 0.01
"""By which the median of a block must be below that of the block before it, or the loss has stopped falling."""
PLATEAU = "plateau"
"""Under `ended` in the line of the last step."""


class LossHistory:
    """The losses of a run so far, taken in the order of steps; None where a step had none that is finite.

    `good_until` is the last step of which the loss was ordinary (below the square root of the ratio): a checkpoint is
    good if it holds the weights that gave that loss, or earlier ones. `has_ended`: it has stopped falling.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._ratio, self._block_steps = config.max_loss_ratio, config.stop_on_plateau
        self._last = config.steps - 1
        self._recent = deque[float](maxlen=WINDOW)
        self._reference = self._floor = math.inf
        self._block: list[float] = []
        self._median_before: float | None = None
        self.good_until, self.has_ended, self.skipped = -1, False, 0

    def take(self, step: int, loss: float | None) -> str | None:
        """What is wrong with a loss that explodes."""
        wrong = None
        if loss is None:
            self.skipped += 1
        else:
            wrong = self._verdict(step, loss)
            self._remember(loss)
        block = self._block_steps
        if block is not None and (step + 1) % block == 0 and self._block and step < self._last:
            self._end_block()
        return wrong

    def _verdict(self, step: int, loss: float) -> str | None:
        reference = max(self._reference, self._floor) if self._recent else math.inf
        if self._ratio is None or loss <= math.sqrt(self._ratio) * reference:
            self.good_until = step
            return None
        if len(self._recent) < FIRST or loss <= self._ratio * reference:
            return None
        return (
            f"the loss explodes at step {step}: {loss:.3g} is {loss / reference:.3g} times the lowest median so far "
            f"(train.max_loss_ratio {self._ratio:g}); start anew with a lower optim.lr or with optim.clip_norm"
        )

    def _remember(self, loss: float) -> None:
        if not self._recent:
            self._reference, self._floor = loss, FLOOR * loss
        self._recent.append(loss)
        if len(self._recent) >= FIRST:
            self._reference = min(self._reference, median(self._recent))
        if self._block_steps is not None:
            self._block.append(loss)

    def _end_block(self) -> None:
        now, before = median(self._block), self._median_before
        self.has_ended = before is not None and now > (1 - MIN_FALL) * before
        self._median_before, self._block = now, []


def history_of(run: Path, start: int, config: TrainConfig) -> LossHistory:
    """That of the steps before `start`, read by the first rank; the same on all."""
    history = LossHistory(config)
    with together():
        if rank() == 0:
            for line in read_log_before(run, "metrics", start):
                history.take(line["step"], None if line.get("skipped") else line.get("total"))
    shared: LossHistory = gather_objects(history)[0]
    return shared
