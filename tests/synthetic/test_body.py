"""The trunk phantoms are in HU, with organs on their side."""

from dataclasses import replace

import numpy as np

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


def test_nodules_are_dense_spheres_in_lung() -> None:
    seen = 0
    for seed in range(8):
        body = _quiet(seed)
        without = body_phantom(replace(body, nodules=()), (3.0, 3.0, 3.0))
        volume = body_phantom(body, (3.0, 3.0, 3.0))
        for x, y, z, _ in body.nodules:
            assert np.median(_near(volume, (x, y, z))) > -50
            assert np.median(_near(without, (x, y, z))) < -700
            seen += 1
        if not body.nodule:
            np.testing.assert_array_equal(without.array, volume.array)
    assert seen >= 4
