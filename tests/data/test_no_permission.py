"""What the user who indexes may not read becomes a row that says so, and the rest is read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dicom_factory import stack, write

from lejepa_med.config.indexing import IndexSettings
from lejepa_med.data.index.archive import IndexSummary, index
from lejepa_med.data.reading import Archive

ONE_PROCESS = IndexSettings.model_validate({"compute": {"workers": 1}})
NOBODY = 65534


@contextmanager
def as_a_plain_user() -> Iterator[None]:
    """The superuser may read anything, so the superuser steps down."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def archive() -> Iterator[Path]:
    """A folder that every user may enter, with a series, a closed folder and a closed file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "scans" / "open", stack(6))
        write(folder / "scans" / "closed", stack(6))
        (folder / "scans" / "locked.dcm").write_bytes(b"\0" * 200)
        (folder / "out").mkdir()
        folder.chmod(0o755)
        (folder / "out").chmod(0o777)
        index([folder / "scans"], folder / "warm", ONE_PROCESS)  # imports everything while all may be read
        (folder / "scans" / "closed").chmod(0)
        (folder / "scans" / "locked.dcm").chmod(0)
        yield folder
        (folder / "scans" / "closed").chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
def test_a_closed_folder_and_a_closed_file_are_explained(archive: Path) -> None:
    with as_a_plain_user():
        summary = indexed(archive)
    table = Archive.open(archive / "out" / "index").table
    assert sorted(zip(table["verdict"], table["reason"], table["num_files"], strict=True)) == [
        ("accepted", "", 6), ("rejected", "permission_denied", 2),
    ]  # fmt: skip
    assert (summary.files_seen, summary.files_used, summary.files_explained) == (8, 6, 2)


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
def test_what_may_be_read_later_is_read_then(archive: Path) -> None:
    with as_a_plain_user():
        indexed(archive)
    (archive / "scans" / "closed").chmod(0o755)
    with as_a_plain_user():
        summary = indexed(archive)
    assert (summary.files_seen, summary.files_used) == (13, 6)  # the same six slices a second time: repeated
    assert summary.reasons == {"duplicate": 1, "permission_denied": 1}


def indexed(archive: Path) -> IndexSummary:
    return index([archive / "scans"], archive / "out" / "index", ONE_PROCESS)
