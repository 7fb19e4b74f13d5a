"""Convolutions of maps of a few voxels, where a CPU's kernels are wrong: in float32, longer than the kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """nn.Conv3d; where a map is tiny on a CPU in float32 also under bf16 autocast, elsewhere torch's to the bit."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        missing = _voxels_missing(input, self)
        if any(missing) and not isinstance(self.padding, str):
            sizes = zip(input.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
            d, h, w = ((side + 2 * pad - length) // step + 1 for side, length, step, pad in sizes)
            longer = nn.functional.pad(input, [count for axis in reversed(missing) for count in (0, axis)])
            return self._conv_forward(longer, weight, bias)[:, :, :d, :h, :w]
        if not _bf16_is_wrong_here(input, self.kernel_size, self.stride):
            unchanged: Tensor = super()._conv_forward(input, weight, bias)
            return unchanged
        with torch.autocast("cpu", enabled=False):
            exact: Tensor = super()._conv_forward(input.float(), weight.float(), None if bias is None else bias.float())
        return exact


class Conv2d(nn.Conv2d):
    """nn.Conv2d; a strided one of a map that is one pixel wide is in float32 on a CPU, elsewhere torch's to the bit.

    Under bf16 autocast its weight gradient comes from uninitialised memory (torch 2.15, AVX512-BF16).
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        thin = any(side == 1 and step > 1 for side, step in zip(input.shape[2:], self.stride, strict=True))
        if not thin or input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            unchanged: Tensor = super()._conv_forward(input, weight, bias)
            return unchanged
        with torch.autocast("cpu", enabled=False):
            exact: Tensor = super()._conv_forward(input.float(), weight.float(), None if bias is None else bias.float())
        return exact


def keep_tiny_maps_in_float32(module: nn.Module) -> None:
    """Every nn.Conv2d and nn.Conv3d inside `module` becomes one of the above; parameters, names and hooks stay."""
    for part in module.modules():
        if type(part) is nn.Conv3d:
            part.__class__ = Conv3d  # in place: no parent or optimizer has to be told
        elif type(part) is nn.Conv2d:
            part.__class__ = Conv2d


def _voxels_missing(x: Tensor, conv: nn.Conv3d) -> list[int]:
    """Zeros to add at the end of each axis: a CPU's strided kernel of 7 on a map of 5 to 7 voxels is wrong.

    In float32 too: gradients of the weight come from uninitialised memory, and writes go past the end of an array
    (torch 2.15). More zeros behind the padding change no value; outputs that see only them are cut off.
    """
    if x.device.type != "cpu" or max(conv.stride) == 1:
        return [0, 0, 0]
    sides = zip(x.shape[2:], conv.kernel_size, strict=True)
    return [length + 1 - side if side <= length and length >= 7 else 0 for side, length in sides]


def _bf16_is_wrong_here(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """bf16 conv3d on a CPU gives wrong weight gradients where a kernel is about as long as the map, and may crash.

    Kernel 3 where 2 voxels come out, kernel 7 with stride 2 on 5 (a crash) to 7 voxels, depthwise kernel 7 on 6: they
    come from uninitialised memory (torch 2.15, AVX512-BF16; see tests/backbones/test_tiny_maps.py). Output 1 with
    stride 2: wrong values with AMX (pytorch issue 169688).
    """
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    shortest = (max(4, 2 * step, length + 1) for length, step in zip(kernel, stride, strict=True))
    return any(side <= limit for side, limit in zip(x.shape[2:], shortest, strict=True))
