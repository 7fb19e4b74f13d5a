"""The LeJEPA loss (arXiv 2511.08544, section 5): every view predicts the mean of the global views, beside SIGReg."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lejepa_med.distributed import mean_over_ranks, total_over_ranks
from lejepa_med.objective.characteristic import Kernel
from lejepa_med.objective.sigreg import SIGReg

Lam = float | Literal["auto", "sqrt"]

_PAPER_LAM, _PAPER_BATCH = 0.05, 256


@dataclass(frozen=True)
class LossParts:
    """Scalars, global over ranks: `total = (1 - lam) * prediction + lam * sigreg`."""

    total: Float[Tensor, ""]
    prediction: Float[Tensor, ""]
    sigreg: Float[Tensor, ""]
    lam: float

    def numbers(self) -> dict[str, float]:
        """Plain numbers for a log."""
        return {name: float(getattr(self, name).detach()) for name in ("total", "prediction", "sigreg")}


def prediction_loss(embeddings: Float[Tensor, "view sample dim"], num_global: int) -> Float[Tensor, ""]:
    """Mean over views, samples and dimensions of (z - mu)^2, mu the mean of a sample's global views.

    Global views come first. No stop-gradient.
    """
    target = embeddings[:num_global].mean(0)
    squared = (embeddings - target) ** 2
    return mean_over_ranks(squared.sum(), squared.numel())


def resolve_lam(lam: Lam, num_samples: int) -> float:
    """The number behind a rule; both give the paper's .05 at its batch of 256. `num_samples` is the global batch.

    `auto` keeps lam N / (1 - lam): T carries the factor N, so a given departure from the Gaussian then counts as much
    at any batch. `sqrt` keeps lam sqrt(N) / (1 - lam), half way to a fixed lam: docs/design/lambda.md compares them.
    """
    if not isinstance(lam, str):
        return float(lam)
    ratio = _PAPER_BATCH / num_samples
    balance = _PAPER_LAM / (1 - _PAPER_LAM) * (ratio if lam == "auto" else math.sqrt(ratio))
    return balance / (1 + balance)


class LeJEPALoss(nn.Module):
    """Prediction loss and SIGReg with one trade-off weight. Everything runs in float32, autocast or not."""

    def __init__(
        self,
        lam: Lam = "auto",
        num_slices: int = 1024,
        num_knots: int = 17,
        t_max: float = 3.0,
        seed: int = 0,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        assert lam in ("auto", "sqrt") or 0 <= float(lam) <= 1, f"lam must lie in [0, 1], got {lam}"
        self.lam = lam
        self.sigreg = SIGReg(num_slices, num_knots, t_max, seed, kernel)

    def forward(self, embeddings: Float[Tensor, "view sample dim"], num_global: int, step: int = 0) -> LossParts:
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            lam = resolve_lam(self.lam, total_over_ranks(embeddings.shape[1], embeddings.device))
            prediction = prediction_loss(embeddings, num_global)
            sigreg = self.sigreg(embeddings, step)
            return LossParts((1 - lam) * prediction + lam * sigreg, prediction, sigreg, lam)

    def mix(self, prediction: float, sigreg: float, num_samples: int) -> float:
        """The total of two parts, with the weight that a global batch of `num_samples` has."""
        lam = resolve_lam(self.lam, num_samples)
        return (1 - lam) * prediction + lam * sigreg
