"""Checkpoints that are whole or not there, written while training goes on.

    RUN/checkpoints/step_500.pt          everything that the next step depends on, with config, spec and code version
    RUN/checkpoints/step_500.pt.sha256   verified before anything is loaded
    RUN/checkpoints/latest               the name of the newest one
    RUN/checkpoints/best                 the name of the one with the lowest held-out loss, and that loss
Written under a temporary name, flushed to disk, renamed, named in `latest`; only then older ones are removed.
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import IO, cast

import torch

from lejepa_med._version import __version__
from lejepa_med.errors import UserError
from lejepa_med.training.checkpoint_file import (
    FORMAT_VERSION,
    Hashing,
    State,
    Which,
    digest_file,
    load_checkpoint,
    numbered,
    pointer,
)
from lejepa_med.training.host_copy import HostCopy
from lejepa_med.training.run_identity import describe_run
from lejepa_med.whole_files import DiskError, cannot_write, remove_abandoned, whole_file, write_atomically


class Checkpoints:
    """The last `keep` checkpoints of a run, and its best. One process saves; at most one write is under way.

    What went wrong while writing is raised by the next `save` or `check`, or by `close`, as one sentence that names
    the last good checkpoint. A `with` block closes; if it ends with an error of its own, that one is raised.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.folder, self.keep = run, run / "checkpoints", keep
        self._host = HostCopy()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, state: State, score: float | None = None) -> None:
        """Copies the state after `step` steps and returns; it is on disk some time later, at the latest at `close`.

        `score`: a held-out loss, lower is better; None or not a number: not scored.

        Raises:
            UserError: the one before could not be written, as when the disk is full.
        """
        self._finish()
        if score is not None and not math.isfinite(score):
            score = None
        about = {"format": FORMAT_VERSION, "step": step, "code_version": __version__, "score": score}
        copied = self._host.copy({**state, **about})  # before anything that can fail: other ranks may gather with it
        copied |= describe_run(self.run)
        self._writing = self._thread.submit(self._write, copied)

    def wait(self) -> None:
        """Returns when the one before is on disk. Raises UserError if it is not."""
        self._finish()

    def check(self) -> None:
        """Raises what stopped the writer, if it has already been stopped; does not wait."""
        if self._writing is not None and self._writing.done():
            self._finish()

    def close(self) -> None:
        """Returns when everything is on disk. Raises UserError if it is not."""
        self._thread.shutdown()
        self._finish()

    def load(self, which: Which = "latest") -> State:
        """The newest or best checkpoint of this run. Raises WeightsError, as `load_checkpoint` does."""
        self._finish()
        return load_checkpoint(self.folder, which, describe_run(self.run))

    def last_good(self, until: int | None = None) -> str:
        """The end of a sentence that says where one can go on; waits for the writer.

        `until`: those of more steps hold weights that are no good.
        """
        if self._writing is not None:
            wait([self._writing])
        found = numbered(self.folder)
        good = [file.name for step, file in found if until is None or step <= until]
        if found and not good:
            return "every checkpoint that is kept is of a later step than the last good one"
        return f"the last good checkpoint is {good[-1]}" if found and until is not None else self._last_good()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._thread.shutdown()

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _last_good(self) -> str:
        names = pointer(self.folder, "latest")
        return f"the last good checkpoint is {names[0]}" if names else "there is no checkpoint yet"

    def _write(self, state: State) -> None:
        self._host.wait()
        try:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                remove_abandoned([self.folder])
                name = self._write_file(state).name
                write_atomically(self.folder / "latest", name.encode(), durable=True)
                if state["score"] is not None and state["score"] < self._best_score():
                    write_atomically(self.folder / "best", f"{name}\n{state['score']!r}\n".encode(), durable=True)
                self._remove_old(state["step"])
            except OSError as error:
                raise cannot_write(self.folder, error) from None
        except DiskError as error:
            raise UserError(
                f"training stopped at the checkpoint of step {state['step']}: {error.problem}; "
                f"{self._last_good()}; {error.remedy}, then go on with --resume"
            ) from None

    def _write_file(self, state: State) -> Path:
        """The digest comes first: at every moment it fits the file of this name, be it the old one or the new."""
        file = self.folder / f"step_{state['step']}.pt"
        digest = digest_file(file)
        replaced = digest.read_text().split() if file.exists() and digest.exists() else []
        try:
            with whole_file(file, durable=True) as stream:
                hashing = Hashing(stream)
                torch.save(state, cast(IO[bytes], hashing))
                written = hashing.end()
                write_atomically(digest, " ".join([written, *replaced]).encode(), durable=True)
            if replaced:
                write_atomically(digest, written.encode(), durable=True)
        except BaseException:
            if not file.exists():
                digest.unlink(missing_ok=True)
            raise
        return file

    def _best_score(self) -> float:
        """Infinity while none is scored, or the best one is gone."""
        words = pointer(self.folder, "best")
        try:
            return float(words[1]) if (self.folder / words[0]).exists() else math.inf
        except (IndexError, ValueError):
            return math.inf

    def _remove_old(self, step: int) -> None:
        """Later ones are those that a resume from an earlier one has left behind."""
        found = numbered(self.folder)
        kept = {file.name for file in [file for number, file in found if number <= step][-self.keep :]}
        kept.update(pointer(self.folder, "best")[:1])
        for _, file in found:
            if file.name not in kept:
                file.unlink(missing_ok=True)
        for digest in self.folder.glob("step_*.pt.sha256"):
            if digest.name.removesuffix(".sha256") not in kept:
                digest.unlink(missing_ok=True)
