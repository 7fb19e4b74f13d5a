"""Which kernel sums the empirical characteristic function, and autograd through it: recomputed, not stored.

    eager     plain PyTorch, everywhere                                     eager_kernel
    compiled  torch.compile, on a CPU or CUDA; slow to start                inductor_kernel
    cpp       C++ for the CPU, needs a C++ compiler, a second to start      cpp_kernel
    triton    written for CUDA                                              triton_kernel
`auto`: CUDA takes triton if it can be imported, else eager (a choice still to be confirmed by a measurement on a GPU).
The CPU takes cpp from `CPP_FROM` projections on and where a compiler works, else eager. `compiled` is taken only when
asked for: on a CPU it takes 20 s to a minute to start, and then is no faster than cpp on large problems. The choice
depends on the shape and the machine only, so that a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from lejepa_med.errors import ConfigError
from lejepa_med.objective import eager_kernel

Kernel = Literal["auto", "eager", "compiled", "cpp", "triton"]

CPP_FROM = 2**16
"""views x samples x slices. Below, a step gains less than 2 ms, and the second of compiling takes 500 steps to pay."""

_log = logging.getLogger(__name__)


def characteristic_sums(x: Tensor, num_knots: int, step: float, kernel: Kernel = "auto") -> Tensor:
    """sum_n cos(t_k x_n) and sum_n sin(t_k x_n) at t_k = k step: `[*batch, n, slice]` -> `[2, knot, *batch, slice]`.

    Raises ConfigError where a kernel other than `auto` cannot run.
    """
    flat = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:]).contiguous()  # -1 fails on a rank without samples
    sums: Tensor = _Sums.apply(flat, num_knots, step, _module(kernel, flat))
    return sums.view(2, num_knots, *x.shape[:-2], x.shape[-1])


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_knots: int, step: float, kernel: ModuleType) -> Tensor:
        ctx.save_for_backward(x)
        ctx.step, ctx.kernel = step, kernel
        sums: Tensor = kernel.sums(x, num_knots, step)
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.kernel.gradient(x, upstream.contiguous(), ctx.step), None, None, None


def _module(kernel: Kernel, x: Tensor) -> ModuleType:
    """The implementation that `kernel` means for these projections."""
    if kernel == "auto":
        return _automatic(x)
    if kernel == "eager":
        return eager_kernel
    module = {"compiled": _inductor, "cpp": _cpp, "triton": _triton}[kernel]()
    if isinstance(module, str):
        raise ConfigError(f"objective.kernel {kernel}: {module}; choose auto or eager")
    here, wanted = x.device.type, {"cpp": "cpu", "triton": "cuda"}.get(kernel, x.device.type)
    if here != wanted and not (kernel == "triton" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise ConfigError(
            f"objective.kernel {kernel} runs on {wanted}, the embeddings are on {here}; choose auto or eager"
        )
    return module


def _automatic(x: Tensor) -> ModuleType:
    if x.device.type == "cuda":
        kernel = _triton()
    elif x.device.type == "cpu" and x.numel() >= CPP_FROM:
        kernel = _cpp()
    else:
        return eager_kernel
    if isinstance(kernel, str):
        _warn_once(kernel)
        return eager_kernel
    return kernel


@cache
def _cpp() -> ModuleType | str:
    """The C++ kernel, compiled, or why there is none."""
    from lejepa_med.objective import cpp_kernel

    try:
        cpp_kernel.library()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"no C++ compiler works here ({type(error).__name__})"
    return cpp_kernel


@cache
def _inductor() -> ModuleType | str:
    """The kernel of torch.compile, or why there is none: whether it works is tried on something small."""
    from lejepa_med.objective import inductor_kernel

    try:
        torch.compile(torch.cos, fullgraph=True)(torch.zeros(2))
    except Exception as error:  # a compiler that fails raises many kinds
        return f"torch.compile does not work here ({type(error).__name__})"
    return inductor_kernel


@cache
def _triton() -> ModuleType | str:
    """The Triton kernel, or why there is none."""
    try:
        from lejepa_med.objective import triton_kernel
    except ImportError:
        return "triton is not installed"
    return triton_kernel


@cache
def _warn_once(reason: str) -> None:
    _log.warning("SIGReg runs on its slower kernel: %s", reason)
