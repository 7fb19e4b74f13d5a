"""C++ sources that are built by the machine's own compiler at first use, for the kernels of objective and views.

No headers of PyTorch and no build system: one file, one or two seconds, nothing left on disk.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_SECONDS = 120


def build_library(source: str, *flags: str) -> ctypes.CDLL:
    """The functions of a C++ source, compiled for this machine by `CXX` or else the first compiler found.

    Raises OSError, ValueError or subprocess.SubprocessError where that is impossible.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")
    with tempfile.TemporaryDirectory() as folder:
        written, built = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        written.write_text(source, encoding="utf-8")
        command = [*shlex.split(compiler), *_FLAGS, *flags, str(written), "-o", str(built)]
        try:
            subprocess.run([*command, "-march=native"], check=True, capture_output=True, timeout=_SECONDS)
        except subprocess.CalledProcessError:  # some compilers do not know their machine
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        return ctypes.CDLL(str(built))  # stays loaded when the file is gone
