"""The trunk phantoms are in HU, with organs on their side."""

from dataclasses import replace

import numpy as np
import pytest

from lejepa_med.data.synthetic import body_phantom, draw_body
from lejepa_med.data.synthetic.ranges import BODY

SPACING = (4.0, 4.0, 4.0)


def _quiet(seed: int):
    return replace(draw_body(seed), noise_hu=0.0, roll_deg=0.0, shift_mm=(0.0, 0.0, 0.0))


def _near(volume, point_mm: tuple[float, float, float]) -> np.ndarray:
    i, j, k = np.rint(np.linalg.inv(volume.affine) @ [*point_mm, 1]).astype(int)[:3]
    return volume.array[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2]


def test_same_seed_same_voxels() -> None:
    assert body_phantom(draw_body(3), SPACING).array.tobytes() == body_phantom(draw_body(3), SPACING).array.tobytes()


def test_values_are_hounsfield_units_of_the_tissues() -> None:
    for seed in range(4):
        volume = body_phantom(draw_body(seed), SPACING)
        assert volume.modality == "ct"
        assert -1024 <= volume.array.min() < -950 and 300 < volume.array.max() <= 3071
        body = _quiet(seed)
        still = body_phantom(body, SPACING)
        assert np.allclose(_near(still, (0, 180, 0)), -1000)
        low, high = BODY.hu["liver"]
        assert np.all((_near(still, (60, 5, -90)) >= low) & (_near(still, (60, 5, -90)) <= high))


def test_the_liver_is_on_the_right_and_the_heart_on_the_left() -> None:
    volume = body_phantom(_quiet(1), SPACING)
    assert _near(volume, (70, 5, -90)).mean() > 0 > _near(volume, (-70, 5, -100)).mean()
    assert _near(volume, (-45, 20, -10)).mean() > 0 > _near(volume, (55, 20, 15)).mean()


def test_nodules_hold_the_volume_of_their_diameter_and_replace_lung() -> None:
    seen = 0
    for seed in range(10):
        body = replace(_quiet(seed), vessels=())
        clean = replace(body, nodules=())
        without = body_phantom(clean, SPACING)
        for x, y, z, radius in body.nodules:
            assert np.median(_near(without, (x, y, z))) == np.float32(body.hu["lung"])
            difference = body_phantom(replace(clean, nodules=((x, y, z, radius),)), SPACING).array - without.array
            volume_mm3 = float(difference.sum()) * np.prod(SPACING) / (body.hu["nodule"] - body.hu["lung"])
            assert volume_mm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.1)
            seen += 1
    assert seen >= 5
