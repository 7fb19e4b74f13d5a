"""VICReg (Bardes, Ponce & LeCun 2022, arXiv 2105.04906), a control for LeJEPA on the same data, views and steps.

Of two batches of embeddings Z, Z' of dimension d, by the paper's algorithm 1, whose invariance term is a mean over the
dimensions too (equation 5 sums over them; the weights 25, 25, 1 belong to the mean):

    s(Z, Z') = mean over samples and dimensions of (z - z')^2
    v(Z) = mean over dimensions of max(0, 1 - sqrt(Var(z_j) + 1e-4))                    (eq. 1, 2)
    c(Z) = sum over i != j of Cov(Z)_ij^2 / d                                           (eq. 3, 4)
    loss = 25 s(Z, Z') + 25 (v(Z) + v(Z')) + 1 (c(Z) + c(Z'))                           (eq. 6)

More views than two: s is the mean over all pairs of a global view and any other view, as LeJEPA's target is made of
global views; v and c are means over views, times two. Two global views give the paper's loss exactly.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.distributed import mean_over_ranks, total_over_ranks
from lejepa_med.objective.lejepa import LossParts
from lejepa_med.objective.sigreg import SIGReg

_EPSILON = 1e-4


class VICRegLoss(nn.Module):
    """Weighted sum of the three terms, in float32, exact on any number of ranks.

    In its `LossParts`, `prediction` is s and `sigreg` the rest of the loss, weights included, so that
    `total = invariance * prediction + sigreg`. `self.sigreg` only measures how Gaussian projections are.
    """

    def __init__(self, invariance: float, variance: float, covariance: float, sigreg: SIGReg) -> None:
        super().__init__()
        self.invariance, self.variance, self.covariance, self.sigreg = invariance, variance, covariance, sigreg

    def forward(self, embeddings: Float[Tensor, "view sample dim"], num_global: int, step: int = 0) -> LossParts:
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
            invariance = invariance_term(embeddings, num_global)
            variance, covariance = variance_covariance(embeddings)
            spread = 2 * (self.variance * variance + self.covariance * covariance)
            return LossParts(self.invariance * invariance + spread, invariance, spread, 0.0)

    def mix(self, prediction: float, sigreg: float, num_samples: int) -> float:
        """The total of two parts."""
        return self.invariance * prediction + sigreg


def invariance_term(embeddings: Float[Tensor, "view sample dim"], num_global: int) -> Float[Tensor, ""]:
    """Mean squared difference over pairs of a global view and another view; 0 for a single view."""
    views, samples, dim = embeddings.shape
    total = embeddings.new_zeros(())
    for view in embeddings[:num_global]:
        total = total + (embeddings - view).square().sum()
    pairs = max(1, num_global * (views - 1))
    return mean_over_ranks(total, samples * dim) / pairs


def variance_covariance(embeddings: Float[Tensor, "view sample dim"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """v and c, each the mean over views; moments are those of the samples of all ranks."""
    samples, dim = embeddings.shape[1:]
    centred = embeddings - mean_over_ranks(embeddings.sum(1, keepdim=True), samples)
    count = total_over_ranks(samples, embeddings.device)
    moments = mean_over_ranks(centred.transpose(1, 2) @ centred, samples) * (count / max(1, count - 1))
    diagonal = moments.diagonal(dim1=1, dim2=2)
    hinge = torch.relu(1 - (diagonal + _EPSILON).sqrt()).mean()
    others = (moments.square().sum() - diagonal.square().sum()) / (dim * len(embeddings))
    return hinge, others
