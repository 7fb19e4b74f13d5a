"""Compressed slices that do not decode: found by `index` one by one, filled never without a trace."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import gdcm
import numpy as np
import pandas as pd
import pytest
from dicom_factory import compressed, enhanced, misplaced, stack, write
from pydicom.uid import RLELossless
from transcoding import transcoded

from lejepa_med.config import PrepareConfig
from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data import converting
from lejepa_med.data.converting import convert
from lejepa_med.data.files.walk import Found
from lejepa_med.data.index import archive as archive_module
from lejepa_med.data.index.archive import IndexSummary, index
from lejepa_med.data.index.examine import Record, record_many
from lejepa_med.data.preparing import prepare
from lejepa_med.data.reading import Archive, UndecodableScanError, read_any
from lejepa_med.data.vocabulary import FLAGS, REASONS
from lejepa_med.errors import DataError

COUNT = 12


def series(folder: Path, damaged: Iterable[int]) -> None:
    """Twelve slices in JPEG lossless; damaged ones say that they end after a few rows, nothing is cut off."""
    for number, dataset in enumerate(stack(COUNT, shape=(48, 40))):
        made = transcoded(folder.with_name("made") / str(number), dataset, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
        content = bytearray(made.read_bytes())
        if number in damaged:
            begin = content.rindex(b"\xfe\xff\x00\xe0") + 8 + 150  # behind the tables
            content[begin : begin + 2] = b"\xff\xd9"  # the end of an image
        folder.mkdir(exist_ok=True)
        (folder / f"planted-{number:02d}").write_bytes(content)


def run(tmp_path: Path, workers: int = 1, **settings: object) -> IndexSummary:
    values = {"compute": {"workers": workers}, **settings}
    return index([tmp_path / "in"], tmp_path / "index", IndexSettings.model_validate(values))


def rows(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "index" / "series.csv", keep_default_na=False).sort_values("num_files")


def converted(tmp_path: Path) -> dict[str, object]:
    """The row of the only usable series after `convert`."""
    convert(tmp_path / "index", tmp_path / "nifti", compute=IndexSettings.model_validate(ONE).compute)
    (row,) = pd.read_csv(tmp_path / "nifti" / "series.csv", keep_default_na=False).to_dict("records")
    return row


ONE = {"compute": {"workers": 1}}
MRI = PrepareConfig.model_validate({**ONE, "preprocess": {"foreground": False}})


def test_index_counts_them_as_missing(tmp_path: Path) -> None:
    series(tmp_path / "in", (5, 8))
    summary = run(tmp_path)
    assert (summary.files_seen, summary.files_used, summary.files_explained) == (12, 10, 2)
    left_out, kept = rows(tmp_path).to_dict("records")
    assert (left_out["reason"], left_out["num_files"]) == ("undecodable", 2)
    assert (kept["verdict"], kept["flags"]) == ("flagged", "missing_slices;undecodable_slices")
    assert (kept["num_files"], kept["num_slices"]) == (10, 12)
    volume = Archive.open(tmp_path / "index").read(kept["series_key"])
    assert volume.filled_slices == 2 and misplaced(volume) <= 1.01
    row = converted(tmp_path)
    assert (row["converted"], row["filled_slices"]) == ("yes", 2)
    prepare(tmp_path / "index", tmp_path / "cache", MRI)
    assert pd.read_parquet(tmp_path / "cache" / "manifest.parquet")["filled_slices"].tolist() == [2]


@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        ((0,), [("undecodable", 1, ""), ("", 11, "undecodable_slices")]),
        ((10, 11), [("undecodable", 2, ""), ("", 10, "undecodable_slices")]),
        ((2, 5, 8), [("undecodable", 3, ""), ("undecodable", 9, "undecodable_slices")]),
        (range(COUNT), [("undecodable", 12, "")]),
        ((), [("", 12, "")]),
    ],
)
def test_ends_are_left_out_and_too_many_holes_are_no_volume(
    tmp_path: Path, damaged: Iterable[int], expected: list[tuple[str, int, str]]
) -> None:
    series(tmp_path / "in", damaged)
    summary = run(tmp_path)
    found = rows(tmp_path)
    assert list(zip(found["reason"], found["num_files"], found["flags"], strict=True)) == expected
    assert summary.files_seen == COUNT == summary.files_used + summary.files_explained
    assert set(found["reason"]) <= {"", *REASONS} and {"undecodable_slices"} <= set(FLAGS)


def test_one_frame_of_many(tmp_path: Path) -> None:
    dataset = enhanced(9)
    dataset.compress(RLELossless, generate_instance_uid=False)
    (path,) = write(tmp_path / "in", [dataset])
    content = bytearray(path.read_bytes())
    places = [k for k in range(len(content) - 8) if content[k : k + 4] == b"\xfe\xff\x00\xe0"]
    content[places[-7] + 8] = 7  # a number of segments that no 16 bits have
    path.write_bytes(content)
    run(tmp_path)
    (row,) = rows(tmp_path).to_dict("records")
    assert "undecodable_slices" in row["flags"] and row["verdict"] == "flagged"
    assert misplaced(Archive.open(tmp_path / "index").read(row["series_key"])) <= 1.01


def test_sampled_finds_what_it_samples_and_reading_says_the_rest(tmp_path: Path) -> None:
    series(tmp_path / "in", (4, 5))
    run(tmp_path, decode="sampled")
    (row,) = rows(tmp_path).to_dict("records")
    assert (row["verdict"], row["flags"]) == ("accepted", "")
    with pytest.raises(UndecodableScanError, match=r"cannot be decoded: 2 of 12 slices; .*`index` with decode=all"):
        Archive.open(tmp_path / "index").read(row["series_key"])
    assert converted(tmp_path)["converted"] == "undecodable"
    with pytest.raises(DataError, match="its pixel data cannot be decoded"):
        prepare(tmp_path / "index", tmp_path / "cache", MRI)
    assert "2 of 12 slices; restore" in (tmp_path / "cache" / "failures.csv").read_text()
    with pytest.raises(DataError, match="cannot be decoded: 2 of 12 slices"):
        read_any(tmp_path / "in")
    assert run(tmp_path).files_read == COUNT  # only headers were known
    assert rows(tmp_path)["flags"].tolist() == ["", "missing_slices;undecodable_slices"]
    assert run(tmp_path).files_read == 0 == run(tmp_path, decode="sampled").files_read
    assert converted(tmp_path)["filled_slices"] == 2


def test_a_sampled_slice_that_fails_is_a_flag(tmp_path: Path) -> None:
    series(tmp_path / "in", (6,))
    run(tmp_path, decode="sampled")
    (row,) = rows(tmp_path).to_dict("records")
    assert (row["verdict"], row["flags"], row["num_files"]) == ("flagged", "undecodable_slices", 12)
    assert run(tmp_path, decode="sampled").files_read == 0
    assert rows(tmp_path)["flags"].tolist() == ["undecodable_slices"]


def test_a_slice_filled_while_reading_leaves_a_trace_that_a_kill_leaves_too(tmp_path: Path) -> None:
    series(tmp_path / "in", (4,))
    run(tmp_path, decode="sampled")
    assert converted(tmp_path)["filled_slices"] == 1 == converted(tmp_path)["filled_slices"]  # made, and found there
    prepare(tmp_path / "index", tmp_path / "cache", MRI)
    manifest = tmp_path / "cache" / "manifest.parquet"
    assert pd.read_parquet(manifest)["filled_slices"].tolist() == [1]
    manifest.unlink()
    assert prepare(tmp_path / "index", tmp_path / "cache", MRI).reused == 1
    assert pd.read_parquet(manifest)["filled_slices"].tolist() == [1]


def test_whole_series_have_no_filled_slices(tmp_path: Path) -> None:
    write(tmp_path / "in", compressed(stack(8)))
    run(tmp_path)
    assert converted(tmp_path)["filled_slices"] == 0
    prepare(tmp_path / "index", tmp_path / "cache", MRI)
    assert pd.read_parquet(tmp_path / "cache" / "manifest.parquet")["filled_slices"].tolist() == [0]
    assert not (tmp_path / "cache" / "filled").exists()


def dies_while_decoding(salt: bytes, decode: bool, batch: list[Found]) -> list[Record]:
    """What `record_many` does where the decoder crashes on one slice."""
    if decode and any(found.path.endswith("planted-05") for found in batch):
        os.abort()
    return record_many(salt, decode, batch)


def test_a_decoder_that_crashes_costs_its_own_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "in", ())
    monkeypatch.setattr(archive_module, "record_many", dies_while_decoding)
    summary = run(tmp_path, workers=2)
    assert (summary.files_used, summary.files_explained) == (11, 1)
    left_out, kept = rows(tmp_path).to_dict("records")
    assert (left_out["reason"], left_out["num_files"]) == ("undecodable", 1)
    assert (kept["flags"], kept["num_slices"]) == ("missing_slices;undecodable_slices", 12)


def test_a_process_that_dies_while_converting_has_its_own_word() -> None:
    assert converting._lost("key") == converting.Outcome("crashed_reader") and "crashed_reader" in REASONS


def test_made_up_pixels_are_no_pixels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The JPEG library decodes what is missing as a constant and only says so on stderr."""
    series(tmp_path / "in", (3,))
    assert run(tmp_path).flags == {"missing_slices": 1, "undecodable_slices": 1}
    assert capfd.readouterr().err == ""
    (key,) = Archive.open(tmp_path / "index").rows()["series_key"]
    assert np.ptp(Archive.open(tmp_path / "index").read(key).array) > 100
