"""The reader on real headers, against volumes that others made from them."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lejepa_med.config.compute import ComputeConfig
from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.dicom.assembly import assemble
from lejepa_med.data.dicom.header_pass import read_frames
from lejepa_med.data.index.archive import index
from lejepa_med.data.reading import Archive, read_any

FOLDER = os.environ.get("LEJEPA_MED_REAL_DATA", "")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not FOLDER, reason="needs LEJEPA_MED_REAL_DATA to name the folder of real scans"),
]
VENDORS = Path(FOLDER) / "dicom_vendor_headers"
CASES = (
    "ge/anatomical/001", "ge/anatomical/001_implicit", "ge/anatomical/001_single_slice", "generic/anatomical/001",
    "generic/anatomical/002_non_isotropic", "generic/compressed_j2k/001", "generic/compressed_jpeg/001",
    "generic/compressed_jpegls/001", "generic/compressed_rle/001", "philips_enhanced/anatomical/001",
    "siemens/anatomical/001", "failing/slicecount/001",
)  # fmt: skip


# What stands beside a scan and is not compared voxel by voxel here:
# siemens/fmri/001: the other reader places this mosaic, numbered from head to feet, 148 mm too high; see its own test.
# generic/rgb/001: a secondary capture in colour, which is no volume to us.
# Where it is compared, these differ: voxels of scaled floats in the last bits of float32 (up to 1.2e-4 of 4e3), and
# affines in the sixth decimal of their positions, which NIfTI holds as float32 (up to 1e-4 voxels).
ELSEWHERE = {"siemens/fmri/001", "generic/rgb/001"}


def test_every_ground_truth_is_looked_at() -> None:
    beside = {
        str(path.relative_to(VENDORS)).split("_ground_truth")[0] for path in VENDORS.rglob("*_ground_truth.nii.gz")
    }
    assert beside == {*CASES} | ELSEWHERE


@pytest.mark.parametrize("kind", ["ground_truth", "ground_truth_reoriented"])
@pytest.mark.parametrize("case", CASES)
def test_vendors_agree_with_their_ground_truth(case: str, kind: str) -> None:
    if not (VENDORS / f"{case}_{kind}.nii.gz").exists():
        assert kind == "ground_truth_reoriented" and "compressed" in case
        return
    (volume,) = read_any(VENDORS / case)
    truth = nibabel.load(VENDORS / f"{case}_{kind}.nii.gz")
    voxels = np.asarray(truth.dataobj).reshape(truth.shape[:3])
    assert sorted(volume.array.shape) == sorted(voxels.shape)
    mapping = np.linalg.inv(truth.affine) @ volume.affine
    indexes = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), -1)
    places = indexes @ mapping[:3, :3].T + mapping[:3, 3]
    assert np.abs(places - np.rint(places)).max() < 1e-4  # every voxel of ours is a voxel of theirs
    theirs = voxels[tuple(np.moveaxis(np.rint(places).astype(int), -1, 0))]
    np.testing.assert_allclose(volume.array, theirs, rtol=1e-6, atol=2e-4)


def test_what_the_other_reader_refuses() -> None:
    """Scans without a ground truth: a hole of one slice, and a gantry tilted by 14 degrees, both kept and flagged."""
    for case, flags, slices in (("sliceincrement", {"missing_slices"}, 5), ("gantrytilting", {"gantry_tilt"}, 4)):
        files = sorted((VENDORS / "failing" / case / "001").iterdir())
        (candidate,) = assemble([frame for path in files for frame in read_frames(path)], IndexSettings())
        assert (candidate.reason, candidate.flags) == ("", flags)
        assert candidate.stack is not None and candidate.stack.num_slots == slices
        for frame, slot in zip(candidate.stack.frames, candidate.stack.slots, strict=True):
            place = candidate.stack.affine @ [0, 0, slot, 1]
            np.testing.assert_allclose(place[:3] * [-1, -1, 1], frame.position, atol=1e-5)


def test_a_mosaic_is_placed_by_its_protocol() -> None:
    volumes = read_any(VENDORS / "siemens" / "fmri" / "001")
    truth = nibabel.load(VENDORS / "siemens" / "fmri" / "001_ground_truth.nii.gz")
    assert len(volumes) == 2
    for part, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.array, np.asarray(truth.dataobj)[..., part])
        np.testing.assert_allclose(volume.affine[:3, :3], truth.affine[:3, :3], atol=1e-5)
        # The protocol's lowest slice is centred at (-1.51, -20.56, -59.85) LPS; the other reader is 148 mm above.
        centre = volume.affine @ [40, 40, 0, 1]
        np.testing.assert_allclose(centre[:3], [1.5135, 20.5606, -59.8545], atol=0.01)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    names = (
        "dicom_ct_ge_tilted_uneven", "dicom_t1_studyforrest", "dicom_vendor_headers", "hippocampus_msd",
        "pyradiomics_cases",
    )  # fmt: skip
    out = tmp_path_factory.mktemp("index")
    summary = index(
        [Path(FOLDER) / name for name in names], out, IndexSettings(compute=ComputeConfig(workers=1), modality="mri")
    )
    assert summary.files_seen == summary.files_used + summary.files_explained
    return Archive.open(out)


def test_an_uneven_tilted_ct_is_refused(archive: Archive) -> None:
    uneven = archive.table[archive.table["shape"] == "512;512;28"]
    assert list(uneven["reason"]) == ["irregular_spacing"] and list(uneven["flags"]) == ["gantry_tilt"]


def test_its_numbers_are_told() -> None:
    files = [path for path in (Path(FOLDER) / "dicom_ct_ge_tilted_uneven").rglob("*.dcm") if path.is_file()]
    frames = [frame for path in files for frame in read_frames(path)]
    (candidate,) = assemble(frames, IndexSettings())
    assert candidate.stack is not None and candidate.reason == "irregular_spacing"
    np.testing.assert_allclose(candidate.stack.gaps_mm, (1.0811, 4.0019, 6.9986), atol=1e-4)


def test_an_oblique_t1_is_read_whole(archive: Archive) -> None:
    (key,) = archive.table.loc[archive.table["shape"] == "274;384;140", "series_key"]
    volume = archive.read(key)
    np.testing.assert_allclose(volume.spacing_mm, (0.699988, 0.666667, 0.666667), atol=1e-5)
    np.testing.assert_allclose(volume.affine[:3, 3], [94.0698, 150.4333, -68.5084], atol=1e-3)


def test_label_maps_and_images_of_the_hippocampus(archive: Archive) -> None:
    files = archive.table[(archive.table["source"] == "nifti") & (archive.table["num_files"] == 1)]
    # 175 label files of the hippocampus and one lung tumour; 176 images and one CT are no label maps.
    assert (files["reason"] == "label_map").sum() == 176
    assert len(files[files["verdict"] != "rejected"]) >= 177
