"""Multi-crop views in 2D and 3D: geometry as one antialiased resampling, intensity for MRI and CT."""

from lejepa_med.views.dictionary import MultiCropd
from lejepa_med.views.multicrop import BatchedMultiCrop, SampleFacts

__all__ = ["BatchedMultiCrop", "MultiCropd", "SampleFacts"]
