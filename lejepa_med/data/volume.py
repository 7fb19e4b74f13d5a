"""What every reader returns: voxels, and where they are in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Volume:
    """One scan in memory.

    `array` is `[i, j, k]` (a 2D image: `[row, column]`), in rescaled units (CT: HU). `affine` (4x4, float64) takes
    voxel indices to millimetres in RAS+ (nibabel's convention); it is sheared where the gantry was tilted.
    `filled_slices` were interpolated, since they were missing or could not be decoded.
    """

    array: NDArray[np.generic]
    affine: NDArray[np.float64]
    modality: str
    filled_slices: int = 0

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Length of one step along each voxel axis, mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(length) for length in lengths[: self.array.ndim])
