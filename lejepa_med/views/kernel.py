"""Views on a CPU by C++ that is built at first use: only weights that are not zero, source voxels read as stored.

Each call makes one view on the calling thread and leaves Python's lock free, so that samples run side by side.
Without a compiler the same is done by PyTorch, several times slower (docs/design/views.md).
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lejepa_med.compiling import build_library
from lejepa_med.views.grids import Grids
from lejepa_med.views.intensity import Intensity
from lejepa_med.views.kernel_source import SOURCE

STORED = (torch.uint8, torch.int16, torch.float32)
"""Types of base crops that are read without a copy."""


class _Geometry(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64 * 3) for name in ("size", "grid", "out")),
        *((name, ctypes.c_int64) for name in ("channels", "tilted")),
        *((name, ctypes.c_double * 3) for name in ("start", "pitch", "half", "origin")),
        ("matrix", ctypes.c_double * 9),
        ("edge", ctypes.c_double * 3),
        ("air", ctypes.c_double),
    )


class _Look(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_int64 * 3),
        *((name, ctypes.c_double) for name in ("low", "scale", "gamma", "contrast")),
        ("bias", ctypes.c_double * 9),
        ("noise_std", ctypes.c_double),
    )


@cache
def available() -> bool:
    """True if this machine can build the source."""
    try:
        library()
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    return True


@cache
def library() -> ctypes.CDLL:
    """Compiles and loads the source. Raises OSError, ValueError or SubprocessError where that is impossible."""
    return build_library(SOURCE)


def resample_sample(image: Tensor, views: Tensor, grids: Grids, sample: int, air: float) -> None:
    """All views `[view, channel, *size]` of one base crop `[channel, *spatial]`, by row `sample` of `grids`."""
    function = getattr(library(), f"resample_{str(image.dtype).removeprefix('torch.')}")
    tilted = grids.tilted[sample].tolist()
    largest = max((n for n, t in zip(grids.count[sample].prod(-1).tolist(), tilted, strict=True) if t), default=0)
    scratch = torch.empty(largest)
    rows = [x[sample].tolist() for x in (grids.count, grids.start, grids.pitch, grids.half, grids.origin, grids.edge)]
    matrices = grids.matrix[sample].tolist()
    for view, (count, start, pitch, half, origin, edge) in enumerate(zip(*rows, strict=True)):
        geometry = _Geometry(
            size=_three(image.shape[1:], 1),
            grid=_three(count, 1),
            out=_three(views.shape[2:], 1),
            channels=image.shape[0],
            tilted=tilted[view],
            start=_three(start, 0.0),
            pitch=_three(pitch, 1.0),
            half=_three(half, 1.0),
            origin=_three(origin, 0.5),
            matrix=_nine(matrices[view]),
            edge=_three(edge, 1.0),
            air=air,
        )
        function(_pointer(image), _pointer(views[view]), _pointer(scratch), ctypes.byref(geometry))


def look_sample(views: Tensor, draw: Intensity, sample: int, is_ct: bool) -> None:
    """Intensity of all views `[view, channel, *size]` of one sample, in place."""
    generator = draw.noise_key[sample].clone_state()
    function, (axes, channels) = library().intensity, (views.ndim - 2, views.shape[1])
    values = [x[sample].tolist() for x in (draw.window, draw.gamma, draw.contrast, draw.bias, draw.noise_std)]
    noise = torch.empty(views.shape[1:])
    for view, (window, gamma, contrast, bias, noise_std) in enumerate(zip(*values, strict=True)):
        noisy = any(noise_std)
        if noisy:
            torch.randn(views.shape[1:], generator=generator, out=noise)
        low, high = window if is_ct else (0.0, 255.0)
        for channel in range(channels):
            look = _Look(
                size=_three(views.shape[2:], 1),
                low=low,
                scale=1 / (high - low),
                gamma=gamma[channel],
                contrast=contrast[channel],
                bias=_polynomial(bias[channel], axes),
                noise_std=noise_std[channel],
            )
            extra = _pointer(noise[channel]) if noise_std[channel] else None
            function(_pointer(views[view, channel]), extra, ctypes.byref(look))


def _three(values: Sequence[Any], missing: Any) -> tuple[Any, ...]:
    """2D as 3D with a first axis of one voxel."""
    return (*[missing] * (3 - len(values)), *values)


def _nine(matrix: list[list[float]]) -> ctypes.Array[ctypes.c_double]:
    axes, out = len(matrix), [0.0] * 9
    for row in range(axes):
        for column in range(axes):
            out[3 * (row + 3 - axes) + column + 3 - axes] = matrix[row][column]
    return (ctypes.c_double * 9)(*out)


def _polynomial(bias: list[float], axes: int) -> ctypes.Array[ctypes.c_double]:
    """Terms u, v, w, uu, uv, uw, vv, vw, ww; in 2D those without u."""
    terms = bias if axes == 3 else [0.0, bias[0], bias[1], 0.0, 0.0, 0.0, *bias[2:]]
    return (ctypes.c_double * 9)(*terms)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return ctypes.c_void_p(tensor.data_ptr())
