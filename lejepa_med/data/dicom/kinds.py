"""What an image is by its ImageType: an image, or a reason to reject it. Defined terms of PS3.3 and of the vendors.

Any value of the element counts, since vendors put theirs at any place. Not listed, and so images: water, fat and the
like of Dixon, virtual monoenergetic and virtual non-contrast CT, trace-weighted diffusion, synthetic MR, resampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from lejepa_med.data import vocabulary
from lejepa_med.data.dicom.elements import Elements, number, strings, text

_KINDS = (
    ("localizer", {"LOCALIZER", "SCOUT", "SCANOGRAM", "TOPOGRAM"}),
    ("screen_save", {"SCREEN SAVE", "SCREENSAVE", "SCREEN_SAVE"}),
    (
        "projection",
        {"MIP", "MINIP", "MNIP", "MAX_IP", "MIN_IP", "MAXIMUM", "MINIMUM", "PROJECTION IMAGE", "PROJECTION", "VOLREN",
         "VRT", "SSD", "VOLUME RENDERING", "RENDERED", "3D RENDERING"},
    ),
    (
        "phase_image",
        {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "PHASE IMAGE", "VELOCITY MAP", "VELOCITY", "REAL", "IMAGINARY", "R",
         "I", "R_FFE", "I_FFE", "P_FFE", "R_SE", "I_SE", "R_IR", "I_IR"},
    ),
    (
        "derived_map",
        {"ADC", "ADC_UNSPECIFIED", "ADC MAP", "FA", "TENSOR", "CBF", "CBV", "RCBF", "RCBV", "MTT", "TTP", "TMAX",
         "RELCBF", "RELCBV", "RELMTT", "T1 MAP", "T2 MAP", "T2_STAR MAP", "T2* MAP", "R2 MAP", "R2_STAR MAP", "R2* MAP",
         "T1 RHO MAP", "SUBTRACT", "SUBTRACTION", "SUB", "PARAMETRIC MAP", "EADC", "B0 MAP", "B1 MAP", "FIELD_MAP",
         "FIELD MAP", "TTEST", "KTRANS", "PERMEABILITY", "FAT_FRACTION", "FAT FRACTION", "WATER_FRACTION",
         "STD_DEVIATION", "DIVISION", "QUANTITY", "MAT_SPECIFIC", "MAT_FRACTIONAL", "MAT_VALUE_BASED",
         "EFF_ATOMIC_NUM", "ELECTRON_DENSITY"},
    ),
)  # fmt: skip
REFORMATS = {"MPR", "REFORMATTED", "MPR_THICK", "CSA MPR", "CURVED MPR"}


def kind(image_type: Iterable[str]) -> str:
    """`image`, or the reason that an ImageType gives to reject a frame."""
    tokens = set(image_type)
    return next((reason for reason, words in _KINDS if tokens & words), "image")


def flags_of_type(image_type: tuple[str, ...]) -> set[str]:
    """The flags that an ImageType gives."""
    flags = {"derived"} if image_type[:1] == ("DERIVED",) else set()
    return flags | {"reformatted"} if set(image_type) & REFORMATS else flags


def sequence(header: Elements, image_type: tuple[str, ...], b_value: str, times: tuple[float, float, float]) -> str:
    """The word for an MR sequence; `times` are repetition, echo and inversion time in ms, NaN where absent."""
    contrast = "TOF" if text(header, "AngioFlag") == "Y" else text(header, "AcquisitionContrast")
    return vocabulary.sequence(contrast, strings(header, "ScanningSequence"), image_type, times, float(b_value or 0))


def hu_uncertain(values: Elements) -> bool:
    """Whether the rescaling of a CT image is absent or not to Hounsfield units."""
    return math.isnan(number(values, "RescaleIntercept")) or text(values, "RescaleType") not in ("", "HU", "US")
