"""Converted files hold the same numbers at the same places, follow their sources, and are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import distributed
import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from lejepa_med.config import IndexSettings
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data import converting
from lejepa_med.data.converting import convert, write_nifti
from lejepa_med.data.index.archive import index
from lejepa_med.data.reading import Archive
from lejepa_med.data.volume import Volume

ONE = ComputeConfig(workers=1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.2, 8.0)] * 3),
    st.just(0.0) | st.floats(-0.6, 0.6),
    st.tuples(*[st.floats(-2000, 2000)] * 3),
    st.booleans(),
)
def test_every_voxel_is_right_to_a_hundredth_of_a_millimetre(
    tmp_path: Path,
    rotation: tuple[float, float, float],
    spacing: tuple[float, float, float],
    shear: float,
    origin: tuple[float, float, float],
    mirrored: bool,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix() * spacing
    affine[:3, 2] += shear * spacing[2] * affine[:3, 1] / spacing[1]
    affine[:3, 0] *= -1 if mirrored else 1
    affine[:3, 3] = origin
    shape = (7, 6, 5)
    write_nifti(Volume(np.arange(210, dtype=np.int16).reshape(shape), affine, "ct"), tmp_path / "a.nii.gz")
    read = nibabel.load(tmp_path / "a.nii.gz")
    corners = np.array([[i, j, k, 1] for i in (0, 511) for j in (0, 511) for k in (0, 400)]).T
    assert np.abs((read.affine - affine) @ corners).max() < 0.01
    qform, code = read.get_qform(coded=True)
    if code:  # some readers look at the qform only
        corners[:3] = np.minimum(corners[:3], np.array(shape)[:, None] - 1)
        assert np.abs((qform - affine) @ corners).max() < 0.01
    np.testing.assert_array_equal(np.asarray(read.dataobj), np.arange(210).reshape(shape))


def test_a_qform_is_there_only_where_it_is_right(tmp_path: Path) -> None:
    """Quaternions in 32 bits lose a tenth of a millimetre over a scan that is turned by nearly 180 degrees."""
    straight = np.diag([-1.0, -1.0, 1.0, 1.0])
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", [1, 0, 1], degrees=True).as_matrix() * [-1, 1, 1]
    sheared = straight.copy()
    sheared[1, 2] = 0.3
    volume = np.zeros((512, 512, 2), dtype=np.uint8)
    for affine, expected in ((straight, 1), (turned, 0), (sheared, 0)):
        write_nifti(Volume(volume, affine, "ct"), tmp_path / "a.nii.gz")
        assert int(nibabel.load(tmp_path / "a.nii.gz").header["qform_code"]) == expected


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_numbers_keep_their_type(tmp_path: Path, dtype: str) -> None:
    holds = np.finfo(dtype) if dtype == "float32" else np.iinfo(dtype)
    array = np.array([holds.min, 0, 1, holds.max], dtype=dtype).reshape(4, 1, 1)
    write_nifti(Volume(array, np.eye(4), "ct"), tmp_path / "a.nii.gz")
    read = nibabel.load(tmp_path / "a.nii.gz")
    assert read.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(read.dataobj), array)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`index` of three volumes and a picture."""
    random = np.random.default_rng(0)
    for number in range(3):
        array = random.normal(100, 20, (12, 13, 14)).astype(np.float32)
        (tmp_path / "scans" / f"p{number}").mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 1, 3, 1])), tmp_path / f"scans/p{number}/a.nii.gz")
    Image.fromarray(random.integers(0, 255, (20, 30), dtype=np.uint8)).save(tmp_path / "scans" / "x.png")
    make_index(tmp_path)
    return tmp_path


def make_index(folder: Path) -> None:
    index([folder / "scans"], folder / "index", IndexSettings(compute=ONE))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_changed_source_is_converted_again(folder: Path) -> None:
    out = folder / "out"
    assert convert(folder / "index", out, compute=ONE) == 4
    times = {file.name: file.stat().st_mtime_ns for file in out.glob("*.gz")}
    changed = folder / "scans" / "p1" / "a.nii.gz"
    other = np.random.default_rng(9).normal(50, 20, (12, 13, 14)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(other, np.diag([2.0, 1, 3, 1])), changed)
    os.utime(changed, ns=(10**18, 10**18))
    make_index(folder)
    assert convert(folder / "index", out, compute=ONE) == 4
    archive, redone = Archive.open(folder / "index"), 0
    for key in archive.rows()["series_key"]:
        written = np.squeeze(np.asarray(nibabel.load(out / f"{key}.nii.gz").dataobj))
        np.testing.assert_array_equal(written, archive.read(key).array)
        redone += (out / f"{key}.nii.gz").stat().st_mtime_ns != times.get(f"{key}.nii.gz")
    assert redone == 1


def test_what_cannot_be_read_has_a_reason_and_no_file(folder: Path) -> None:
    out = folder / "out"
    convert(folder / "index", out, compute=ONE)
    (folder / "scans" / "p2" / "a.nii.gz").write_bytes(b"gone bad")
    os.utime(folder / "scans" / "p2" / "a.nii.gz", ns=(10**18, 10**18))
    files = pd.read_parquet(folder / "index" / "files.parquet")
    damaged = out / f"{files.loc[files['path'].str.contains('/p0/'), 'series_key'].item()}.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:20])
    assert convert(folder / "index", out, compute=ONE) == 4  # the index still speaks of the file that was there
    for file in out.glob("*.gz"):
        file.unlink()
    assert convert(folder / "index", out, compute=ONE) == 3
    table = pd.read_csv(out / "series.csv", dtype=str, keep_default_na=False)
    assert sorted(table["converted"]) == ["unreadable", "yes", "yes", "yes"]
    written = {file.name.removesuffix(".nii.gz") for file in out.glob("*.gz")}
    assert written == set(table.loc[table["converted"] == "yes", "series_key"])
    assert (table.loc[table["converted"] == "yes", "fingerprint"] != "").all()


def test_a_kill_leaves_no_half_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder / "out"
    to_stream = nibabel.Nifti1Image.to_stream

    def dies(image: nibabel.Nifti1Image, stream: object) -> None:
        stream.write(b"\0" * 400)  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(nibabel.Nifti1Image, "to_stream", dies)
    with pytest.raises(KeyboardInterrupt):
        convert(folder / "index", out, compute=ONE)
    assert [file.name for file in out.iterdir()] == ["series.csv"]
    assert set(pd.read_csv(out / "series.csv")["converted"]) == {"not yet"}
    (out / ".k.nii.gz.00000000.partial").write_bytes(b"what kill -9 leaves")
    monkeypatch.setattr(nibabel.Nifti1Image, "to_stream", to_stream)
    assert convert(folder / "index", out, compute=ONE) == 4
    assert not list(out.glob(".*"))


def test_processes_and_a_cluster_write_the_same_bytes(folder: Path) -> None:
    convert(folder / "index", folder / "one", compute=ONE)
    convert(folder / "index", folder / "two", compute=ComputeConfig(workers=2))
    with distributed.LocalCluster(1, threads_per_worker=1, dashboard_address=None) as cluster:
        convert(folder / "index", folder / "dask", compute=ComputeConfig(scheduler=cluster.scheduler_address))
    assert contents(folder / "one") == contents(folder / "two") == contents(folder / "dask")


def test_a_defect_is_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(volume: Volume, target: Path, fingerprint: str) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(converting, "write_nifti", breaks)
    assert convert(folder / "index", folder / "out", compute=ONE) == 0
    assert "secret" not in (folder / "out" / "series.csv").read_text()
    assert "not_understood" in (folder / "out" / "series.csv").read_text()


def test_a_picture_is_one_slice(folder: Path) -> None:
    convert(folder / "index", folder / "out", compute=ONE)
    archive = Archive.open(folder / "index")
    table = archive.rows()
    key = table.loc[table["source"] == "image", "series_key"].iloc[0]
    read = nibabel.load(folder / "out" / f"{key}.nii.gz")
    assert read.shape == (*archive.read(key).array.shape, 1)
    np.testing.assert_array_equal(np.asarray(read.dataobj)[..., 0], archive.read(key).array)
