"""Weights on disk: read without executing anything, loaded strictly or refused with a table, exported, handed over."""

from lejepa_med.weights.adapting import ADAPTATIONS, adapted
from lejepa_med.weights.exporting import export
from lejepa_med.weights.files import find_weights, read_description, read_tensors
from lejepa_med.weights.handover import Handover, load_into
from lejepa_med.weights.names import load_dinov2, timm_names
from lejepa_med.weights.saved import load_backbone, save_backbone
from lejepa_med.weights.strict import load_strictly

__all__ = [
    "ADAPTATIONS",
    "Handover",
    "adapted",
    "export",
    "find_weights",
    "load_backbone",
    "load_dinov2",
    "load_into",
    "load_strictly",
    "read_description",
    "read_tensors",
    "save_backbone",
    "timm_names",
]
