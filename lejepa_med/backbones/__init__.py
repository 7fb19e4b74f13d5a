"""Networks from images to features, all behind one protocol."""

from lejepa_med.backbones.build import NAMES, build
from lejepa_med.backbones.projector import build_projector
from lejepa_med.backbones.protocol import Backbone

__all__ = ["NAMES", "Backbone", "build", "build_projector"]
