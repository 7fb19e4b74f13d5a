"""From the objective of a config to its module: LeJEPA, or VICReg as a control."""

from __future__ import annotations

from lejepa_med.config.pretraining import ObjectiveConfig
from lejepa_med.objective.lejepa import LeJEPALoss
from lejepa_med.objective.sigreg import SIGReg
from lejepa_med.objective.vicreg import VICRegLoss

Objective = LeJEPALoss | VICRegLoss
"""Called with embeddings `[view, sample, dim]`, the number of global views and the step; gives `LossParts`."""


def build_objective(config: ObjectiveConfig, seed: int) -> Objective:
    """The loss that a run minimises."""
    slices, knots, t_max = config.num_slices, config.num_knots, config.t_max
    if config.kind == "lejepa":
        return LeJEPALoss(config.lam, slices, knots, t_max, seed=seed, kernel=config.kernel)
    weights = config.vicreg
    sigreg = SIGReg(slices, knots, t_max, seed, config.kernel)
    return VICRegLoss(weights.invariance, weights.variance, weights.covariance, sigreg)
