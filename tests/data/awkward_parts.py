"""Awkward series: several volumes under one series, time points, contrasts, stations, and slices of something else."""

from __future__ import annotations

import numpy as np
from awkward import along, axial, brighter, case, renumber, repeated
from dicom_factory import image
from pydicom.dataset import Dataset

EVEN = [2.5 * k for k in range(8)]
THREE = ["8 slices: split_series"] * 3
TWO = ["8 slices: split_series"] * 2


@case("a localizer under the same series UID", "8 slices", "rejected localizer")
def localizer_under_the_series() -> list[Dataset]:
    scout = image((0, -20, 20), 99, (1, 0, 0, 0, 0, -1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return [*axial(EVEN), scout]


@case("a localizer of three orthogonal slices that is not marked as one", *["rejected too_few_slices"] * 3)
def unmarked_localizer() -> list[Dataset]:
    planes = [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)]
    return [image((0, 0, 0), k + 1, plane) for k, plane in enumerate(planes)]


@case("one coronal slice among axial ones", "8 slices: split_series", "rejected too_few_slices")
def one_slice_of_another_plane() -> list[Dataset]:
    return [*axial(EVEN), image((0, -20, 20), 99, (1, 0, 0, 0, 0, -1))]


@case("two series in one folder", "8 slices", "6 slices")
def two_series() -> list[Dataset]:
    return [*axial(EVEN), *brighter(axial([1.5 * k for k in range(6)], 50, SeriesInstanceUID="1.2.826.77.22"), 1)]


@case("one series UID in two studies", *["8 slices: shared_series_uid"] * 2)
def one_series_in_two_studies() -> list[Dataset]:
    return [*axial(EVEN), *brighter(axial(EVEN, 50, StudyInstanceUID="1.2.826.77.11"), 1)]


@case("two patients under one study and series UID", *["8 slices: shared_series_uid"] * 2)
def one_series_of_two_patients() -> list[Dataset]:
    return [*axial(EVEN), *brighter(axial(EVEN, 50, PatientID="PLANTED-ID-2"), 1)]


@case("an id with blanks around it in every second slice", "8 slices")
def patient_id_with_blanks() -> list[Dataset]:
    slices = axial(EVEN)
    for dataset in slices[::2]:
        dataset.PatientID = f"  {dataset.PatientID}  "
    return slices


@case("no patient id in every second slice", "8 slices")
def patient_id_missing() -> list[Dataset]:
    slices = axial(EVEN)
    for dataset in slices[::2]:
        dataset.PatientID = ""
    return slices


@case("an id in small letters in every second slice: other ids are other patients", 
      *["4 slices: shared_series_uid"] * 2)  # fmt: skip
def patient_id_of_other_case() -> list[Dataset]:
    slices = axial(EVEN)
    for dataset in slices[::2]:
        dataset.PatientID = dataset.PatientID.lower()
    return slices


@case("two patients' ids in turn under one series UID", *["4 slices: shared_series_uid"] * 2)
def patient_ids_in_turn() -> list[Dataset]:
    slices = axial(EVEN)
    for dataset in slices[::2]:
        dataset.PatientID = "PLANTED-ID-2"
    return slices


@case("one instance UID for all slices, and different positions", "8 slices")
def one_instance_uid_for_all() -> list[Dataset]:
    return axial(EVEN, SOPInstanceUID="1.2.826.77.9.1")


@case("three time points by TemporalPositionIdentifier", *THREE)
def time_points_by_identifier() -> list[Dataset]:
    return repeated(3, EVEN, lambda dataset, part, _: setattr(dataset, "TemporalPositionIdentifier", part + 1))


@case("three time points that only AcquisitionTime tells apart", *THREE)
def time_points_by_time() -> list[Dataset]:
    return repeated(3, EVEN, lambda dataset, part, _: setattr(dataset, "AcquisitionTime", f"10152{part}.5"))


@case(
    "three time points, every slice with its own AcquisitionTime", "rejected ambiguous_positions", "rejected duplicate"
)
def time_points_of_many_times() -> list[Dataset]:
    return repeated(3, EVEN, lambda dataset, part, k: setattr(dataset, "AcquisitionTime", f"101{part}0{k}"))


@case("three time points that only ContentTime and InstanceNumber tell apart", "rejected ambiguous_positions",
      "rejected duplicate")  # fmt: skip
def time_points_by_instance_number() -> list[Dataset]:
    def change(dataset: Dataset, part: int, k: int) -> None:
        dataset.ContentTime, dataset.InstanceNumber = f"10152{part}", part * 8 + k + 1

    return repeated(3, EVEN, change)


@case("five time points, three are kept", *THREE, *["rejected timepoint_not_kept"] * 2)
def more_time_points_than_kept() -> list[Dataset]:
    return repeated(5, EVEN, lambda dataset, part, _: setattr(dataset, "TemporalPositionIdentifier", part + 1))


@case("contrast medium: one time point lacks a slice", *TWO, "8 slices: missing_slices;split_series")
def time_point_with_hole() -> list[Dataset]:
    slices = repeated(3, EVEN, lambda dataset, part, _: setattr(dataset, "TemporalPositionIdentifier", part + 1))
    return slices[:12] + slices[13:]


@case("the last time point was aborted after one slice, in a small series", "8 slices: repeated_positions",
      "rejected duplicate")  # fmt: skip
def aborted_time_point() -> list[Dataset]:
    slices = repeated(2, EVEN, lambda dataset, part, _: setattr(dataset, "TemporalPositionIdentifier", part + 1))
    for k, dataset in enumerate(slices):
        dataset.SOPInstanceUID = f"1.2.826.77.9.{99 - k}"  # the stray one would come first by its UID
    return slices[:9]


@case("the second time point has another number of slices", "8 slices: split_series", "5 slices: split_series")
def time_points_of_unequal_length() -> list[Dataset]:
    slices = repeated(2, EVEN, lambda dataset, part, _: setattr(dataset, "TemporalPositionIdentifier", part + 1))
    return slices[:13]


@case("time points whose slices were acquired in opposite order", *TWO)
def time_points_in_opposite_order() -> list[Dataset]:
    def change(dataset: Dataset, part: int, k: int) -> None:
        dataset.TemporalPositionIdentifier = part + 1
        dataset.InstanceNumber = 8 * part + (k if part else 7 - k)

    return repeated(2, EVEN, change)


@case("the second time point lies 0.9 mm higher", *TWO)
def time_points_that_moved() -> list[Dataset]:
    first, second = axial(EVEN), brighter(axial([z + 0.9 for z in EVEN], 50), 1)
    for part, slices in enumerate((first, second)):
        for dataset in slices:
            dataset.TemporalPositionIdentifier = part + 1
    return [*first, *second]


@case("diffusion: one unweighted volume and two directions", *THREE)
def diffusion() -> list[Dataset]:
    def change(dataset: Dataset, part: int, _: int) -> None:
        dataset.DiffusionBValue = 1000.0 if part else 0.0
        if part:
            dataset.DiffusionGradientOrientation = [float(part == 1), float(part == 2), 0.0]

    return repeated(3, EVEN, change)


@case("two echoes", *TWO)
def echoes() -> list[Dataset]:
    return repeated(2, EVEN, lambda dataset, part, _: setattr(dataset, "EchoTime", 10.0 + 80 * part))


@case("two echoes whose slices lie between each other: together they look like one stack", *TWO)
def interleaved_echoes() -> list[Dataset]:
    first = axial(EVEN, EchoTime=10.0)
    return [*first, *brighter(axial([z + 1.25 for z in EVEN], 50, EchoTime=90.0), 1)]


@case("Dixon: water and fat told apart by ImageType only", *TWO)
def dixon() -> list[Dataset]:
    return repeated(2, EVEN, lambda d, part, _: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "WF"[part]]))


@case("magnitude and phase in one series", "8 slices", "rejected phase_image")
def magnitude_and_phase() -> list[Dataset]:
    return repeated(2, EVEN, lambda d, part, _: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "MP"[part]]))


@case("heart beats at one place: TriggerTime only", "rejected too_few_slices", "rejected duplicate")
def cine_of_one_slice() -> list[Dataset]:
    return repeated(8, [0.0], lambda dataset, part, _: setattr(dataset, "TriggerTime", 40.0 * part))


@case("heart beats of a stack", *TWO)
def cine_of_a_stack() -> list[Dataset]:
    return repeated(2, EVEN, lambda dataset, part, _: setattr(dataset, "TriggerTime", 40.0 * part))


@case("step and shoot: another AcquisitionNumber for every slice", "8 slices")
def step_and_shoot() -> list[Dataset]:
    slices = axial(EVEN)
    for k, dataset in enumerate(slices):
        dataset.AcquisitionNumber = k + 1
    return slices


@case("odd and even slices under two acquisition numbers", "8 slices: interleaved_parts")
def interleaved_acquisitions() -> list[Dataset]:
    slices = axial(EVEN)
    for k, dataset in enumerate(slices):
        dataset.AcquisitionNumber = 1 + k % 2
    return slices


@case("odd and even slices, not quite in the middle of each other", *TWO)
def interleaved_off_the_middle() -> list[Dataset]:
    return [*axial(EVEN, AcquisitionNumber=1), *brighter(axial([z + 1.0 for z in EVEN], 50, AcquisitionNumber=2), 1)]


@case("two stations that meet", "16 slices")
def contiguous_stations() -> list[Dataset]:
    return [*axial(EVEN, AcquisitionNumber=1), *axial([z + 20 for z in EVEN], 50, AcquisitionNumber=2)]


@case("two stations 1.1 mm too far apart", "rejected irregular_spacing")
def stations_off_the_grid() -> list[Dataset]:
    return [*axial(EVEN, AcquisitionNumber=1), *axial([z + 21.1 for z in EVEN], 50, AcquisitionNumber=2)]


@case("two stations that share three slices", *TWO)
def overlapping_stations() -> list[Dataset]:
    return [*axial(EVEN, AcquisitionNumber=1), *brighter(axial([z + 12.5 for z in EVEN], 50, AcquisitionNumber=2), 1)]


@case("two stations that overlap, off by half a slice", *TWO)
def overlapping_stations_off_the_grid() -> list[Dataset]:
    return [*axial(EVEN, AcquisitionNumber=1), *axial([z + 13.75 for z in EVEN], 50, AcquisitionNumber=2)]


@case("two stations that overlap, and nothing tells them apart", "rejected ambiguous_positions", "rejected duplicate")
def overlapping_stations_untold() -> list[Dataset]:
    return [*axial(EVEN), *brighter(axial([z + 12.5 for z in EVEN], 50), 1)]


@case("two frames of reference under one series", *TWO)
def two_frames_of_reference() -> list[Dataset]:
    return [*axial(EVEN), *axial([z + 20 for z in EVEN], 50, FrameOfReferenceUID="1.2.826.77.33")]


@case("one slice has another matrix", "8 slices: missing_slices;split_series", "rejected too_few_slices")
def mixed_matrix() -> list[Dataset]:
    return [*axial(EVEN[:3]), image((-3, 4, EVEN[3]), 20, shape=(5, 9)), *axial(EVEN[4:], 30)]


@case("two halves of different matrix", "4 slices: split_series", "4 slices: split_series")
def two_matrices() -> list[Dataset]:
    return [*axial(EVEN[:4]), *axial(EVEN[4:], 30, shape=(5, 9))]


@case("two halves of different pixel spacing", "4 slices: split_series", "4 slices: split_series")
def two_pixel_spacings() -> list[Dataset]:
    return [*axial(EVEN[:4]), *axial(EVEN[4:], 30, spacing=(1.5, 0.8))]


@case("pixel spacing 0.08 % wider in one slice: 0.5 mm at the edge of a wide image",
      "8 slices: missing_slices;split_series", "rejected too_few_slices")  # fmt: skip
def pixel_spacing_almost_equal() -> list[Dataset]:
    wide = axial(EVEN, shape=(3, 400), spacing=(1.0, 1.0))
    return [*wide[:3], image((-3, 4, EVEN[3]), 20, shape=(3, 400), spacing=(1.0008, 1.0008)), *wide[4:]]


@case("two stacks side by side at the same heights", *["rejected ambiguous_positions"], "rejected duplicate")
def side_by_side() -> list[Dataset]:
    return [*axial(EVEN), *renumber(along((0, 0, 2.5), 8, start=(20.0, 4.0, 0.0)), 50)]


@case("two stacks side by side told apart by StackID", *TWO)
def side_by_side_told() -> list[Dataset]:
    second = renumber(along((0, 0, 2.5), 8, start=(20.0, 4.0, 0.0)), 50)
    for dataset in second:
        dataset.StackID = "2"
    return [*axial(EVEN, StackID="1"), *second]


@case("three parallel blocks of discs with gaps between", "rejected irregular_spacing")
def blocks_with_gaps() -> list[Dataset]:
    return axial(np.concatenate([start + 3.0 * np.arange(4) for start in (0, 31, 62)]).tolist())


@case("CT and MR slices under one series UID", "8 slices: split_series", "8 slices: hu_uncertain;split_series")
def two_modalities() -> list[Dataset]:
    return [*axial(EVEN), *axial([z + 20 for z in EVEN], 50, sop_class="1.2.840.10008.5.1.4.1.1.2")]
