"""Locks on files, which the kernel frees at any death.

Where there are none, on Windows and some file systems, taking one raises OSError, and callers go on without.
"""

from __future__ import annotations

import errno
import sys
from typing import IO

if sys.platform != "win32":
    import fcntl


def lock_stream(stream: IO[bytes], wait: bool = True) -> None:
    """Of the open file: processes that inherit it hold the lock too.

    Raises:
        BlockingIOError: another holds it, and `wait` is false.
        OSError: there are no locks here.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, "no locks here")
    fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_for_process(stream: IO[bytes]) -> None:
    """Of this process alone, without waiting; PermissionError, on some systems, means the same as BlockingIOError.

    Raises:
        BlockingIOError, PermissionError: another process holds it.
        OSError: there are no locks here.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, "no locks here")
    fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
