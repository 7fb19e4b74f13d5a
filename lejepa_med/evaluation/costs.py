"""What a piece of work costs: seconds, processor and GPU time, memory, and energy where a counter can be read."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lejepa_med.machine import peak_resident_bytes

_RAPL = Path("/sys/class/powercap")


class Meter:
    """Measures what runs inside `with`; `numbers` afterwards.

    `seconds`, `cpu_seconds` (all threads of this process), `peak_bytes` (of the process so far); on a GPU also
    `gpu_seconds` (until it is idle again) and `gpu_peak_bytes`; `energy_joules` of processor packages (RAPL) and of
    the GPU (NVML), everything that runs there included, where the counters can be read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.numbers: dict[str, float] = {}

    def __enter__(self) -> Meter:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._energy = energy_joules(self.device)
        self._cpu, self._began = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # after an error of the device
                torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._began
        self.numbers = {"seconds": round(seconds, 4), "cpu_seconds": round(time.process_time() - self._cpu, 4)}
        self.numbers["peak_bytes"] = float(peak_bytes())
        if self.device.type == "cuda":
            self.numbers["gpu_seconds"] = round(seconds, 4)
            self.numbers["gpu_peak_bytes"] = float(torch.cuda.max_memory_allocated(self.device))
        spent = energy_joules(self.device)
        if self._energy is not None and spent is not None and spent >= self._energy:
            self.numbers["energy_joules"] = round(spent - self._energy, 3)


def peak_bytes() -> int:
    """The most memory that this process has had at once."""
    return peak_resident_bytes()


def energy_joules(device: torch.device, rapl: Path = _RAPL) -> float | None:
    """Energy counters of the processor packages and of the GPU, together; None where none can be read."""
    found = []
    for file in sorted(rapl.glob("intel-rapl:[0-9]*/energy_uj")):
        if file.parent.name.count(":") == 1:  # packages; their parts are counted in them
            with contextlib.suppress(OSError, ValueError):
                found.append(int(file.read_text()) / 1e6)
    gpu = _gpu_joules(device) if device.type == "cuda" else None
    return sum(found) + (gpu or 0.0) if found or gpu is not None else None


def _gpu_joules(device: torch.device) -> float | None:
    try:
        import pynvml  # type: ignore[import-not-found]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except Exception:  # a driver without this counter, or without permission
        return None
