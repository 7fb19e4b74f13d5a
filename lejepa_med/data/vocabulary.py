"""The closed vocabularies of an index: every word that may stand in `series.csv` besides numbers and hashes.

Header texts never reach an index: they are mapped to these words by rule, or to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

VERDICTS: dict[str, str] = {
    "accepted": "used",
    "flagged": "used, with remarks",
    "rejected": "not used",
}

FILE_REASONS: dict[str, str] = {
    "empty_file": "0 bytes, or an archive without files",
    "permission_denied": "the file or folder may not be read",
    "symlink_loop": "a link that leads back to a folder above it",
    "broken_link": "a link to nothing",
    "linked_twice": "a link to a folder or file that is read elsewhere",
    "unreadable_name": "a file name that is not UTF-8",
    "special_file": "a device, pipe or socket",
    "not_a_scan": "no DICOM, NIfTI or image",
    "packed": "an archive inside an archive, or of a kind that is not read in place (7z, rar, ...); unpack it first",
    "unsupported_format": "a scan format that is not read (NRRD, MetaImage, MGH, Analyze pairs, MINC)",
    "unreadable": "looks like a scan, an archive or a folder, but cannot be read",
    "truncated": "the file ends before its pixels do",
    "dicomdir": "a DICOM directory file",
    "structured_report": "DICOM SR",
    "segmentation": "DICOM SEG",
    "radiotherapy": "DICOM RT object",
    "presentation_state": "DICOM presentation state",
    "key_object": "DICOM key object selection",
    "document": "PDF or other document in DICOM",
    "secondary_capture": "DICOM secondary capture",
    "other_dicom": "DICOM of a kind that is no CT, MR or PET image",
    "not_understood": "the reader failed on this series: a defect of the reader, please report it",
    "no_pixels": "an image header without pixels",
    "duplicate": "the same image or file content a second time",
    "colour": "colour pixels",
    "crashed_reader": "the reading process died of this file or never ended",
    "values_unknown": "a lookup table, or a slope of 0 or no number: what stored pixels mean is not known",
    "encrypted": "a member of an archive with a password",
    "own_output": "a folder that lejepa-med wrote: an index, converted volumes, a cache or a run",
    "too_large": "claims more than any scan holds, or unpacks to over 1,000 times its size",
}

VOLUME_REASONS: dict[str, str] = {
    "localizer": "scout or localizer",
    "screen_save": "a screen save",
    "projection": "maximum or minimum intensity projection",
    "derived_map": "a map computed from images (ADC, FA, CBF, subtraction, ...)",
    "phase_image": "phase, velocity, real or imaginary part",
    "no_geometry": "position, orientation or pixel size is missing or impossible",
    "too_few_slices": "fewer slices than `min_slices`",
    "irregular_spacing": "slice gaps differ by more than 5 % and are no simple holes",
    "ambiguous_positions": "several slices at one position, and no header field tells them apart",
    "timepoint_not_kept": "one of more time points than `keep_timepoints`",
    "undecodable": "pixels cannot be decoded",
    "constant": "all voxels are equal",
    "not_finite": "NaN or infinite voxels",
    "complex_values": "complex numbers",
    "label_map": "integer labels, not intensities (`accept_label_maps` keeps it)",
    "other_modality": "a modality that `modalities` leaves out",
    "other_body_part": "a body part that `body_parts` leaves out",
    "body_part_unknown": "the header names no known body part, and `unknown_body_part` is reject",
    "other_sequence": "an MRI sequence that `sequences` leaves out",
    "sequence_unknown": "an MRI sequence that the header does not tell, and `unknown_sequence` is reject",
    "burned_in": "its header says that text is burned into the pixels, and `keep_burned_in` is not set",
    "reformatted": "a multiplanar reformat, and `keep_reformatted` is not set",
    "derived": "marked DERIVED in its header, and `keep_marked_derived` is not set",
    "lossy": "lossy compression, and `keep_lossy` is not set",
    "matrix_too_small": "fewer pixels along a side of a slice or image than `min_matrix`",
    "spacing_out_of_limits": "a voxel side within slices, or the distance of slices, is outside the limits in mm",
    "extent_too_small": "smaller than `min_extent_mm` along an axis of the patient",
    "too_many_voxels": "more voxels than `max_voxels`",
}

REASONS: dict[str, str] = {**FILE_REASONS, **VOLUME_REASONS}

FLAGS: dict[str, str] = {
    "gantry_tilt": "sheared: the slices are shifted against their normal",
    "missing_slices": "interior holes, filled by linear interpolation",
    "truncated_slices": "slices left out because their file is truncated or has no pixels",
    "repeated_slices": "a repeated image was dropped",
    "duplicate_file": "another file with the same content was left out",
    "repeated_positions": "a second slice at one position was dropped",
    "split_series": "one of several volumes under one series UID",
    "derived": "marked DERIVED in its header",
    "reformatted": "a multiplanar reformat",
    "hu_uncertain": "CT whose values may be no Hounsfield units",
    "lossy": "lossy compression",
    "label_map": "integer labels, kept because `accept_label_maps` is set",
    "localizer": "a localizer, kept because `keep_localizers` is set",
    "derived_map": "a derived map or projection, kept because `keep_derived` is set",
    "modality_unknown": "nothing says whether this is MRI or CT; set `modality` or `rules`",
    "patient_unknown": "no patient id: grouped by study or by file alone; NIfTI and images: name them by `patients`",
    "qform_sform_differ": "the two NIfTI orientations disagree; sform is used",
    "no_orientation": "the NIfTI header names no orientation: left and right are unknown",
    "units_converted": "the NIfTI header was in metres or microns",
    "spacing_suspect": "a voxel side under 0.05 or over 20 mm",
    "intensity_scaled": "stored values were scaled by the NIfTI header",
    "mosaic": "tiles of a Siemens mosaic",
    "body_part_unknown": "kept although the header names no known body part and `body_parts` is set",
    "sequence_unknown": "MRI that is kept although its sequence is not known and `sequences` is set",
    "resampled_slices": "slices off the regular grid by up to a tenth of their gap or 0.1 mm, interpolated onto it",
    "orientation_corrected": "directions not quite perpendicular and of unit length; the nearest that are were used",
    "burned_in": "marked as having text burnt into its pixels",
    "nan_filled": "NaN outside the body, or in at most 0.1 % of the voxels, set to the lowest value",
    "interleaved_parts": "slices in turns of several acquisition numbers or times: one scan, or shifted time points",
    "shared_series_uid": "the same series UID also stands under another patient or study",
    "undecodable_slices": "slices left out because their compressed pixels cannot be decoded",
}

SEQUENCES = (
    "t1", "t2", "t2star", "pd", "flair", "stir", "dwi", "bold", "swi", "tof", "perfusion", "flow",
)  # fmt: skip

BODY_PARTS = (
    "head", "neck", "spine", "chest", "breast", "heart", "abdomen", "pelvis", "extremity", "whole_body",
)  # fmt: skip

_BODY_PART_WORDS: dict[str, tuple[str, ...]] = {
    "head": ("HEAD", "BRAIN", "SKULL", "ORBIT", "FACE", "SINUS", "IAC", "PITUITARY", "TEMPORAL", "JAW", "EYE", "EAR"),
    "neck": ("NECK", "THYROID", "LARYNX"),
    "spine": ("SPINE", "CSPINE", "TSPINE", "LSPINE", "SSPINE", "CTSPINE", "TLSPINE", "LSSPINE", "SACRUM", "COCCYX"),
    "chest": ("CHEST", "THORAX", "LUNG", "MEDIASTINUM"),
    "breast": ("BREAST",),
    "heart": ("HEART", "CARDIAC", "CORONARY", "CORONARYARTERY"),
    "abdomen": ("ABDOMEN", "LIVER", "KIDNEY", "PANCREAS", "SPLEEN", "STOMACH", "COLON", "GALLBLADDER", "ADRENAL"),
    "pelvis": ("PELVIS", "PROSTATE", "BLADDER", "UTERUS", "HIP", "RECTUM"),
    "extremity": ("EXTREMITY", "KNEE", "ANKLE", "FOOT", "LEG", "THIGH", "SHOULDER", "ELBOW", "WRIST", "HAND", "ARM"),
    "whole_body": ("WHOLEBODY", "TOTALBODY", "BODY"),
}

_CONTRASTS = {
    "DIFFUSION": "dwi", "FLUID_ATTENUATED": "flair", "PERFUSION": "perfusion", "PROTON_DENSITY": "pd", "STIR": "stir",
    "T1": "t1", "T2": "t2", "T2_STAR": "t2star", "TOF": "tof", "FLOW_ENCODED": "flow",
}  # fmt: skip


def body_part(examined: str) -> str:
    """The word for a BodyPartExamined; empty when it is none of the known ones."""
    text = "".join(letter for letter in examined.upper() if letter.isalpha())
    for word, names in _BODY_PART_WORDS.items():
        if text in names:
            return word
    return ""


def sequence(
    contrast: str,
    scanning: Sequence[str],
    image_type: Iterable[str],
    times_ms: tuple[float, float, float],
    b_value: float,
) -> str:
    """The word for an MR sequence, from AcquisitionContrast or from timing; empty when the rules do not decide.

    `times_ms` are repetition, echo and inversion time, NaN where absent; `scanning` is ScanningSequence.
    """
    if contrast in _CONTRASTS:
        return _CONTRASTS[contrast]
    tokens = set(image_type)
    if b_value > 0 or "DIFFUSION" in tokens:
        return "dwi"
    if "SWI" in tokens or "SWI_IMAGES" in tokens:
        return "swi"
    return _by_timing(set(scanning), *times_ms)


def _by_timing(scanning: set[str], repetition: float, echo: float, inversion: float) -> str:
    if not repetition > 0 or not echo > 0:
        return ""
    if "IR" in scanning and inversion > 0:
        if inversion >= 1500 and echo >= 60:
            return "flair"
        if inversion < 300 and "SE" in scanning:
            return "stir"
        if echo < 30 and inversion < 1500:
            return "t1"
    if "EP" in scanning:
        return "bold" if "SE" not in scanning and 15 <= echo <= 60 else ""
    if "SE" in scanning:
        if echo < 40:
            return "t1" if repetition < 1200 else "pd"
        return "t2" if repetition >= 1500 and echo >= 60 else ""
    if "GR" in scanning:
        if echo >= 12:
            return "t2star"
        return "t1" if repetition < 600 else ""
    return ""
