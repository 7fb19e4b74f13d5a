"""The head phantoms hold what their labels say, where the affine says."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from lejepa_med.data.synthetic import Scan, Subject, draw_scan, draw_subject, head_phantom, tissue_fractions
from lejepa_med.data.synthetic.head_shape import TISSUES
from lejepa_med.data.synthetic.ranges import HEAD

COARSE = (3.0, 3.0, 3.0)
ANISOTROPIC = (2.0, 2.0, 4.0)


def _neutral(scan: Scan) -> Scan:
    return replace(scan, rotation_deg=(0.0, 0.0, 0.0), shift_mm=(0.0, 0.0, 0.0))


def _with_lesions(side: str, count: int) -> list[Subject]:
    subjects = (draw_subject(seed) for seed in range(200))
    return [subject for subject in subjects if subject.lesion_side == side][:count]


def _centroid_mm(fraction: np.ndarray, affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, fraction.shape), indexing="ij"), axis=-1)
    mean = np.average(index.reshape(-1, 3), axis=0, weights=fraction.ravel())
    return (affine @ [*mean, 1])[:3]


def test_same_seed_same_voxels_and_other_seed_other_voxels() -> None:
    first = head_phantom(draw_subject(5), draw_scan(8, "FLAIR"), COARSE)
    again = head_phantom(draw_subject(5), draw_scan(8, "FLAIR"), COARSE)
    other = head_phantom(draw_subject(5), draw_scan(9, "FLAIR"), COARSE)
    assert first.array.tobytes() == again.array.tobytes()
    assert first.array.tobytes() != other.array.tobytes()
    assert first.array.dtype == np.float32 and first.modality == "mri"


def test_four_consecutive_subjects_hold_each_grade_once() -> None:
    for block in range(0, 40, 4):
        assert sorted(draw_subject(seed).ventricle_grade for seed in range(block, block + 4)) == [0, 1, 2, 3]
    orders = {
        tuple(draw_subject(seed).ventricle_grade for seed in range(block, block + 4)) for block in range(0, 40, 4)
    }
    assert len(orders) > 3


def test_the_drawn_labels_are_related_as_documented() -> None:
    subjects = [draw_subject(seed) for seed in range(600)]
    volume = np.array([subject.ventricle_ml for subject in subjects])
    age = np.array([subject.age for subject in subjects])
    for subject in subjects:
        low, high = HEAD.ventricle_ml[subject.ventricle_grade]
        assert low <= subject.ventricle_ml <= high
        assert (subject.lesion_count > 0) == (subject.lesion_side != "none")
    assert volume.min() < 6 and volume.max() > 75
    assert 0.4 < spearmanr(volume, age)[0] < 0.75
    lesions = np.array([subject.lesion_count for subject in subjects])
    left = np.array([subject.lesion_side == "left" for subject in subjects])
    assert abs(spearmanr(volume, lesions)[0]) < 0.1
    assert abs(spearmanr(volume[lesions > 0], left[lesions > 0])[0]) < 0.15


@pytest.mark.parametrize("spacing_mm", [COARSE, ANISOTROPIC, (1.5, 1.5, 1.5)])
def test_ventricles_hold_the_drawn_volume_and_the_grades_are_separable_from_it(spacing_mm: tuple) -> None:
    measured = []
    subjects = [draw_subject(seed) for seed in range(8)]
    for seed, subject in enumerate(subjects):
        fraction = tissue_fractions(subject, draw_scan(seed), spacing_mm)["ventricle"]
        measured.append(float(fraction.sum()) * np.prod(spacing_mm) / 1000)
    truth = [subject.ventricle_ml for subject in subjects]
    np.testing.assert_allclose(measured, truth, rtol=0.1)
    grades = np.array([subject.ventricle_grade for subject in subjects])
    for grade in range(3):
        assert np.max(np.array(measured)[grades == grade]) < np.min(np.array(measured)[grades == grade + 1])


def test_tissue_fractions_sum_to_one_and_the_grey_white_ratio_is_plausible() -> None:
    ratios = []
    for seed in range(20):
        fractions = tissue_fractions(draw_subject(seed), draw_scan(seed), COARSE)
        assert tuple(fractions) == TISSUES
        assert min(float(fraction.min()) for fraction in fractions.values()) >= -1e-5
        np.testing.assert_allclose(sum(fractions.values()), 1, atol=1e-5)
        ratios.append(float(fractions["grey"].sum() / fractions["white"].sum()))
    assert 1.0 < np.median(ratios) < 1.6


@pytest.mark.parametrize(("side", "sign"), [("left", -1), ("right", 1)])
def test_lesions_lie_on_their_side_of_the_patient(side: str, sign: int) -> None:
    for seed, subject in enumerate(_with_lesions(side, 5)):
        scan = _neutral(draw_scan(seed))
        fraction = tissue_fractions(subject, scan, COARSE)["lesion"]
        affine = head_phantom(subject, scan, COARSE).affine
        x = affine[0, 0] * np.arange(fraction.shape[0]) + affine[0, 3]
        weight = fraction.sum(axis=(1, 2))
        assert affine[0, 0] > 0 and weight.sum() > 0
        assert weight[sign * x > 0].sum() > 0.95 * weight.sum()  # head axes are warped by up to 3 mm


def test_lesions_are_neither_swallowed_by_ventricles_nor_by_each_other() -> None:
    for seed, subject in enumerate(_with_lesions("left", 6)):
        fraction = tissue_fractions(subject, draw_scan(seed), (2.0, 2.0, 2.0))["lesion"]
        truth = sum(4 / 3 * np.pi * radius**3 for *_, radius in subject.anatomy.lesions)
        assert float(fraction.sum()) * 8 == pytest.approx(truth, rel=0.1)


def test_the_affine_places_the_head_where_the_pose_puts_it() -> None:
    subject = draw_subject(2)
    neutral, moved = _neutral(draw_scan(3)), draw_scan(3)
    in_head = _centroid_mm(
        tissue_fractions(subject, neutral, COARSE)["ventricle"], head_phantom(subject, neutral, COARSE).affine
    )
    for spacing_mm in (COARSE, ANISOTROPIC):
        fraction = tissue_fractions(subject, moved, spacing_mm)["ventricle"]
        in_scanner = _centroid_mm(fraction, head_phantom(subject, moved, spacing_mm).affine)
        np.testing.assert_allclose((moved.pose @ [*in_head, 1])[:3], in_scanner, atol=0.3)
    assert np.linalg.norm(in_scanner - in_head) > 3


def test_a_shape_is_kept_and_the_spacing_is_that_of_the_affine() -> None:
    volume = head_phantom(draw_subject(0), draw_scan(0), (3.0, 2.0, 4.0), (30, 40, 20))
    assert volume.array.shape == (30, 40, 20)
    assert volume.spacing_mm == pytest.approx((3.0, 2.0, 4.0))
    np.testing.assert_allclose((volume.affine @ [14.5, 19.5, 9.5, 1])[:3], (0, 0, HEAD.field_centre_s))


@pytest.mark.parametrize(
    ("sequence", "darker", "brighter"),
    [("T1w", "grey", "white"), ("T1w", "csf", "grey"), ("T2w", "white", "csf"), ("FLAIR", "csf", "white")],
)
def test_sequences_have_their_contrast_on_every_scanner(sequence: str, darker: str, brighter: str) -> None:
    subject = draw_subject(1)
    for scanner in range(HEAD.num_scanners):
        scan = replace(draw_scan(4, sequence, scanner=scanner), noise_percent=0.0, bias_percent=0.0)
        image = head_phantom(subject, scan, COARSE).array
        fractions = tissue_fractions(subject, scan, COARSE)
        dark, bright = (image[fractions[tissue] > 0.9].mean() for tissue in (darker, brighter))
        assert dark < bright
        assert image[fractions["white"] > 0.99].mean() == pytest.approx(scan.gain, rel=0.02)


def test_mean_intensity_says_little_about_the_grade() -> None:
    subjects = [draw_subject(seed) for seed in range(60)]
    means = [float(head_phantom(s, draw_scan(s.seed), (6.0, 6.0, 6.0)).array.mean()) for s in subjects]
    assert abs(spearmanr(means, [subject.ventricle_grade for subject in subjects])[0]) < 0.25


def test_noise_has_the_drawn_level_and_bias_the_drawn_range() -> None:
    subject, scan = draw_subject(0), replace(draw_scan(0), bias_percent=0.0, noise_percent=5.0)
    clean = head_phantom(subject, replace(scan, noise_percent=0.0), COARSE).array
    white = tissue_fractions(subject, scan, COARSE)["white"] > 0.99
    noise = head_phantom(subject, scan, COARSE).array[white] - clean[white]
    assert float(noise.std()) == pytest.approx(0.05 * scan.gain, rel=0.1)
    biased = head_phantom(subject, replace(scan, noise_percent=0.0, bias_percent=40.0), COARSE).array
    ratio = biased[clean > 1] / clean[clean > 1]
    assert ratio.min() >= 0.799 and ratio.max() <= 1.201 and np.ptp(ratio) > 0.2
