"""What is written about a step besides its losses: timing always, diagnostics and their advice where they are due.

The first rank writes; the others measure with it, since diagnostics are those of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lejepa_med.config import PretrainConfig
from lejepa_med.distributed import gather_objects, rank, together
from lejepa_med.errors import UserError
from lejepa_med.training.advice import Adviser
from lejepa_med.training.background_probe import BackgroundProbe, Lines
from lejepa_med.training.devices import choose_device, peak_memory
from lejepa_med.training.log import RunLog, read_log
from lejepa_med.training.monitor import Monitor

MEETING_S = 1.0
"""Seconds between two meetings of ranks that wait for the last probe; far below `distributed.TIMEOUT`."""


class Observer:
    """Writes to the log of a run, on the first rank; `log` is None on the others."""

    def __init__(
        self,
        config: PretrainConfig,
        monitor: Monitor,
        log: RunLog | None,
        advise: Adviser,
        probe: BackgroundProbe | None,
    ) -> None:
        self._config, self._monitor, self._log, self._advise, self._probe = config, monitor, log, advise, probe
        self._device = choose_device(config.train.device)

    def write(self, name: str, **values: Any) -> None:
        """One line of `metrics`, `timing`, `diagnostics` or `probes`."""
        if self._log is not None:
            self._log.write(name, **values)

    def check(self) -> None:
        """Raises what the disk has refused to take, on the rank that writes."""
        if self._log is not None:
            self._log.check()

    def secure(self) -> None:
        """The record so far is on the disk. All ranks call it, before a checkpoint of the same steps."""
        with together():
            if self._log is not None:
                self._log.secure()

    def timing(self, step: int, spent: tuple[float, float], computed: float, residency: str) -> None:
        """Of one step: seconds that the loop waited for the batch and made its views, and those that it computed."""
        waited, _ = spent
        seconds = sum(spent) + computed
        speed, memory = self._config.train.batch_size / seconds, peak_memory(self._device)
        values = {"samples_per_s": speed, "data_wait": waited / seconds, "memory": memory}
        self.write("timing", step=step, **values, residency=residency)

    def probe(self, done: int, leaving: Callable[[], dict[str, Tensor]], is_last: bool = False) -> None:
        """Begins a probe of the weights after `done` steps where one is due, and writes what one has found meanwhile.

        `leaving` gives these weights, and is called on all ranks. The last probe is waited for.
        """
        if self._probe is None:
            return
        if is_last:
            self._wait_for(self._probe)
        lines = self._probe.start(done, leaving()) if is_last or self._probe.due(done) else []
        if is_last:
            self._wait_for(self._probe)
        self._write_probes(lines + self._probe.finished())

    def end_probe(self) -> None:
        """What still runs is stopped; what has ended is written, or told if it failed."""
        if self._probe is not None:
            self._write_probes(self._probe.stop())

    def _wait_for(self, probe: BackgroundProbe) -> None:
        """All ranks meet every now and then, so that none of them gives up on the one that measures."""
        while any(gather_objects(probe.is_running(wait_s=MEETING_S))):
            pass

    def _write_probes(self, lines: Lines) -> None:
        for line in lines:
            self.write("probes", **line)

    def is_due(self, step: int) -> bool:
        """Whether this step is diagnosed."""
        return step % self._config.train.diagnostics_every == 0 or step == self._config.train.steps - 1

    def diagnose(
        self,
        step: int,
        views: Sequence[Tensor],
        features: Float[Tensor, "view sample dim"],
        projections: Float[Tensor, "view sample proj"],
        patients: list[int],
        grad_norm: float,
    ) -> None:
        """Measures a step after its update; `views`, `features` and `projections` are those it trained on."""
        with together():
            numbers = self._monitor(step, views, features, projections, patients, grad_norm)
        self.write("diagnostics", **numbers, advice=self._advise(numbers))


@contextmanager
def open_observer(
    run: Path,
    start: int,
    config: PretrainConfig,
    monitor: Monitor,
    warn: Callable[[str], None] | None,
    probe: BackgroundProbe | None,
) -> Iterator[Observer]:
    """Cuts the log of the run at `start`, and closes it at the end. `warn` is told each advice when it first holds.

    A probe that has ended when the run stops is written, also where an error stops it.
    """
    with together():
        log = RunLog(run, start, config) if rank() == 0 else None
    with log or nullcontext(), probe or nullcontext():
        advise = Adviser(config, read_log(run, "diagnostics") if log is not None else [], warn)
        observer = Observer(config, monitor, log, advise, probe)
        try:
            yield observer
        except UserError:
            with suppress(OSError, UserError):  # that nothing can be written may be the error
                observer.end_probe()
            raise
        observer.end_probe()
