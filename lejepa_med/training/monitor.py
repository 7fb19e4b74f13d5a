"""Numbers that tell whether a representation is healthy while the loss looks fine."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def effective_rank(features: Float[Tensor, "sample dim"]) -> float:
    """exp of the entropy of the normalised singular values of the centred features (Roy & Vetterli 2007)."""
    centred = features.float() - features.float().mean(0)
    values = torch.linalg.svdvals(centred)
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * torch.log(share.clamp(min=1e-12))).sum()))


@torch.no_grad()
def diagnose(
    features: Float[Tensor, "sample dim"], projections: Float[Tensor, "sample proj"], patients: list[int]
) -> dict[str, float]:
    """Ranks, spreads and the effective number of independent samples, from the first global view of a batch."""
    counts = torch.unique(torch.tensor(patients), return_counts=True)[1].float()
    return {
        "feature_rank": effective_rank(features),
        "projection_rank": effective_rank(projections),
        "feature_std": float(features.float().std(0).mean()),
        "projection_std": float(projections.float().std(0).mean()),
        "n_eff": float(counts.sum() ** 2 / (counts**2).sum()),
    }
