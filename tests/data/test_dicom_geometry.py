"""The reader against slices whose voxel values say where they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import (
    AXIAL,
    PIXEL_SPACING,
    compressed,
    enhanced,
    field,
    image,
    misplaced,
    set_pixels,
    stack,
    turned,
    write,
    write_bare,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from scipy.spatial.transform import Rotation

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.assembly import Candidate, assemble
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.header_pass import read_frames
from lejepa_med.data.dicom.volume import read_volume
from lejepa_med.data.index.entries_dicom import drop_repeated_instances

ROUNDING = 0.5 + 1e-3
TEMPLATE = Frame(
    path="", index=0, sop_uid="", series_uid="1", study_uid="1", patient_id="1", frame_of_reference="", modality="ct",
    rows=7, columns=9, pixel_spacing=PIXEL_SPACING, orientation=AXIAL, position=(0.0, 0.0, 0.0), slope=1.0,
    intercept=0.0,
    padding=(), kind="image", image_type=(), temporal="", trigger="", echo="", b_value="", direction="", stack="",
    acquisition="", time="", sequence="", body_part="", flags=(), damage="", mosaic=0, bytes=0,
)  # fmt: skip


def candidates(folder: Path, **changes: object) -> list[Candidate]:
    frames = [frame for path in sorted(folder.iterdir()) for frame in read_frames(path)]
    return assemble(drop_repeated_instances(frames)[0], IndexSettings.model_validate(changes))


def only(folder: Path, **changes: object) -> Candidate:
    (candidate,) = candidates(folder, **changes)
    return candidate


def written(folder: Path, datasets: list[Dataset]) -> Candidate:
    write(folder, datasets)
    return only(folder)


def check_places(candidate: Candidate, tolerance: float = ROUNDING, scale: float = 1.0) -> None:
    assert candidate.stack is not None
    assert misplaced(read_volume(candidate.stack), scale) <= tolerance


def test_every_voxel_is_where_the_header_says(tmp_path: Path) -> None:
    candidate = written(tmp_path, stack(8, gap=2.5))
    check_places(candidate)
    assert (candidate.reason, candidate.flags) == ("", frozenset())
    assert candidate.stack is not None and candidate.stack.shape == (9, 7, 8)
    np.testing.assert_allclose(np.linalg.norm(candidate.stack.affine[:3, :3], axis=0), [0.75, 1.5, 2.5])


@settings(max_examples=25, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    gap=st.floats(0.3, 9),
    count=st.integers(3, 12),
    start=st.tuples(*[st.floats(-100, 100)] * 3),
)
def test_any_oblique_stack_keeps_its_affine(
    angles: tuple[float, ...], gap: float, count: int, start: tuple[float, ...]
) -> None:
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    positions = [np.array(start) + turn[:, 2] * gap * number for number in range(count)]
    frames = [_frame(position, turn, number) for number, position in enumerate(positions)]
    (candidate,) = assemble(frames[::-1], IndexSettings())
    assert (candidate.reason, candidate.flags) == ("", frozenset())
    assert candidate.stack is not None and [frame.index for frame in candidate.stack.frames] == list(range(count))
    lps = np.diag([-1, -1, 1, 1]) @ candidate.stack.affine
    np.testing.assert_allclose(lps[:3, 3], start, atol=1e-6)
    np.testing.assert_allclose(
        lps[:3, :3], turn * [PIXEL_SPACING[1], PIXEL_SPACING[0], gap], atol=1e-6, err_msg="columns, rows, slices"
    )


def _frame(position: np.ndarray, turn: np.ndarray, number: int) -> Frame:
    return dataclasses.replace(
        TEMPLATE,
        position=tuple(position.tolist()),
        orientation=(*turn[:, 0].tolist(), *turn[:, 1].tolist()),
        index=number,
        sop_uid=str(number),
    )


def test_instance_numbers_and_names_decide_nothing(tmp_path: Path) -> None:
    slices = stack(8)
    for number, dataset in enumerate(slices):
        dataset.InstanceNumber = 8 - number
    check_places(written(tmp_path, slices))


def test_shuffled_names_give_the_same_volume(tmp_path: Path) -> None:
    volumes = []
    for seed in (1, 2):
        write(tmp_path / str(seed), stack(6), seed)
        built = only(tmp_path / str(seed)).stack
        assert built is not None
        volumes.append(read_volume(built))
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)
    np.testing.assert_array_equal(volumes[0].affine, volumes[1].affine)


def test_tilted_gantry_keeps_a_sheared_affine(tmp_path: Path) -> None:
    tilt = turned(18.5)
    slices = [image((-3.0, 4.0, 3.0 * number), number + 1, tilt) for number in range(6)]
    candidate = written(tmp_path, slices)
    check_places(candidate)
    assert candidate.reason == "" and candidate.flags == {"gantry_tilt"}


def test_localizer_under_the_same_series(tmp_path: Path) -> None:
    scout = image((0, -50, 50), 99, (1, 0, 0, 0, 0, -1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write(tmp_path, [*stack(8), scout])
    volume, localizer = candidates(tmp_path)
    check_places(volume)
    assert (volume.reason, volume.flags, localizer.reason) == ("", frozenset(), "localizer")
    write(tmp_path / "alone", stack(8))
    alone = only(tmp_path / "alone")
    assert (volume.group, volume.part) == (alone.group, alone.part)  # the scout changes no key


def test_one_missing_slice_is_interpolated_and_flagged(tmp_path: Path) -> None:
    slices = stack(9)
    del slices[4]
    candidate = written(tmp_path, slices)
    check_places(candidate, tolerance=1.0)  # the field is linear, so interpolation restores it up to rounding
    assert candidate.reason == "" and candidate.flags == {"missing_slices"}
    assert candidate.stack is not None and candidate.stack.num_slots == 9


@pytest.mark.parametrize(("limit", "reason"), [(2, "irregular_spacing"), (3, "")])
def test_holes_have_a_limit(tmp_path: Path, limit: int, reason: str) -> None:
    slices = stack(12)
    del slices[4:7]
    write(tmp_path, slices)
    assert only(tmp_path, max_hole_slices=limit).reason == reason


def test_duplicate_slices_are_dropped(tmp_path: Path) -> None:
    slices = stack(8)
    same_position = image(tuple(slices[3].ImagePositionPatient), 77)
    write(tmp_path, [*slices, slices[5], same_position])
    candidate = only(tmp_path)
    check_places(candidate)
    assert candidate.flags == {"repeated_positions"}
    assert candidate.stack is not None and candidate.stack.num_slots == 8


def test_variable_spacing_is_rejected(tmp_path: Path) -> None:
    heights = [0, 1.08, 5.08, 9.08, 16.08, 23.08, 24.9]
    candidate = written(tmp_path, [image((0, 0, height), number) for number, height in enumerate(heights)])
    assert candidate.reason == "irregular_spacing"
    assert candidate.stack is not None and candidate.stack.gaps_mm == pytest.approx((1.08, 4.0, 7.0))


@pytest.mark.parametrize(("jitter", "reason"), [(0.04, ""), (0.12, ""), (0.16, "irregular_spacing")])
def test_gaps_may_differ_by_five_percent(tmp_path: Path, jitter: float, reason: str) -> None:
    heights = np.arange(10) * 2.5
    heights[6:] += jitter
    candidate = written(tmp_path, [image((0, 0, height), number) for number, height in enumerate(heights)])
    assert candidate.reason == reason


@pytest.mark.parametrize("tag", ["TemporalPositionIdentifier", "EchoNumbers", "AcquisitionNumber", "TriggerTime"])
def test_repeated_positions_split_by_what_tells_them_apart(tmp_path: Path, tag: str) -> None:
    slices = []
    for part in (1, 2):
        for number, dataset in enumerate(stack(6)):
            setattr(dataset, tag, part)
            dataset.SOPInstanceUID = f"1.2.826.77.{part}.{number}"
            set_pixels(dataset, field(dataset.ImagePositionPatient) / part)
            slices.append(dataset)
    write(tmp_path, slices)
    first, second = candidates(tmp_path)
    check_places(first)
    check_places(second, tolerance=1.01, scale=2.0)
    assert first.flags == second.flags == {"split_series"} and first.part != second.part


def test_time_points_beyond_the_limit_are_rows_with_a_reason(tmp_path: Path) -> None:
    slices = []
    for part in range(1, 6):
        for number, dataset in enumerate(stack(4)):
            dataset.TemporalPositionIdentifier, dataset.SOPInstanceUID = part, f"1.2.826.77.{part}.{number}"
            slices.append(dataset)
    write(tmp_path, slices)
    reasons = [candidate.reason for candidate in candidates(tmp_path, keep_timepoints=2)]
    assert reasons == ["", "", *["timepoint_not_kept"] * 3]


def test_step_and_shoot_is_one_volume(tmp_path: Path) -> None:
    """AcquisitionNumber changes every second slice, but nothing overlaps."""
    slices = stack(10)
    for number, dataset in enumerate(slices):
        dataset.AcquisitionNumber = number // 2
    candidate = written(tmp_path, slices)
    check_places(candidate)
    assert (candidate.part, candidate.reason, candidate.flags) == ("", "", frozenset())


def test_positions_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    again = [image(tuple(dataset.ImagePositionPatient), 50 + n) for n, dataset in enumerate(stack(6))]
    write(tmp_path, [*stack(6), *again])
    assert only(tmp_path).reason == "ambiguous_positions"


def test_monochrome1_is_not_inverted(tmp_path: Path) -> None:
    slices = stack(5)
    for dataset in slices:
        dataset.PhotometricInterpretation = "MONOCHROME1"
    check_places(written(tmp_path, slices))


def test_each_slice_has_its_own_slope_and_intercept(tmp_path: Path) -> None:
    slices = stack(6)
    for number, dataset in enumerate(slices):
        slope, intercept = 0.5 + 0.25 * number, -100.0 * number
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        set_pixels(dataset, (field(dataset.ImagePositionPatient) - intercept) / slope)
    check_places(written(tmp_path, slices), tolerance=0.5 * 1.75 + 0.01)


def test_padding_becomes_the_lowest_value(tmp_path: Path) -> None:
    slices = stack(4)
    for dataset in slices:
        values = field(dataset.ImagePositionPatient)
        values[0, 0] = 65_000
        set_pixels(dataset, values)
        dataset.PixelPaddingValue = 65_000
    built = written(tmp_path, slices).stack
    assert built is not None
    array = read_volume(built).array
    assert set(array[0, 0].tolist()) == {array.min()} and array.max() < 65_000


def test_run_length_encoding(tmp_path: Path) -> None:
    check_places(written(tmp_path, compressed(stack(5))))


def test_files_without_preamble(tmp_path: Path) -> None:
    write_bare(tmp_path, stack(5))
    check_places(only(tmp_path))


@pytest.mark.parametrize("encode", [list, compressed])
def test_a_truncated_file_costs_one_slice(tmp_path: Path, encode: Callable[[list[Dataset]], list[Dataset]]) -> None:
    paths = write(tmp_path, encode(stack(8)))
    paths[3].write_bytes(paths[3].read_bytes()[:-20])
    candidate = only(tmp_path)
    check_places(candidate, tolerance=1.0)
    assert candidate.reason == "" and candidate.flags == {"truncated_slices", "missing_slices"}


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian])
def test_other_encodings(tmp_path: Path, syntax: UID) -> None:
    slices = stack(4)
    for dataset in slices:
        dataset.file_meta.TransferSyntaxUID = syntax
        if not syntax.is_little_endian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    candidate = written(tmp_path, slices)
    check_places(candidate)
    assert candidate.flags == frozenset()


def test_diffusion_keeps_the_unweighted_volume(tmp_path: Path) -> None:
    slices = []
    for part in range(5):
        for number, dataset in enumerate(stack(4)):
            dataset.SOPInstanceUID, dataset.DiffusionBValue = f"1.2.826.77.{part}.{number}", 1000.0 if part else 0.0
            if part:
                dataset.DiffusionGradientOrientation = [float(np.cos(part)), float(np.sin(part)), 0.0]
            slices.append(dataset)
    write(tmp_path, slices)
    found = candidates(tmp_path, keep_timepoints=2)
    kept = [candidate.frames[0].b_value for candidate in found if not candidate.reason]
    assert sorted(kept) == ["0", "1000", "1000"]
    assert [candidate.reason for candidate in found].count("timepoint_not_kept") == 2


def test_frames_without_functional_groups_have_no_place(tmp_path: Path) -> None:
    dataset = image((0, 0, 0))
    set_pixels(dataset, np.stack([field((0, 0, height)) for height in range(4)]))
    dataset.NumberOfFrames = 4
    assert written(tmp_path, [dataset]).reason == "no_geometry"


def test_a_hole_between_few_slices_is_seen(tmp_path: Path) -> None:
    candidate = written(tmp_path, [image((0, 0, height), int(height)) for height in (0.0, 3.0, 9.0)])
    assert candidate.flags == {"missing_slices"}
    assert candidate.stack is not None and candidate.stack.slots == (0, 1, 3)


def test_a_single_slice_is_no_volume(tmp_path: Path) -> None:
    assert written(tmp_path, stack(1)).reason == "too_few_slices"


def test_enhanced_frames_become_slices(tmp_path: Path) -> None:
    candidate = written(tmp_path, [enhanced(6)])
    check_places(candidate, tolerance=1.0 + 1e-3)  # stored halved, with slope 2
    assert candidate.reason == "" and candidate.stack is not None and candidate.stack.num_slots == 6


def test_missing_geometry_is_a_reason(tmp_path: Path) -> None:
    slices = stack(4)
    for dataset in slices:
        del dataset.ImagePositionPatient
    assert written(tmp_path, slices).reason == "no_geometry"


def test_image_types_that_are_no_anatomy(tmp_path: Path) -> None:
    for token, reason in (("MIP", "projection"), ("ADC", "derived_map"), ("P", "phase_image")):
        folder = tmp_path / token
        slices = stack(4, ImageType=["DERIVED", "PRIMARY", token])
        write(folder, slices)
        assert only(folder).reason == reason
        assert only(folder, keep_derived=True).reason == ""
