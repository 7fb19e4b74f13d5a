"""How each view looks: MRI on [0, 1] (gamma, bias field, contrast, noise), CT by a random window in HU, then noise.

Drawn first from one generator per sample, applied later; `x` is `[N, V, C, *spatial]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lejepa_med.config import ViewsConfig


@dataclass(frozen=True)
class Intensity:
    """Parameters of every view, with the neutral value where an augmentation was not drawn."""

    gamma: Float[Tensor, "N V"]
    contrast: Float[Tensor, "N V"]
    bias: Float[Tensor, "N V term"]
    noise_std: Float[Tensor, "N V"]
    window: Float[Tensor, "N V 2"]
    noise_key: list[torch.Generator]

    def rows(self, chosen: slice) -> Intensity:
        """The same for some samples."""
        return Intensity(
            self.gamma[chosen],
            self.contrast[chosen],
            self.bias[chosen],
            self.noise_std[chosen],
            self.window[chosen],
            self.noise_key[chosen],
        )


def draw_intensity(
    config: ViewsConfig, views: int, axes: int, is_ct: Bool[Tensor, " N"], generators: list[torch.Generator]
) -> Intensity:
    """Parameters for `views` views of every sample; `is_ct` says which samples are windowed."""
    mri, ct, terms = config.mri, config.ct, _num_terms(axes)
    uniform = torch.stack([torch.rand(views, 9 + terms, generator=g) for g in generators])
    on, value, free = uniform[..., :4], uniform[..., 4:8], uniform[..., 8:]
    low, high = (math.log(bound) for bound in mri.gamma)
    gamma = torch.where(on[..., 0] < mri.gamma_probability, (low + (high - low) * value[..., 0]).exp(), 1.0)
    contrast = mri.contrast[0] + (mri.contrast[1] - mri.contrast[0]) * value[..., 1]
    contrast = torch.where(on[..., 1] < mri.contrast_probability, contrast, 1.0)
    amplitude = torch.where(on[..., 2] < mri.bias_probability, mri.bias_field * value[..., 2], 0.0)
    shape = 2 * free[..., 1:] - 1
    bias = amplitude[..., None] * shape / shape.abs().sum(-1, keepdim=True)
    ranges = [(mri.noise_std, mri.noise_probability), (ct.noise_std, ct.noise_probability)]
    mri_noise, ct_noise = (
        torch.where(on[..., 3] < chance, lo + (hi - lo) * value[..., 3], 0.0) for (lo, hi), chance in ranges
    )
    centre = ct.window_centre_hu[0] + (ct.window_centre_hu[1] - ct.window_centre_hu[0]) * value[..., 0]
    low, high = (math.log(bound) for bound in ct.window_width_hu)
    half = (low + (high - low) * free[..., 0]).exp() / 2
    tomography = is_ct[:, None]
    return Intensity(
        gamma=torch.where(tomography, 1.0, gamma),
        contrast=torch.where(tomography, 1.0, contrast),
        bias=torch.where(tomography[..., None], 0.0, bias),
        noise_std=torch.where(tomography, ct_noise, mri_noise),
        window=torch.stack([centre - half, centre + half], -1),
        noise_key=generators,
    )


def apply_intensity(
    x: Float[Tensor, "N V C *spatial"], draw: Intensity, is_ct: Bool[Tensor, " N"]
) -> Float[Tensor, "N V C *spatial"]:
    """Views in [0, 1]. Input: MRI and images 0..255, CT in HU; it is overwritten."""
    axes = x.ndim - 3
    tail = (1,) * (axes + 1)
    if bool(is_ct.any()):
        low, high = (bound.to(x.device).view(*bound.shape, *tail) for bound in draw.window.unbind(-1))
        windowed = (x - low) / (high - low)
        x = torch.where(is_ct.to(x.device).view(-1, 1, *tail), windowed, x / 255.0).clamp_(0, 1)
    else:
        x = x.mul_(1 / 255.0).clamp_(0, 1)
    gamma, contrast = (value.to(x.device).view(*value.shape, *tail) for value in (draw.gamma, draw.contrast))
    x = x.pow_(gamma).mul_(contrast)
    if bool((draw.bias != 0).any()):
        basis = _polynomials(tuple(x.shape[3:])).to(x.device)
        field = torch.tensordot(draw.bias.to(x.device), basis, dims=1)
        x = x.mul_(field.exp_().unsqueeze(2))
    for sample, generator in enumerate(draw.noise_key):  # on the CPU, view by view: every device sees the same noise
        key = generator.clone_state()  # a draw can be applied again
        for view in draw.noise_std[sample].nonzero().flatten().tolist():
            noise = torch.randn(x.shape[2:], generator=key) * draw.noise_std[sample, view]
            x[sample, view].add_(noise.to(x.device))
    return x.clamp_(0, 1)


def _num_terms(axes: int) -> int:
    return 2 * axes + axes * (axes - 1) // 2


def _polynomials(size: tuple[int, ...]) -> Float[Tensor, " term *spatial"]:
    """First and second order polynomials on [-1, 1], without the constant."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, side) for side in size], indexing="ij")
    pairs = [axes[i] * axes[j] for i in range(len(axes)) for j in range(i, len(axes))]
    return torch.stack([*axes, *pairs])
