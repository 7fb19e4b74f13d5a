"""What a run must keep to go on exactly: weights, averages, optimizer, random states; and where it is kept.

All ranks take part, since each may hold a shard; the first one writes. Every rank reads.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from lejepa_med.config import PretrainConfig
from lejepa_med.distributed import gather_objects, rank, together
from lejepa_med.randomness import generator
from lejepa_med.training.averaging import WeightAverage, average_of
from lejepa_med.training.checkpoint import Checkpoints
from lejepa_med.training.checkpoint_file import has_checkpoint, load_checkpoint
from lejepa_med.training.log import read_log
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.parallel import load_whole, local, random_state, set_random_state, whole
from lejepa_med.training.run_identity import describe_run


class TrainingState:
    """Everything that the next step depends on; batches and views depend on the step's number alone.

    A `with` block closes: at its end everything saved is on disk, or all ranks end with the reason.
    """

    def __init__(self, model: Pretrainer, optimizer: torch.optim.Optimizer, config: PretrainConfig, run: Path) -> None:
        self.model, self.optimizer, self.config, self.run = model, optimizer, config, run
        self.device = next(model.parameters()).device
        average = average_of(config.train)
        self._average = None if average is None else WeightAverage(model.backbone, average)
        self._checkpoints = Checkpoints(run, config.train.keep_checkpoints) if rank() == 0 else None

    def begin(self) -> int:
        """Other ranks than the first draw other dropout than it does."""
        if rank() > 0:
            torch.manual_seed(generator("rank", self.config.seed, rank(), 0).initial_seed())
        return 0

    def average(self, step: int) -> None:
        """Takes the weights after this step into their average. A step that was left out counts with what it left."""
        if self._average is not None:
            self._average.update(step)

    def leaving(self) -> dict[str, Tensor]:
        """The backbone's state as the run would leave it now, for the first rank. All ranks call it."""
        weights: dict[str, Tensor] = whole(self.model.backbone.state_dict())
        return weights if self._average is None else weights | self._average.state_dict()

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite, on any rank. All ranks call it."""
        found = all(bool(torch.isfinite(local(value)).all()) for value in self.model.parameters())
        return all(gather_objects(found))

    def finish(self) -> None:
        """Gives the backbone its averaged weights, if they were asked for."""
        if self._average is not None:
            self._average.copy_to(self.model.backbone)

    def save(self, done: int) -> int:
        """All ranks call it; the first one writes while training goes on. Returns `done`."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "rng": gather_objects(random_state(self.device)),
        }
        score = None
        with together():  # what can go wrong does so before shards are gathered, where ranks wait for each other
            if self._checkpoints is not None:
                diagnostics = read_log(self.run, "diagnostics")  # from the file, so that a resumed run knows it too
                score = diagnostics[-1].get("held_out_total") if diagnostics else None
                self._checkpoints.wait()
        with together():
            if self._checkpoints is not None:
                self._checkpoints.save(done, state, score)
            else:
                whole(state)
        return done

    def restore(self) -> int:
        """The number of steps done; 0 if the run was ended before its first checkpoint.

        A rank that was not there when it was saved draws from its number and the step.
        """
        if not has_checkpoint(self.run):
            return self.begin()
        with together():
            state = load_checkpoint(self.run / "checkpoints", "latest", describe_run(self.run))
            if self._average is not None:
                self._average.load_state_dict(state["average"] or {})
        load_whole(self.model, self.optimizer, state["model"], state["optimizer"])
        done, states = int(state["step"]), state["rng"]
        if rank() < len(states):
            set_random_state(states[rank()], self.device)
        else:
            torch.manual_seed(generator("rank", self.config.seed, rank(), done).initial_seed())
        return done

    def check(self) -> None:
        """Raises what stopped the writer, on the rank that writes; does not wait."""
        if self._checkpoints is not None:
            self._checkpoints.check()

    def last_good(self, until: int | None = None) -> str:
        """The end of a sentence that says where one can go on; only the first rank tells any. Past `until` none is."""
        return "" if self._checkpoints is None else self._checkpoints.last_good(until)

    def __enter__(self) -> TrainingState:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            with together():
                if self._checkpoints is not None:
                    self._checkpoints.close()
        elif self._checkpoints is not None:
            self._checkpoints.__exit__(kind, error, at)
