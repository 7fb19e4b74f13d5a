"""Synthetic heads in memory: a patient with labels, a scan with its pose and scanner, and the MRI that results.

Signals follow the spin-echo and inversion-recovery equations on BrainWeb's tissue constants, so the contrast of a
scanner is its TR, TE and TI. White matter is stored at an arbitrary gain: mean intensity says little about the
labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.synthetic import head_shape
from lejepa_med.data.synthetic.head_shape import TISSUES, Anatomy
from lejepa_med.data.synthetic.ranges import HEAD, HEAD_CT, Range
from lejepa_med.data.synthetic.shapes import Field, Grid, Vector, affine_centred, make_grid, pose_matrix
from lejepa_med.data.volume import Volume

Sequence = Literal["T1w", "T2w", "FLAIR"]
Side = Literal["none", "left", "right"]

_SUBJECT, _GRADE, _SCANNER, _SCAN = 11, 12, 13, 14  # streams of random numbers


@dataclass(frozen=True)
class Subject:
    """One patient: labels (`ventricle_grade` 0-3, `ventricle_ml` of lateral + third, `age` in years) and anatomy."""

    seed: int
    ventricle_grade: int
    ventricle_ml: float
    age: float
    lesion_side: Side
    anatomy: Anatomy

    @property
    def lesion_count(self) -> int:
        """Number of white matter lesions."""
        return len(self.anatomy.lesions)


@dataclass(frozen=True)
class Scan:
    """One acquisition: pose of the head, protocol in ms, `gain` (stored value of white matter), bias and noise in %."""

    seed: int
    sequence: Sequence
    scanner: int
    rotation_deg: Vector
    shift_mm: Vector
    repetition_ms: float
    echo_ms: float
    inversion_ms: float | None
    gain: float
    bias_percent: float
    noise_percent: float

    @property
    def pose(self) -> NDArray[np.float64]:
        """Rigid 4x4 motion from the head's frame to the scanner's RAS."""
        return pose_matrix(self.rotation_deg, self.shift_mm)


def _uniform(rng: np.random.Generator, limits: Range) -> float:
    return float(rng.uniform(*limits))


def draw_subject(seed: int) -> Subject:
    """Patient number `seed`: four consecutive numbers from a multiple of 4 hold each ventricle grade once.

    Within a grade the volume is uniform; age correlates with the volume and is not determined by it; lesions are drawn
    without regard to either.
    """
    grade = int(np.random.default_rng([_GRADE, seed // 4]).permutation(4)[seed % 4])
    rng = np.random.default_rng([_SUBJECT, seed])
    volume_ml = _uniform(rng, HEAD.ventricle_ml[grade])
    mean, spread = HEAD.age_years
    rho = HEAD.age_ventricle_correlation
    rank = (np.log(volume_ml) - np.log(24.0)) / 0.75  # about standard normal over the four grades
    age = float(np.clip(mean + spread * (rho * rank + np.sqrt(1 - rho**2) * rng.standard_normal()), *HEAD.age_limits))
    side: Side = "none"
    if rng.random() < HEAD.lesion_probability:
        side = "left" if rng.random() < 0.5 else "right"
    anatomy = _draw_anatomy(rng, volume_ml, age)
    return Subject(seed, grade, volume_ml, age, side, _add_lesions(rng, anatomy, side))


def _draw_anatomy(rng: np.random.Generator, volume_ml: float, age: float) -> Anatomy:
    def normal(mean_and_sd: tuple[float, float]) -> float:
        return float(mean_and_sd[0] + mean_and_sd[1] * np.clip(rng.standard_normal(), -2, 2))

    older = age - HEAD.age_years[0]
    return Anatomy(
        breadth=normal(HEAD.head_breadth),
        length=normal(HEAD.head_length),
        vertex=normal(HEAD.vertex_height),
        scalp=_uniform(rng, HEAD.scalp_thickness),
        skull=_uniform(rng, HEAD.skull_thickness),
        subarachnoid=_uniform(rng, HEAD.subarachnoid_thickness) + HEAD.sulcus_widening_per_year * older,
        cortex=_uniform(rng, HEAD.cortex_thickness) - HEAD.cortex_thinning_per_year * older,
        sulcus_depth=_uniform(rng, HEAD.sulcus_depth),
        sulcus_half_width=max(0.1, _uniform(rng, HEAD.sulcus_half_width) + HEAD.sulcus_widening_per_year * older),
        sulcus_wavelength=_uniform(rng, HEAD.sulcus_wavelength),
        phases=tuple(rng.uniform(0, 2 * np.pi, 9).tolist()),
        warp=(_uniform(rng, HEAD.surface_warp), _uniform(rng, HEAD.surface_warp), _uniform(rng, HEAD.surface_warp)),
        ventricle_ml=volume_ml,
        ventricle_asymmetry=float(HEAD.ventricle_asymmetry * np.clip(rng.standard_normal(), -2, 2) / 2),
    )


def _add_lesions(rng: np.random.Generator, anatomy: Anatomy, side: Side) -> Anatomy:
    """Lesions at random places of deep white matter, clear of ventricles and each other; the left is x < 0."""
    if side == "none":
        return anatomy
    sign = -1.0 if side == "left" else 1.0
    low, high = HEAD.lesion_count
    count = int(rng.integers(low, high + 1))
    radii = rng.uniform(*HEAD.lesion_diameter, count) / 2
    candidates = rng.uniform((16.0, -60.0, 0.0), (52.0, 50.0, 45.0), (2000, 3)) * (sign, 1.0, 1.0)
    room = _white_matter_room(anatomy, candidates)
    chosen: list[tuple[float, float, float, float]] = []
    for radius in np.sort(radii)[::-1]:
        others = np.array(chosen).reshape(-1, 4)
        gaps = np.linalg.norm(candidates[:, None] - others[None, :, :3], axis=2) - others[:, 3] - radius
        clear = gaps.min(axis=1, initial=np.inf) > 2
        index = int(np.argmax(np.where(clear, np.minimum(room, 0.8 * radius), -np.inf)))  # the first with enough room
        x, y, z = candidates[index].tolist()
        chosen.append((x, y, z, float(radius)))
    return replace(anatomy, lesions=tuple(chosen))


def _white_matter_room(anatomy: Anatomy, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance (mm, about) from each point to the nearest cortex or ventricle; negative outside white matter."""
    x, y, z = (points[:, axis].astype(np.float32)[:, None, None] for axis in range(3))
    grid = Grid(x, y, z, np.eye(4), 3.0)
    inside = head_shape.surface_depth(grid, anatomy) - np.float32(anatomy.scalp + anatomy.skull)
    to_cortex = head_shape.cortex_depth(grid, anatomy, inside) - np.float32(anatomy.cortex)
    to_ventricle = head_shape.ventricle_size(grid, anatomy) - head_shape.ventricle_calibre(anatomy, 3.0)
    room: NDArray[np.float64] = np.minimum(to_cortex, to_ventricle)[:, 0, 0].astype(np.float64)
    return room


def draw_scan(seed: int, sequence: Sequence = "T1w", scanner: int | None = None) -> Scan:
    """Acquisition number `seed` on one of the `HEAD.num_scanners` scanners (drawn, or given)."""
    rng = np.random.default_rng([_SCAN, seed, ("T1w", "T2w", "FLAIR").index(sequence)])
    drawn = int(rng.integers(HEAD.num_scanners))
    scanner = drawn if scanner is None else scanner
    protocol = _scanner_protocol(scanner, sequence)
    jitter = np.exp(HEAD.scan_jitter * np.clip(rng.standard_normal(3), -2, 2))
    repetition, echo, inversion, gain, noise = protocol
    rotation = rng.uniform(-HEAD.rotation_deg, HEAD.rotation_deg, 3).tolist()
    shift = rng.uniform(-HEAD.shift, HEAD.shift, 3).tolist()
    return Scan(
        seed=seed,
        sequence=sequence,
        scanner=scanner,
        rotation_deg=(rotation[0], rotation[1], rotation[2]),
        shift_mm=(shift[0], shift[1], shift[2]),
        repetition_ms=float(repetition * jitter[0]),
        echo_ms=float(echo * jitter[1]),
        inversion_ms=None if inversion is None else float(inversion * jitter[2]),
        gain=float(gain * np.exp(HEAD.gain_scan_sd * rng.standard_normal())),
        bias_percent=_uniform(rng, HEAD.bias_percent),
        noise_percent=float(np.clip(noise * rng.uniform(0.6, 1.4), *HEAD.noise_percent)),
    )


def _scanner_protocol(scanner: int, sequence: Sequence) -> tuple[float, float, float | None, float, float]:
    """TR, TE, TI (ms), gain and noise level (%) of one scanner; T1 is inversion-prepared on every second scanner."""
    rng = np.random.default_rng([_SCANNER, scanner, ("T1w", "T2w", "FLAIR").index(sequence)])
    gain = float(np.exp(rng.uniform(*np.log(HEAD.gain))))
    noise = _uniform(rng, HEAD.noise_percent)
    match sequence:
        case "T1w" if scanner % 2:
            return _uniform(rng, HEAD.t1_inversion[0]), 3.0, _uniform(rng, HEAD.t1_inversion[1]), gain, noise
        case "T1w":
            return _uniform(rng, HEAD.t1_spin_echo[0]), _uniform(rng, HEAD.t1_spin_echo[1]), None, gain, noise
        case "T2w":
            return _uniform(rng, HEAD.t2[0]), _uniform(rng, HEAD.t2[1]), None, gain, noise
        case "FLAIR":
            repetition = _uniform(rng, HEAD.flair[0])
            t1 = HEAD.tissues["csf"][0]
            null = t1 * np.log(2 / (1 + np.exp(-repetition / t1)))
            error = rng.uniform(-HEAD.flair_inversion_error, HEAD.flair_inversion_error)
            return repetition, _uniform(rng, HEAD.flair[1]), float(null * (1 + error)), gain, noise


def tissue_signals(scan: Scan, subject: Subject) -> dict[str, float]:
    """Stored value of each tissue, white matter being `scan.gain`.

    Spin echo `PD (1 - e^(-TR/T1)) e^(-TE/T2)`, inversion recovery `PD |1 - 2 e^(-TI/T1) + e^(-TR/T1)| e^(-TE/T2)`.
    """
    rng = np.random.default_rng([_SUBJECT, _SCAN, subject.seed])
    signals = {}
    for tissue, (t1, t2, density) in HEAD.tissues.items():
        t1, t2 = np.array([t1, t2]) * np.exp(HEAD.tissue_scale_sd * np.clip(rng.standard_normal(2), -2, 2))
        recovered = 1 - np.exp(-scan.repetition_ms / t1)
        if scan.inversion_ms is not None:
            recovered = abs(1 - 2 * np.exp(-scan.inversion_ms / t1) + np.exp(-scan.repetition_ms / t1))
        signals[tissue] = float(density * recovered * np.exp(-scan.echo_ms / t2))
    signals["ventricle"] = signals["csf"]
    return {tissue: signal * scan.gain / signals["white"] for tissue, signal in signals.items()}


def scan_grid(
    scan: Scan, spacing_mm: Vector, shape: tuple[int, int, int] | None = None
) -> tuple[Grid, NDArray[np.float64]]:
    """Voxels of a scan and their RAS affine; without `shape` the field of view of `ranges.HEAD` is covered."""
    if shape is None:
        i, j, k = (max(1, round(size / step)) for size, step in zip(HEAD.field_of_view, spacing_mm, strict=True))
        shape = (i, j, k)
    affine = affine_centred(shape, spacing_mm, (0.0, 0.0, HEAD.field_centre_s))
    return make_grid(shape, affine, scan.pose), affine


def paint_head(grid: Grid, subject: Subject, values: dict[str, float]) -> Field:
    """`values` of the tissues in each voxel, mixed by their fractions; no noise and no bias."""
    image = np.full(grid.x.shape, values["air"], np.float32)
    for layer in head_shape.head_layers(grid, subject.anatomy):
        part = image[layer.box]
        part += layer.alpha * (np.float32(values[layer.tissue]) - part)
    return image


def tissue_fractions(
    subject: Subject, scan: Scan, spacing_mm: Vector, shape: tuple[int, int, int] | None = None
) -> dict[str, Field]:
    """Noise-free fraction of each tissue of `TISSUES` per voxel, on the grid of `head_phantom`; they sum to 1."""
    grid, _ = scan_grid(scan, spacing_mm, shape)
    fractions = {tissue: np.full(grid.x.shape, tissue == "air", np.float32) for tissue in TISSUES}
    for layer in head_shape.head_layers(grid, subject.anatomy):
        for tissue, fraction in fractions.items():
            part = fraction[layer.box]
            part += layer.alpha * (np.float32(tissue == layer.tissue) - part)
    return fractions


def head_phantom(subject: Subject, scan: Scan, spacing_mm: Vector, shape: tuple[int, int, int] | None = None) -> Volume:
    """MRI of `subject`: axis-aligned RAS voxels of `spacing_mm`, float32, with coil bias and Rician noise."""
    grid, affine = scan_grid(scan, spacing_mm, shape)
    signals = tissue_signals(scan, subject)
    image = paint_head(grid, subject, signals)
    rng = np.random.default_rng([_SCAN, scan.seed, subject.seed])
    image *= _bias_field(rng, image.shape, scan.bias_percent)
    sigma = np.float32(scan.noise_percent / 100 * max(signals[tissue] for tissue in ("white", "grey", "csf")))
    image += sigma * rng.standard_normal(image.shape, np.float32)
    imaginary = sigma * rng.standard_normal(image.shape, np.float32)
    return Volume(np.sqrt(image * image + imaginary * imaginary), affine, "mri")


def _bias_field(rng: np.random.Generator, shape: tuple[int, ...], percent: float) -> Field:
    """Smooth field within `1 +- percent / 200`: quadratic along each axis of the coil plus one product."""
    field = np.zeros(shape, np.float32)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    for axis, t in enumerate(axes):
        first, second = rng.standard_normal(2).astype(np.float32)
        field += np.expand_dims(first * t + second * (t * t - 0.5), tuple({0, 1, 2} - {axis}))
    field += np.float32(rng.standard_normal()) * axes[0][:, None, None] * axes[1][None, :, None]
    field -= (field.max() + field.min()) / 2
    field *= np.float32(percent / 200 / max(float(np.abs(field).max()), 1e-6))
    return field + 1


def head_ct(subject: Subject, scan: Scan, grid: Grid, affine: NDArray[np.float64]) -> Volume:
    """CT of `subject` in HU on any grid (also one sheared by a gantry tilt); the pose is that of `scan`."""
    image = paint_head(grid, subject, HEAD_CT.hu)
    rng = np.random.default_rng([_SCAN, scan.seed, subject.seed, 1])
    image += np.float32(HEAD_CT.noise_hu) * rng.standard_normal(image.shape, np.float32)
    return Volume(np.maximum(image, -1024), affine, "ct")
