"""Where a run computes and how: the device of this rank, bf16, deterministic kernels, the memory that was taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lejepa_med.config import PretrainConfig
from lejepa_med.distributed import started_ranks
from lejepa_med.errors import UserError
from lejepa_med.machine import peak_resident_bytes


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; under torchrun every rank of a node takes its own (LOCAL_RANK).

    Raises:
        UserError: a device that is not there, or one named for several ranks.
    """
    available = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if available else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise UserError(f"train.device {name}: no such device; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not available:
        raise UserError(f"train.device {name}: no CUDA device here; use cpu or auto")
    if device.type == "cuda" and started_ranks() > 1:
        if device.index is not None:
            raise UserError(f"train.device {name}: every rank needs a GPU of its own; use cuda or auto")
        place, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if place >= devices:
            raise UserError(f"train.device {name}: rank {place} of this node has no GPU, there are {devices}")
        return torch.device("cuda", place)
    return device


def uses_bf16(config: PretrainConfig, device: torch.device) -> bool:
    """Whether the forward pass runs under bf16 autocast."""
    if config.train.precision != "auto":
        return config.train.precision == "bf16"
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_fast_bf16()


def cpu_has_fast_bf16() -> bool:
    """AMX or AVX512-BF16: elsewhere bf16 on a CPU is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Inside, torch takes kernels that repeat to the bit and refuses others. Afterwards settings are as before."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device on CUDA, resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
