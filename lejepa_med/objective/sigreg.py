"""SIGReg: random one-dimensional projections of an embedding are tested against N(0, 1) (arXiv 2511.08544, section 4).

Epps-Pulley statistic of one projection x_1..x_N, with phi(t) = mean_n exp(i t x_n):
    T = N * integral over R of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt
by the trapezoid rule on `num_knots` knots over [0, t_max], doubled by symmetry.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.distributed import mean_over_ranks, total_over_ranks
from lejepa_med.objective.characteristic import Kernel, characteristic_sums
from lejepa_med.randomness import generator

GAUSSIAN_REFERENCE = 1.05246
"""E[T] for independent samples of N(0, 1) at any N, with the default knots (1.05943 for the exact integral)."""


def epps_pulley(
    projections: Float[Tensor, "*batch sample slice"], num_knots: int = 17, t_max: float = 3.0, kernel: Kernel = "auto"
) -> Float[Tensor, "*batch slice"]:
    """The statistic T of every slice. With many ranks the samples of all ranks count, and every rank has the result.

    Computed in float32 (float64 if that is given) whatever the autocast state. Memory is O(sample x slice), not times
    knots. `kernel` chooses how the sums are computed (see `characteristic`), not what they are: all agree to rounding.
    Raises ConfigError where the chosen kernel cannot run.
    """
    with torch.autocast(projections.device.type, enabled=False):
        x = projections.to(torch.float64 if projections.dtype == torch.float64 else torch.float32)
        step = t_max / (num_knots - 1)
        sums = characteristic_sums(x, num_knots, step, kernel)
        mean = mean_over_ranks(sums, x.shape[-2])  # [2, knot, *batch, slice]: real and imaginary part of phi
        knots = torch.arange(num_knots, device=x.device, dtype=x.dtype) * step
        gauss = torch.exp(-(knots**2) / 2)
        weights = 2 * step * gauss
        weights[0] /= 2
        weights[-1] /= 2
        target = torch.stack((gauss, torch.zeros_like(gauss))).view(2, num_knots, *(1,) * (x.ndim - 1))
        integral = (weights.view(target.shape[1:]) * (mean - target).square()).sum((0, 1))
        statistic: Tensor = total_over_ranks(x.shape[-2], x.device) * integral
        return statistic


def random_directions(dim: int, num_slices: int, seed: int, step: int) -> Float[Tensor, "dim slice"]:
    """Directions uniform on the sphere, a function of (seed, step): the same on every rank and device."""
    directions = torch.randn(dim, num_slices, generator=generator("directions", seed, step))
    return directions.div_(directions.square().sum(0).sqrt())  # ten times faster than norm(dim=0)


class SIGReg(nn.Module):
    """Sketched isotropic Gaussian regularisation of embeddings: mean Epps-Pulley statistic over random slices.

    The statistic is computed per view and averaged over views, the paper's definition.
    """

    def __init__(
        self, num_slices: int = 1024, num_knots: int = 17, t_max: float = 3.0, seed: int = 0, kernel: Kernel = "auto"
    ) -> None:
        super().__init__()
        self.num_slices, self.num_knots, self.t_max, self.seed, self.kernel = num_slices, num_knots, t_max, seed, kernel

    def forward(self, embeddings: Float[Tensor, "view sample dim"], step: int = 0) -> Float[Tensor, ""]:
        with torch.autocast(embeddings.device.type, enabled=False):
            directions = random_directions(embeddings.shape[-1], self.num_slices, self.seed, step)
            projections = embeddings.float() @ directions.to(embeddings.device)
            return epps_pulley(projections, self.num_knots, self.t_max, self.kernel).mean()

    def reference(self) -> float:
        """E[SIGReg] for independent N(0, 1) samples at any N, with these knots: N E|phi - g|^2 = 1 - g^2."""
        step = self.t_max / (self.num_knots - 1)
        total = 0.0
        for knot in range(self.num_knots):
            gauss = math.exp(-((knot * step) ** 2) / 2)
            end = 0.5 if knot in (0, self.num_knots - 1) else 1.0
            total += 2 * step * end * gauss * (1 - gauss**2)
        return total
