"""Multi-crop views in 2D and 3D: geometry as one antialiased resampling, intensity for MRI and CT."""

from lejepa_med.views.multicrop import BatchedMultiCrop, MultiCropd, SampleFacts

__all__ = ["BatchedMultiCrop", "MultiCropd", "SampleFacts"]
