"""What this process may use of its machine: cores, memory, shared memory, open files. Containers and job schedulers
grant less than there is, and say so in files of the control group; a limit that is not set is None.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 1 << 60  # version 1 of control groups writes a huge number where there is no limit


@dataclass(frozen=True)
class Machine:
    """Cores and bytes. `cores` may be used of `cores_present`; `memory_free` is within the limit, if there is one.

    `load` is the mean number of processes that ran or waited for a core during the last minute.
    """

    cores: int
    cores_present: int
    cores_affinity: int
    cores_limit: float | None
    memory_total: int | None
    memory_free: int | None
    memory_limit: int | None
    shared_memory_free: int | None
    open_files: int | None
    open_files_hard: int | None
    load: float | None = None

    @property
    def is_busy(self) -> bool:
        """Whether other work waits for cores, so that what is measured now is slower than it could be."""
        return self.load is not None and self.load > 1.25 * self.cores_present


def examine(root: Path = Path("/")) -> Machine:
    """The machine whose /proc, /sys and /dev lie under `root`."""
    present, affinity = os.cpu_count() or 1, _affinity()
    limit = _cores_limit(root)
    total, free = _meminfo(root)
    memory_limit, used = _memory_limit(root)
    if memory_limit is not None:
        free = min(memory_limit - used, memory_limit if free is None else free)
    soft, hard = _open_files()
    return Machine(
        cores=max(1, min(present, affinity, int(limit) if limit is not None else present)),
        cores_present=present,
        cores_affinity=affinity,
        cores_limit=limit,
        memory_total=total,
        memory_free=None if free is None else max(0, free),
        memory_limit=memory_limit,
        shared_memory_free=free_bytes(root / "dev/shm"),
        open_files=soft,
        open_files_hard=hard,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def free_bytes(folder: Path) -> int | None:
    """Bytes that may still be written there; None where there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def peak_resident_bytes() -> int:
    """The most memory that this process has had at once; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def total_memory() -> int:
    """Bytes of memory of the whole machine; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _meminfo(root: Path) -> tuple[int | None, int | None]:
    """Total and available bytes."""
    found: dict[str, int | None] = {"MemTotal": None, "MemAvailable": None}
    for line in _text(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        number = value.strip().removesuffix(" kB")
        if key in found and number.isdigit():
            found[key] = int(number) * 1024
    return found["MemTotal"], found["MemAvailable"]


def _control_groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and its parents; those of version 1 lie under their controller."""
    cgroups = root / "sys/fs/cgroup"
    unified = (cgroups / "cgroup.controllers").exists()
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if (unified and names == "") or controller in names.split(","):
            top = cgroups if unified else cgroups / controller
            inside = top / path.strip("/")
            return [inside, *(parent for parent in inside.parents if parent.is_relative_to(top))]
    return []


def _cores_limit(root: Path) -> float | None:
    limits = []
    for folder in _control_groups(root, "cpu"):
        quota, period = [*_text(folder / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _memory_limit(root: Path) -> tuple[int | None, int]:
    """The tightest limit, and the bytes used under it that the kernel cannot give back at once."""
    tightest: tuple[int | None, int] = (None, 0)
    for folder in _control_groups(root, "memory"):
        limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        if not limit.isdigit() or int(limit) >= _UNLIMITED:
            continue
        if tightest[0] is None or int(limit) < tightest[0]:
            used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
            kept = dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines() if " " in line)
            pages = int(kept.get("inactive_file", 0)) + int(kept.get("active_file", 0))
            tightest = int(limit), max(0, int(used or 0) - pages)
    return tightest


def _open_files() -> tuple[int | None, int | None]:
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return tuple(None if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))  # type: ignore[return-value]


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
