"""Where evaluation runs, and whether bf16 is faster there."""

from __future__ import annotations

import torch

from lejepa_med.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one. Raises ConfigError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name}: not known; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: not here ({torch.cuda.device_count()} CUDA devices found); use auto or cpu")
    return device


def use_bf16(precision: str, device: torch.device) -> bool:
    """`auto`: on GPUs with bf16, and on CPUs with instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
