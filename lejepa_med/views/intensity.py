"""How each view looks: MRI on [0, 1] (gamma, bias field, contrast, noise, ringing), CT by a random window, then noise.

Drawn first from one generator per sample, applied later; `x` is `[N, V, C, *spatial]`. PET and pictures are treated as
MRI. The window is one for all channels of a CT: how much a phase is enhanced stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lejepa_med.config import ViewsConfig
from lejepa_med.config.views import MriIntensityConfig
from lejepa_med.randomness import generator


@dataclass(frozen=True)
class Intensity:
    """Parameters of every view, with the neutral value where an augmentation was not drawn."""

    gamma: Float[Tensor, "N V C"]
    contrast: Float[Tensor, "N V C"]
    bias: Float[Tensor, "N V C term"]
    noise_std: Float[Tensor, "N V C"]
    window: Float[Tensor, "N V 2"]
    gibbs_kept: Float[Tensor, "N V"]
    gibbs_axis: Int[Tensor, "N V"]
    noise_key: list[torch.Generator]

    def rows(self, chosen: slice) -> Intensity:
        """The same for some samples."""
        return Intensity(
            self.gamma[chosen],
            self.contrast[chosen],
            self.bias[chosen],
            self.noise_std[chosen],
            self.window[chosen],
            self.gibbs_kept[chosen],
            self.gibbs_axis[chosen],
            self.noise_key[chosen],
        )


def draw_intensity(
    config: ViewsConfig,
    views: int,
    axes: int,
    is_ct: Bool[Tensor, " N"],
    generators: list[torch.Generator],
    channels: int = 1,
    sequences: list[str] | None = None,
) -> Intensity:
    """Parameters for `views` views of every sample; `is_ct` says which samples are windowed.

    `sequences` names the MRI sequence of each sample, for `mri_by_sequence`. Channels after the first are drawn from
    generators of their own, so that the first is the same for any number of them.
    """
    settings = [config.mri_by_sequence.get(name, config.mri) for name in sequences or [""] * len(is_ct)]
    first = _draw_channel(config, settings, views, axes, is_ct, generators)
    shared = config.intensity_channels == "shared"
    if channels == 1 or shared or (config.intensity_channels == "auto" and axes == 2 and channels == 3):
        every = [first] * channels
    else:
        seeds = [
            [generator("channel", g.initial_seed(), channel) for g in generators] for channel in range(1, channels)
        ]
        every = [first, *(_draw_channel(config, settings, views, axes, is_ct, keys) for keys in seeds)]
    drawn = replace(
        first,
        gamma=torch.cat([one.gamma for one in every], 2),
        contrast=torch.cat([one.contrast for one in every], 2),
        noise_std=torch.cat([one.noise_std for one in every], 2),
        bias=torch.cat([one.bias for one in every], 2),
    )
    return drawn if all(mri.gibbs_probability == 0 for mri in settings) else _with_gibbs(drawn, settings, is_ct, axes)


def _draw_channel(
    config: ViewsConfig,
    settings: list[MriIntensityConfig],
    views: int,
    axes: int,
    is_ct: Bool[Tensor, " N"],
    generators: list[torch.Generator],
) -> Intensity:
    """One channel, without ringing."""
    ct, terms = config.ct, _num_terms(axes)
    uniform = torch.stack([torch.rand(views, 9 + terms, generator=g) for g in generators])
    on, value, free = uniform[..., :4], uniform[..., 4:8], uniform[..., 8:]

    def each(setting: Callable[[MriIntensityConfig], float]) -> Float[Tensor, "N 1"]:
        return torch.tensor([setting(mri) for mri in settings], dtype=torch.float32)[:, None]

    low, width = each(lambda m: math.log(m.gamma[0])), each(lambda m: math.log(m.gamma[1]) - math.log(m.gamma[0]))
    gamma = torch.where(on[..., 0] < each(lambda m: m.gamma_probability), (low + width * value[..., 0]).exp(), 1.0)
    contrast = each(lambda m: m.contrast[0]) + each(lambda m: m.contrast[1] - m.contrast[0]) * value[..., 1]
    contrast = torch.where(on[..., 1] < each(lambda m: m.contrast_probability), contrast, 1.0)
    amplitude = each(lambda m: m.bias_field) * value[..., 2]
    amplitude = torch.where(on[..., 2] < each(lambda m: m.bias_probability), amplitude, 0.0)
    shape = 2 * free[..., 1:] - 1
    bias = amplitude[..., None] * shape / shape.abs().sum(-1, keepdim=True)
    mri_noise = each(lambda m: m.noise_std[0]) + each(lambda m: m.noise_std[1] - m.noise_std[0]) * value[..., 3]
    mri_noise = torch.where(on[..., 3] < each(lambda m: m.noise_probability), mri_noise, 0.0)
    ct_noise = ct.noise_std[0] + (ct.noise_std[1] - ct.noise_std[0]) * value[..., 3]
    ct_noise = torch.where(on[..., 3] < ct.noise_probability, ct_noise, 0.0)
    centre = ct.window_centre_hu[0] + (ct.window_centre_hu[1] - ct.window_centre_hu[0]) * value[..., 0]
    log_low, log_high = (math.log(bound) for bound in ct.window_width_hu)
    half = (log_low + (log_high - log_low) * free[..., 0]).exp() / 2
    tomography = is_ct[:, None]
    return Intensity(
        gamma=torch.where(tomography, 1.0, gamma)[..., None],
        contrast=torch.where(tomography, 1.0, contrast)[..., None],
        bias=torch.where(tomography[..., None], 0.0, bias)[..., None, :],
        noise_std=torch.where(tomography, ct_noise, mri_noise)[..., None],
        window=torch.stack([centre - half, centre + half], -1),
        gibbs_kept=torch.ones_like(gamma),
        gibbs_axis=torch.zeros_like(gamma, dtype=torch.long),
        noise_key=generators,
    )


def _with_gibbs(
    drawn: Intensity, settings: list[MriIntensityConfig], is_ct: Bool[Tensor, " N"], axes: int
) -> Intensity:
    """The share of k-space that is kept and the axis along which the rest is lost, from generators of their own."""
    keys = [generator("gibbs", g.initial_seed()) for g in drawn.noise_key]
    uniform = torch.stack([torch.rand(drawn.gamma.shape[1], 3, generator=key) for key in keys])
    chance = torch.tensor([float(mri.gibbs_probability) for mri in settings])[:, None]
    low, high = (torch.tensor([mri.gibbs[end] for mri in settings])[:, None] for end in (0, 1))
    rings = (uniform[..., 0] < chance) & ~is_ct[:, None]
    kept = torch.where(rings, low + (high - low) * uniform[..., 1], 1.0)
    return replace(drawn, gibbs_kept=kept, gibbs_axis=(uniform[..., 2] * axes).long())


def apply_gibbs(x: Float[Tensor, "V C *spatial"], draw: Intensity, sample: int) -> None:
    """Rings the views of one sample, in place: along one axis only the low frequencies of the view are kept."""
    for view in (draw.gibbs_kept[sample] < 1).nonzero().flatten().tolist():
        axis, side = 1 + int(draw.gibbs_axis[sample, view]), x.shape[2 + int(draw.gibbs_axis[sample, view])]
        keep = _low_pass(side, float(draw.gibbs_kept[sample, view])).to(x.device)
        x[view] = torch.tensordot(x[view], keep, dims=([axis], [1])).movedim(-1, axis)


def _low_pass(side: int, kept: float) -> Float[Tensor, "side side"]:
    """Matrix of the projection onto frequencies up to `kept` times the highest."""
    cut = max(1, round(kept * (side // 2)))
    distance = torch.arange(side, dtype=torch.float64)
    waves = torch.arange(1, min(cut, (side - 1) // 2) + 1, dtype=torch.float64)
    row = (1 + 2 * torch.cos(2 * math.pi / side * waves[:, None] * distance).sum(0)) / side
    if side % 2 == 0 and cut == side // 2:
        row = row + torch.cos(math.pi * distance) / side
    return row[(torch.arange(side)[:, None] - torch.arange(side)) % side].float()


def apply_intensity(
    x: Float[Tensor, "N V C *spatial"], draw: Intensity, is_ct: Bool[Tensor, " N"]
) -> Float[Tensor, "N V C *spatial"]:
    """Views in [0, 1]. Input: MRI and images 0..255, CT in HU; it is overwritten."""
    axes = x.ndim - 3
    tail = (1,) * axes
    for sample in (draw.gibbs_kept < 1).any(-1).nonzero().flatten().tolist():
        apply_gibbs(x[sample], draw, sample)
    if bool(is_ct.any()):
        low, high = (bound.to(x.device).view(*bound.shape, 1, *tail) for bound in draw.window.unbind(-1))
        windowed = (x - low) / (high - low)
        x = torch.where(is_ct.to(x.device).view(-1, 1, 1, *tail), windowed, x / 255.0).clamp_(0, 1)
    else:
        x = x.mul_(1 / 255.0).clamp_(0, 1)
    gamma, contrast = (value.to(x.device).view(*value.shape, *tail) for value in (draw.gamma, draw.contrast))
    x = x.pow_(gamma).mul_(contrast)
    if bool((draw.bias != 0).any()):
        basis = _polynomials(tuple(x.shape[3:])).to(x.device)
        field = torch.tensordot(draw.bias.to(x.device), basis, dims=1)
        x = x.mul_(field.exp_())
    for sample, key in enumerate(draw.noise_key):  # on the CPU, view by view: every device sees the same noise
        copy = key.clone_state()  # a draw can be applied again
        for view in draw.noise_std[sample].any(-1).nonzero().flatten().tolist():
            noise = torch.randn(x.shape[2:], generator=copy) * draw.noise_std[sample, view].view(-1, *tail)
            x[sample, view].add_(noise.to(x.device))
    return x.clamp_(0, 1)


def _num_terms(axes: int) -> int:
    return 2 * axes + axes * (axes - 1) // 2


@cache
def _polynomials(size: tuple[int, ...]) -> Float[Tensor, " term *spatial"]:
    """First and second order polynomials on [-1, 1], without the constant."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, side) for side in size], indexing="ij")
    pairs = [axes[i] * axes[j] for i in range(len(axes)) for j in range(i, len(axes))]
    return torch.stack([*axes, *pairs])
