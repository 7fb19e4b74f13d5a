"""`prepare`, killed at any moment with all its processes, goes on to the same cache; two at once make one cache."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lejepa_med.config import IndexSettings
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data.cache import Cache, entry_path
from lejepa_med.data.index.archive import index

VOLUMES = 40
OVERRIDES = ("modality=mri", "compute.workers=2", "preprocess.spacing_mm=[1,1,1]")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`index` of 40 volumes, and `whole`: their cache, made without a disturbance."""
    folder = tmp_path_factory.mktemp("kills")
    for number in range(VOLUMES):
        array = np.random.default_rng(number).normal(100, 20, (64, 64, 48 + number % 5)).astype(np.float32)
        (folder / "scans" / f"sub-{number}").mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.1, 1.2, 1.3, 1.0])), folder / f"scans/sub-{number}/a.nii")
    index([folder / "scans"], folder / "index", IndexSettings(modality="mri", compute=ComputeConfig(workers=1)))
    began = time.monotonic()
    assert start(folder, "whole").wait() == 0
    (folder / "seconds").write_text(str(time.monotonic() - began))
    return folder


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    """The real command line, in a process group of its own."""
    command = [sys.executable, "-m", "lejepa_med", "prepare", str(folder / "index"), "--out", str(folder / out)]
    return subprocess.Popen(
        [*command, *OVERRIDES], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def contents(cache: Path) -> dict[str, bytes]:
    return {str(file.relative_to(cache)): file.read_bytes() for file in sorted(cache.rglob("*")) if file.is_file()}


def kill_and_go_on(folder: Path, kills: int, seed: int) -> None:
    """Waits for the first entry, so that the kills fall into the work and not into the start of Python."""
    whole, moments, disturbed = contents(folder / "whole"), random.Random(seed), 0
    for number in range(kills):
        shutil.rmtree(folder / "killed", ignore_errors=True)
        process = start(folder, "killed")
        give_up = time.monotonic() + 120
        while process.poll() is None and not list((folder / "killed").glob("volumes/*/*")):
            assert time.monotonic() < give_up
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.5) ** 2 * 2)
        disturbed += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
        assert start(folder, "killed").wait() == 0
        assert contents(folder / "killed") == whole, f"kill {number}"
    assert disturbed >= kills / 2


def test_three_kills(scans: Path) -> None:
    kill_and_go_on(scans, kills=3, seed=0)


@pytest.mark.long
def test_twenty_kills(scans: Path) -> None:
    kill_and_go_on(scans, kills=20, seed=1)


def test_two_at_once_make_one_cache(scans: Path) -> None:
    both = [start(scans, "shared") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(scans / "shared") == contents(scans / "whole")
    cache = Cache.open(scans / "shared")
    assert len(cache) == VOLUMES and all(entry_path(cache.folder, entry).exists() for entry in cache.table["entry"])
    assert cache.strays() == {"unlisted": [], "partial": [], "other": []}
