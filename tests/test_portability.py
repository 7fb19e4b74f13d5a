"""Other systems: no locks and no `pread` (Windows), and processes that start anew instead of forking (macOS too)."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import lejepa_med
from lejepa_med import machine
from lejepa_med.data.files.byte_window import Descriptor
from lejepa_med.file_locks import lock_for_process, lock_stream
from lejepa_med.training.run_folder import LOCK
from lejepa_med.training.run_lock import RunLock
from lejepa_med.whole_files import alone, is_partial, remove_abandoned, write_atomically

PACKAGE = Path(lejepa_med.__file__).parent
ONLY_POSIX = {
    "fcntl", "resource", "pwd", "grp", "termios", "pty", "os.fork", "os.forkpty", "os.getuid", "os.geteuid",
    "os.getloadavg", "os.sched_getaffinity", "os.posix_fadvise", "os.pread", "os.preadv", "os.sysconf", "os.statvfs",
    "os.memfd_create", "os.killpg", "os.getpgid", "os.setsid", "os.O_CLOEXEC", "os.O_DIRECT", "os.O_DIRECTORY",
    "os.mkfifo", "signal.SIGKILL", "signal.SIGCHLD", "signal.SIGUSR1", "signal.SIGUSR2", "signal.SIGALRM",
    "signal.SIGHUP", "signal.setitimer", "signal.alarm", "mmap.PROT_READ",
}  # fmt: skip
GUARDED = {
    "file_locks": {"fcntl"},
    "machine": {"resource", "os.getloadavg", "os.sched_getaffinity", "os.sysconf"},
    "compute": {"signal.SIGALRM", "signal.setitimer"},
    "data.prefetch": {"signal.SIGCHLD"},
    "data.dicom.codestream": {"os.memfd_create"},
    "data.files.byte_window": {"os.pread"},
    "training.data_path_stages": {"os.posix_fadvise", "mmap.PROT_READ"},
}
"""Each of these is behind a question whether the system has it."""


def names_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def test_what_only_posix_has_is_used_where_it_is_asked_for() -> None:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        used = ONLY_POSIX & set(names_in(ast.parse(file.read_text(encoding="utf-8"))))
        if used:
            found[".".join(file.relative_to(PACKAGE).with_suffix("").parts)] = used
    assert found == GUARDED


def test_no_process_is_forked() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("get_context", "set_start_method"):
                assert [word.value for word in node.args if isinstance(word, ast.Constant)] == ["spawn"], file.name


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "pread")


@pytest.mark.usefixtures("windows")
def test_without_locks_files_are_still_whole(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as stream:
        with pytest.raises(OSError, match="no locks here"):
            lock_stream(stream)
        with pytest.raises(OSError, match="no locks here"):
            lock_for_process(stream)
    with alone(tmp_path):
        write_atomically(tmp_path / "b", b"whole", durable=True)
    assert (tmp_path / "b").read_bytes() == b"whole"
    assert not [path.name for path in tmp_path.iterdir() if is_partial(path.name)]
    fresh = tmp_path / ".c.1f2e3d4c.partial"
    fresh.touch()
    assert remove_abandoned([tmp_path]) == 0, "its writer may live"
    os.utime(fresh, (0, 0))
    assert remove_abandoned([tmp_path]) == 1
    with RunLock(tmp_path) as lock:
        lock.take()
    assert (tmp_path / LOCK).exists()


@pytest.mark.usefixtures("windows")
def test_an_open_file_is_read_by_position(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(200)))
    file = Descriptor(os.open(tmp_path / "a", os.O_RDONLY))
    assert [file.read(150, 3), file.read(0, 2), file.read(199, 9)] == [bytes([150, 151, 152]), bytes([0, 1]), b"\xc7"]


@pytest.mark.usefixtures("windows")
def test_what_the_system_does_not_tell_is_zero() -> None:
    assert machine.peak_resident_bytes() == machine.total_memory() == 0


def test_what_this_system_tells() -> None:
    assert 10**7 < machine.peak_resident_bytes() < machine.total_memory()


PROGRAM = """
import multiprocessing
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch

import lejepa_med
from lejepa_med.cli.main import main


class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        return torch.rand(1, 20, 20, 20, generator=torch.Generator().manual_seed(number))


def pretrain(data, out, workers):
    views = {"num_local": 1, "global_size": [16, 16, 16], "local_size": [8, 8, 8], "base_crop_mm": None}
    views |= {"global_pitch_mm": None, "local_pitch_mm": None}
    torch.set_num_threads(1)
    settings = {"model.width": 0.125, "model.stem_pool": False, "data.workers": workers}
    settings |= {"data.holdout.test_fraction": 0.0, "data.monitor_fraction": 0.0}
    lejepa_med.pretrain(
        data, "resnet10_3d", out, train={"steps": 2, "batch_size": 2, "device": "cpu"}, views=views,
        projector={"hidden": 8, "dim": 4}, objective={"num_slices": 8}, **settings,
    )


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    for number in range(4):
        ball = np.random.default_rng(number).normal(10, 3, (20, 20, 20))
        ball[5:15, 5:15, 5:15] += 100 + 10 * number
        folder = Path("archive", f"sub-{number}")
        folder.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(ball.astype(np.float32), np.diag([-2, 2, 2, 1.0])), folder / "t1.nii.gz")
    assert main(["index", "archive", "--out", "index", "modality=mri", "compute.workers=2"]) == 0
    assert main(["prepare", "index", "--out", "cache", "preprocess.spacing_mm=[2,2,2]", "compute.workers=2"]) == 0
    pretrain("cache", "from_cache", 2)
    pretrain(Noise(), "by_spawned", 1)
    pretrain(Noise(), "alone", 0)
"""


@pytest.mark.long
def test_processes_that_start_anew(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("from_cache", "by_spawned", "alone")]
    assert all(json.loads(line)["step"] == number for text in records for number, line in enumerate(text.splitlines()))
    assert len(records[0].splitlines()) == 2
    assert records[1] == records[2], "the same batches from a process that started anew"
