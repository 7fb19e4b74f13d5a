"""Limits of containers and jobs, as both versions of control groups write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lejepa_med import machine
from lejepa_med.machine import examine


@pytest.fixture(autouse=True)
def sixty_four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(48)), raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    common = {"proc/meminfo": "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    800 kB\nHugePages_Total:  7\n"}
    for name, text in (common | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_no_limits(tmp_path: Path) -> None:
    found = examine(write(tmp_path, {}))
    assert (found.cores, found.cores_present, found.cores_affinity, found.cores_limit) == (48, 64, 48, None)
    assert (found.memory_total, found.memory_free, found.memory_limit) == (1_024_000, 819_200, None)
    assert found.shared_memory_free is None
    (tmp_path / "dev/shm").mkdir(parents=True)
    assert (examine(tmp_path).shared_memory_free or 0) > 0


def test_control_groups_of_version_2(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/jobs/seven",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory",
        "sys/fs/cgroup/jobs/cpu.max": "350000 100000",
        "sys/fs/cgroup/jobs/memory.max": "500000",
        "sys/fs/cgroup/jobs/memory.current": "300000",
        "sys/fs/cgroup/jobs/memory.stat": "anon 100000\ninactive_file 150000\nactive_file 30000",
        "sys/fs/cgroup/jobs/seven/cpu.max": "max 100000",
        "sys/fs/cgroup/jobs/seven/memory.max": "max",
    }
    found = examine(write(tmp_path, files))
    assert (found.cores, found.cores_limit) == (3, 3.5)
    assert (found.memory_limit, found.memory_free) == (500_000, 380_000), "what the page cache holds can be had"


def test_control_groups_of_version_1_whose_own_folder_is_not_mounted(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "400000",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000",
    }
    found = examine(write(tmp_path, files))
    assert (found.cores, found.cores_limit) == (1, 0.5)
    assert (found.memory_limit, found.memory_free) == (400_000, 300_000)


@pytest.mark.parametrize(("quota", "limit"), [("-1", "9223372036854771712"), ("", ""), ("rubbish", "rubbish")])
def test_version_1_without_limits(tmp_path: Path, quota: str, limit: str) -> None:
    files = {
        "proc/self/cgroup": "5:memory:/\n4:cpu:/",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": limit,
    }
    found = examine(write(tmp_path, files))
    assert (found.cores_limit, found.memory_limit, found.memory_free) == (None, None, 819_200)


def test_a_system_without_these_files(tmp_path: Path) -> None:
    found = examine(tmp_path)
    assert (found.memory_total, found.memory_free, found.shared_memory_free) == (None, None, None)
    assert found.cores == 48


@pytest.mark.parametrize(("load", "busy"), [(79.0, False), (81.0, True)])
def test_a_busy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert examine(tmp_path).is_busy is busy, "of 64 cores"
