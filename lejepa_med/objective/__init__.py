"""The LeJEPA objective: prediction loss and SIGReg, exact in float32 and the same on any number of ranks; VICReg."""

from lejepa_med.objective.build import Objective, build_objective
from lejepa_med.objective.lejepa import LeJEPALoss, LossParts, prediction_loss, resolve_lam
from lejepa_med.objective.sigreg import GAUSSIAN_REFERENCE, SIGReg, epps_pulley, random_directions
from lejepa_med.objective.vicreg import VICRegLoss

__all__ = [
    "GAUSSIAN_REFERENCE",
    "LeJEPALoss",
    "LossParts",
    "Objective",
    "SIGReg",
    "VICRegLoss",
    "build_objective",
    "epps_pulley",
    "prediction_loss",
    "random_directions",
    "resolve_lam",
]
