"""The LeJEPA objective: prediction loss and SIGReg, exact in float32 and the same on any number of ranks."""

from lejepa_med.objective.lejepa import LeJEPALoss, LossParts, prediction_loss, resolve_lam
from lejepa_med.objective.sigreg import GAUSSIAN_REFERENCE, SIGReg, epps_pulley, random_directions

__all__ = [
    "GAUSSIAN_REFERENCE",
    "LeJEPALoss",
    "LossParts",
    "SIGReg",
    "epps_pulley",
    "prediction_loss",
    "random_directions",
    "resolve_lam",
]
