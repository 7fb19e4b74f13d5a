"""Every range that the synthetic scans are drawn from, fixed before any method was trained on them.

Each field names where its numbers come from; "textbook" marks an order of magnitude without one single paper behind it.
Change a number only because a source says so, never because an encoder then scores better.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Range = tuple[float, float]

TissueConstants = dict[str, tuple[float, float, float]]
"""Tissue -> (T1 ms, T2 ms, proton density)."""


def _brainweb_tissues() -> TissueConstants:
    # BrainWeb, 1.5 T (Collins et al., IEEE TMI 17:463, 1998; Kwan et al., IEEE TMI 18:1085, 1999). Bone is given a
    # little marrow signal and the eye is watery like CSF (textbook).
    return {
        "air": (1000.0, 100.0, 0.0),
        "fat": (350.0, 70.0, 1.0),
        "bone": (1000.0, 50.0, 0.08),
        "muscle": (900.0, 47.0, 1.0),
        "csf": (2569.0, 329.0, 1.0),
        "grey": (833.0, 83.0, 0.86),
        "white": (500.0, 70.0, 0.77),
        "ventricle": (2569.0, 329.0, 1.0),
        "lesion": (752.0, 237.0, 0.76),
        "eye": (2569.0, 329.0, 1.0),
    }


@dataclass(frozen=True)
class HeadRanges:
    """Anatomy and acquisition of the head phantoms; lengths in mm, volumes in ml, angles in degrees."""

    # Means and SDs of adult head breadth and length: between the two sexes of the ANSUR survey (Gordon et al., 1989:
    # breadth 152/144 mm, length 197/187 mm).
    head_breadth: tuple[float, float] = (148.0, 6.0)
    head_length: tuple[float, float] = (192.0, 8.0)
    vertex_height: tuple[float, float] = (80.0, 3.5)  # vertex over the ventricles; textbook
    scalp_thickness: Range = (4.0, 7.0)  # textbook: about 5 mm
    skull_thickness: Range = (5.0, 9.0)  # textbook: adult calvaria 5-8 mm
    surface_warp: Range = (0.0, 3.0)  # smooth shear that makes each head uneven; textbook (a few mm of asymmetry)

    # Lateral + third ventricle. Healthy means: 16 ml in the twenties, 25 ml in the forties (218 Koreans, Neurosci.
    # Lett. 395:155, 2006; fourth ventricle included); dementia and hydrocephalus reach 50-100 ml (textbook).
    ventricle_ml: tuple[Range, ...] = ((5.0, 15.0), (15.0, 28.0), (28.0, 48.0), (48.0, 80.0))
    ventricle_asymmetry: float = 0.08  # SD of the relative difference in calibre, left against right; textbook
    age_years: tuple[float, float] = (55.0, 18.0)
    age_limits: Range = (18.0, 92.0)
    age_ventricle_correlation: float = 0.6  # "small but significant" to moderate in the normative papers; textbook

    # Cortex 2.5 mm thick on average, thinner with age (Fischl & Dale, PNAS 97:11050, 2000; Salat et al., Cereb. Cortex
    # 14:721, 2004). The phantom folds less than a brain, so its ribbon is thicker: the grey/white volume ratio that
    # follows (tested, not drawn) lies in 0.8-1.8, median 1.2; adults 1.1-1.6 (textbook).
    cortex_thickness: Range = (3.0, 4.0)
    cortex_thinning_per_year: float = 0.006
    sulcus_depth: Range = (15.0, 22.0)  # textbook
    sulcus_wavelength: Range = (26.0, 34.0)  # two sulci per period; textbook: gyri are 10-15 mm wide
    sulcus_half_width: Range = (0.3, 0.8)  # textbook; widens with age:
    sulcus_widening_per_year: float = 0.010
    subarachnoid_thickness: Range = (1.5, 3.5)  # textbook

    # White matter lesions: 3 mm is the smallest that counts in multiple sclerosis (Filippi et al., Brain 142:1858,
    # 2019), 3-15 mm is common (textbook); from 5 mm here, so that 3 mm voxels show them. Half of the subjects have
    # some, all on one side, so that side is a question of its own.
    lesion_probability: float = 0.5
    lesion_count: tuple[int, int] = (2, 8)
    lesion_diameter: Range = (5.0, 15.0)

    # Pose in the head coil: about 10 degrees and 10 mm around the planned position; order of magnitude, experience.
    rotation_deg: float = 10.0
    shift: float = 10.0
    field_of_view: tuple[float, float, float] = (192.0, 216.0, 180.0)  # R, A, S; cut below the mid-face as in practice
    field_centre_s: float = -12.0
    # The archive: a coarse 64 x 64 matrix keeps its files small; slices of 3-5 mm are common in 2D MRI (textbook).
    matrix: int = 64
    pixel: float = 3.25
    slice_thickness: Range = (3.0, 4.0)

    # BrainWeb: non-uniformity 0-40 % (a range of 1 +- half of it over the head), noise 0-9 % of a reference tissue (the
    # brightest brain tissue here), Rician. Clinical scans are never free of noise: 1 %.
    bias_percent: Range = (0.0, 40.0)
    noise_percent: Range = (1.0, 9.0)
    tissues: TissueConstants = field(default_factory=_brainweb_tissues)
    tissue_scale_sd: float = 0.05  # biological spread of T1 and T2 within a tissue; textbook

    # Sequences, ms (textbook protocols). T1 is spin echo on some scanners and inversion-prepared (MPRAGE-like) on
    # others.
    num_scanners: int = 6
    t1_spin_echo: tuple[Range, Range] = ((400.0, 700.0), (8.0, 20.0))  # TR, TE
    t1_inversion: tuple[Range, Range] = ((1800.0, 2500.0), (850.0, 1100.0))  # TR, TI; TE 3 ms
    t2: tuple[Range, Range] = ((3000.0, 6000.0), (80.0, 120.0))  # TR, TE
    flair: tuple[Range, Range] = ((8000.0, 10000.0), (90.0, 130.0))  # TR, TE; TI nulls CSF within:
    flair_inversion_error: float = 0.05
    scan_jitter: float = 0.04  # relative change of TR, TE, TI between scans of one scanner; textbook
    gain: Range = (150.0, 1500.0)  # stored value of white matter: MR units are arbitrary
    gain_scan_sd: float = 0.25  # log SD between scans of one scanner; prescan gain varies (textbook)


@dataclass(frozen=True)
class BodyRanges:
    """Anatomy of the body-CT phantoms; lengths in mm, values in HU."""

    # HU: textbook tables without contrast medium.
    hu: dict[str, Range] = field(
        default_factory=lambda: {
            "air": (-1000.0, -1000.0),
            "lung": (-900.0, -800.0),
            "fat": (-110.0, -80.0),
            "muscle": (40.0, 60.0),
            "heart": (35.0, 50.0),
            "liver": (45.0, 65.0),
            "vessel": (35.0, 50.0),
            "nodule": (0.0, 60.0),
            "marrow": (120.0, 250.0),
            "bone": (600.0, 1100.0),
            "table": (-400.0, -200.0),
        }
    )
    half_width: Range = (150.0, 195.0)  # trunk 30-39 cm wide; textbook
    depth_ratio: Range = (0.62, 0.75)  # antero-posterior over lateral; textbook
    fat_thickness: Range = (8.0, 35.0)  # subcutaneous; textbook
    wall_thickness: Range = (14.0, 22.0)  # muscle and ribs; textbook
    # Solid nodules are followed from 6 mm (Fleischner Society, MacMahon et al., Radiology 284:228, 2017) and are masses
    # above 30 mm (textbook); from 8 mm here, so that the coarse voxels show them.
    nodule_probability: float = 0.5
    nodule_count: tuple[int, int] = (1, 3)
    nodule_diameter: Range = (8.0, 30.0)
    pixel: float = 6.25  # of the archive, 64 x 64 pixels: 400 mm, a usual field of view for a trunk (textbook)
    slice_thickness: float = 5.0  # textbook
    coverage_s: float = 240.0
    shift: float = 15.0  # off-centre position on the table; order of magnitude
    rotation_deg: float = 5.0  # roll; order of magnitude
    noise_hu: Range = (8.0, 25.0)  # SD in soft tissue, low-dose to diagnostic; textbook


@dataclass(frozen=True)
class HeadCtRanges:
    """Values of the head-CT phantom in HU (textbook tables) and the gantry."""

    hu: dict[str, float] = field(
        default_factory=lambda: {
            "air": -1000.0,
            "fat": -90.0,
            "bone": 900.0,
            "muscle": 50.0,
            "csf": 8.0,
            "grey": 40.0,
            "white": 28.0,
            "ventricle": 8.0,
            "lesion": 18.0,
            "eye": 10.0,
        }
    )
    noise_hu: float = 5.0  # textbook: 3-6 HU
    gantry_tilt_deg: Range = (12.0, 20.0)  # parallel to the orbitomeatal line; scanners allow up to 30


HEAD = HeadRanges()
BODY = BodyRanges()
HEAD_CT = HeadCtRanges()
