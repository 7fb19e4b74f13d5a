"""The views of a batch, with what is known about its samples: sequence and axis of acquisition; errors name series."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lejepa_med.data.dataset import Batch
from lejepa_med.views import BatchedMultiCrop, SampleFacts


def batch_views(
    crop: BatchedMultiCrop, batch: Batch, key: tuple[int | str, ...]
) -> list[Float[Tensor, "view sample channel ..."]]:
    """Global and local views, where the images are. Raises DataError, naming a series that none can be cut from."""
    facts = SampleFacts(keys=batch.keys, sequences=batch.sequences, slice_axis=batch.slice_axis)
    return crop(batch.images, batch.spacing_mm, batch.is_ct, key, batch.first_position, facts)
