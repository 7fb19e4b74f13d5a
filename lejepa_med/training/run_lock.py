"""One process at a time trains in a run directory: the first rank holds a lock on RUN/.lock until it ends.

The kernel frees it at any death. It is of the process alone: loader processes that outlive a killed run don't keep it.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from lejepa_med.errors import OutputExistsError
from lejepa_med.file_locks import lock_for_process
from lejepa_med.training.run_folder import LOCK


class RunLock:
    """Taken by `take`, given back at the end of a `with` block; without effect where locks do not work."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Once taken it stays; a folder that is not there yet is not locked.

        Raises:
            OutputExistsError: another process trains in this folder.
        """
        if self._file is not None:
            return
        try:
            file = (self._run / LOCK).open("ab")
        except OSError:  # what is written next says why
            return
        try:
            lock_for_process(file)
        except (BlockingIOError, PermissionError):
            file.close()
            raise OutputExistsError(
                f"run {self._run}: another process trains in this folder; wait for its end, or choose another --out"
            ) from None
        except OSError:  # a network file system without locks
            pass
        self._file = file

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
