"""Reading checkpoints: nothing is loaded before its bytes are known to be those that were written.

Older formats are brought up to date by `_UPGRADES`; whatever cannot be used is refused with one sentence that names
the file, the newest other checkpoint that is whole, and what to do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from lejepa_med.errors import WeightsError
from lejepa_med.training.run_identity import other_run
from lejepa_med.whole_files import file_digest

FORMAT_VERSION = 3
State = dict[str, Any]
Which = Literal["latest", "best"]
_NAME = re.compile(r"step_(\d+)\.pt")


def load_checkpoint(folder: Path, which: Which = "latest", run: Mapping[str, str] | None = None) -> State:
    """The state that RUN/checkpoints/`which` names, with `step`, `config`, `spec`, `series`, `code_version`, `score`.

    `run` is what `describe_run` says of the run that asks; None: any run's checkpoint is good.

    Raises:
        WeightsError: none is there, or the one named is missing, damaged, foreign, newer or of another run.
    """
    file = _named(folder, which)
    problem = _unverified(file)
    if problem is None:
        state = _opened(file)
        if state is None:
            problem = "not written by lejepa-med"
        elif state["format"] > FORMAT_VERSION:
            raise WeightsError(f"checkpoint {file}: format {state['format']} is newer than this lejepa-med; upgrade it")
        else:
            state = _upgraded(state)
            others = other_run(state, run) if run is not None else []
            if not others:
                return state
            problem = f"of another run ({', '.join(others)} differ)"
    raise WeightsError(f"checkpoint {file}: {problem}; {_way_out(folder, which, file)}")


def has_checkpoint(run: Path) -> bool:
    """Whether a run has come to its first checkpoint, whatever has become of that."""
    folder = run / "checkpoints"
    return (folder / "latest").exists() or bool(numbered(folder))


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder by their steps, the first step first."""
    found = [(_NAME.fullmatch(file.name), file) for file in folder.glob("step_*.pt")]
    return sorted((int(match[1]), file) for match, file in found if match is not None)


def digest_file(file: Path) -> Path:
    """Where the SHA-256 of a checkpoint stands; while one replaces another under the same name, both of theirs."""
    return file.with_name(f"{file.name}.sha256")


def pointer(folder: Path, which: Which) -> list[str]:
    """The words of `latest` (a name) or `best` (a name and its held-out loss); none if it is missing or not ours."""
    try:
        words = (folder / which).read_text().split()
    except (OSError, UnicodeDecodeError):
        return []
    return words if words and _NAME.fullmatch(words[0]) else []


class Hashing:
    """A stream that knows the SHA-256 of what went through it.

    After an error it takes the rest without writing it, and `end` raises the error: an exception amid `torch.save`
    would reach torch's writer, which then fails on its own and hides the reason.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._hash = stream, hashlib.sha256()
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        self._hash.update(data)
        if self._error is None:
            try:
                self._stream.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """The stream's owner does it."""

    def end(self) -> str:
        """The digest in hexadecimal digits. Raises the OSError that came first."""
        if self._error is not None:
            raise self._error
        return self._hash.hexdigest()


def _named(folder: Path, which: Which) -> Path:
    words = pointer(folder, which)
    if words:
        return folder / words[0]
    whole = _newest_whole(folder, None)
    if which == "best" and not (folder / which).exists():
        raise WeightsError(f"{folder}: no checkpoint has a held-out loss; take `latest`")
    if whole is None and not numbered(folder):
        raise WeightsError(f"{folder}: no checkpoint to resume from; start without --resume")
    problem = "names no checkpoint" if (folder / which).exists() else "is missing"
    raise WeightsError(f"checkpoints {folder}: the file {which} {problem}; {_way_out(folder, which, None)}")


def _unverified(file: Path) -> str | None:
    """Why the bytes of a checkpoint are not known to be those that were written; None: they are."""
    if not file.exists():
        return "missing"
    digest = digest_file(file)
    if not digest.exists():
        return f"cannot be verified, for {digest.name} is missing"
    try:
        whole = file_digest(file) in digest.read_text().split()
    except (OSError, UnicodeDecodeError):
        return "cannot be read"
    return None if whole else "damaged, its bytes are not those that were written"


def _opened(file: Path) -> State | None:
    """None for anything but a checkpoint; nothing inside is executed."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # what torch raises on foreign bytes is not bounded
        return None
    ours = isinstance(state, dict) and type(state.get("format")) is int and type(state.get("step")) is int
    return state if ours and state["format"] >= 1 else None


def _newest_whole(folder: Path, but: Path | None) -> Path | None:
    others = (file for _, file in reversed(numbered(folder)) if file != but)
    return next((file for file in others if _unverified(file) is None), None)


def _way_out(folder: Path, which: Which, bad: Path | None) -> str:
    whole = _newest_whole(folder, bad)
    if whole is None:
        return "no other one is whole: start a new run"
    return f"{whole.name} is whole: write this name into {folder / which} to go on from there"


def _upgraded(state: State) -> State:
    while state["format"] < FORMAT_VERSION:
        state = _UPGRADES[state["format"]](state)
    return state


def _from_1(state: State) -> State:
    """Format 1 did not say of which run it is, nor how good."""
    new = {"config": "", "spec": "", "series": "", "code_version": "", "score": None, "average": None}
    return {**state, **new, "format": 2}


def _from_2(state: State) -> State:
    """Format 2 was of one rank: it had the random state of the CPU, not a list of those of all ranks."""
    return {**state, "rng": [{"cpu": state["rng"]}], "format": 3}


_UPGRADES: dict[int, Callable[[State], State]] = {1: _from_1, 2: _from_2}
"""From a format to the next one."""
