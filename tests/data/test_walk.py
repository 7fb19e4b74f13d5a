"""Finding files: each once, in order, whatever links, permissions and names there are, with memory that stays flat."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lejepa_med.data.files.walk import walk
from lejepa_med.errors import DataError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def listed(*roots: Path, skip: Path | None = None) -> dict[str, str]:
    found = list(walk(roots, skip))
    assert len({file.path for file in found}) == len(found) == len({file.relative for file in found})
    return {file.relative: file.reason for file in found}


def test_files_come_in_the_order_of_names_with_size_and_time(tmp_path: Path) -> None:
    make(tmp_path / "in", "b/2", "b/10", "a", "c", "b.x")
    found = list(walk([tmp_path / "in"]))
    assert [file.relative for file in found] == ["in/a", "in/b/10", "in/b/2", "in/b.x", "in/c"]
    for file in found:
        status = Path(file.path).stat()
        assert (file.size, file.mtime, file.reason) == (status.st_size, status.st_mtime_ns, "")


def test_links_are_followed_only_to_what_is_not_read_under_its_own_name(tmp_path: Path) -> None:
    make(tmp_path, "in/a/file", "in/z/file", "out/deep/file", "out/other")
    links = {
        "a/again": "in/z", "a/file2": "in/a/file", "a/loop": "in", "a/above": ".", "a/self": "in/a/self",
        "b": "out/deep", "c": "out/deep", "d": "out", "e": "out/other", "f": "nowhere",
    }  # fmt: skip
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    assert listed(tmp_path / "in") == {
        "in/a/above": "symlink_loop", "in/a/again": "linked_twice", "in/a/file": "", "in/a/file2": "linked_twice",
        "in/a/loop": "symlink_loop", "in/a/self": "symlink_loop", "in/b/file": "", "in/c": "linked_twice",
        "in/d/other": "", "in/e": "linked_twice", "in/f": "broken_link", "in/z/file": "",
    }  # fmt: skip


def test_two_links_to_one_file_outside_read_it_once(tmp_path: Path) -> None:
    make(tmp_path, "in/own", "out/file")
    for name in ("x", "y"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "out" / "file")
    assert listed(tmp_path / "in") == {"in/own": "", "in/x": "", "in/y": "linked_twice"}


def test_an_annexed_file_is_read_under_the_name_that_links_to_it(tmp_path: Path) -> None:
    make(tmp_path / "in", ".git/annex/objects/k/key.nii")
    (tmp_path / "in" / "sub-01").mkdir()
    (tmp_path / "in" / "sub-01" / "t1.nii").symlink_to("../.git/annex/objects/k/key.nii")
    assert listed(tmp_path / "in") == {"in/.git/annex/objects/k/key.nii": "linked_twice", "in/sub-01/t1.nii": ""}


def test_roots_that_overlap_give_each_file_once(tmp_path: Path) -> None:
    make(tmp_path, "x/data/1", "x/data/sub/2", "y/data/3")
    (tmp_path / "link").symlink_to(tmp_path / "x" / "data")
    x, y = tmp_path / "x" / "data", tmp_path / "y" / "data"
    assert set(listed(x, x / "sub", x / "1", tmp_path / "link", y)) == {"data/1", "data/sub/2", "data~2/3"}
    assert set(listed(x / "sub", x, y / "3")) == {"sub/2", "data/1", "data~2/3"}
    (x / "to_y").symlink_to(y)  # a root that comes later is read under its own name
    assert listed(x, y) == {"data/1": "", "data/sub/2": "", "data/to_y": "linked_twice", "data~2/3": ""}


def test_the_index_itself_is_left_out_also_behind_a_link(tmp_path: Path) -> None:
    make(tmp_path / "in", "a", "out/files")
    (tmp_path / "in" / "b").symlink_to("out")
    (tmp_path / "in" / "c").symlink_to("out/files")
    assert listed(tmp_path / "in", skip=tmp_path / "in" / "out") == {
        "in/a": "",
        "in/b": "own_output",
        "in/c": "own_output",
        "in/out": "own_output",
    }


def test_what_cannot_be_listed_or_has_gone_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "in", "closed/a", "gone/b", "last")
    scandir = os.scandir
    errors = {"closed": PermissionError, "gone": FileNotFoundError}

    def failing(path: str) -> object:
        if Path(path).name in errors:
            raise errors[Path(path).name]
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    expected = {"in/closed": "permission_denied", "in/gone": "unreadable", "in/last": ""}
    assert listed(tmp_path / "in") == expected
    monkeypatch.setattr(os, "scandir", lambda path: scandir(path) if Path(path).name != "in" else failing("closed"))
    assert listed(tmp_path / "in", tmp_path / "in" / "gone") == {"in": "permission_denied", "gone/b": ""}


def test_a_file_that_vanishes_while_its_folder_is_read(tmp_path: Path) -> None:
    files = walk([make(tmp_path / "in", "a", "b/c", "d")])
    assert next(files).relative == "in/a"
    (tmp_path / "in" / "d").unlink()
    (tmp_path / "in" / "b" / "c").unlink()
    (tmp_path / "in" / "b").rmdir()
    assert [(file.relative, file.reason) for file in files] == [("in/b", "unreadable"), ("in/d", "unreadable")]


def test_special_and_empty_files_and_odd_names(tmp_path: Path) -> None:
    make(tmp_path / "in", "plain")
    (tmp_path / "in" / "none").touch()
    os.mkfifo(tmp_path / "in" / "pipe")
    folder = os.fsencode(tmp_path / "in") + b"/\xff"
    os.mkdir(folder)  # noqa: PTH102  (bytes)
    os.symlink("nowhere", folder + b"/gone")  # noqa: PTH211
    with open(folder + b"/a\nb", "w") as file:  # noqa: PTH123
        file.write("x")
    assert listed(tmp_path / "in") == {
        "in/\\xff/a\nb": "unreadable_name", "in/\\xff/gone": "broken_link", "in/none": "empty_file",
        "in/pipe": "special_file", "in/plain": "",
    }  # fmt: skip


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A file below 1,900 folders; removed here, since pytest's own clean-up recurses."""
    here = Path.cwd()
    make(tmp_path / "in", "top")
    os.chdir(tmp_path / "in")
    for _ in range(1900):
        Path("d").mkdir()
        os.chdir("d")
    Path("bottom").write_text("x")
    yield tmp_path / "in"
    Path("bottom").unlink()
    for _ in range(1900):
        os.chdir("..")
        Path("d").rmdir()
    os.chdir(here)


def test_folders_nested_deeper_than_python_recurses(deep: Path) -> None:
    found = listed(deep)
    assert found.pop("in/top") == "" and len(found) == 1
    ((name, reason),) = found.items()
    # Paths longer than 4,096 bytes cannot be opened; those within are read.
    assert (name.endswith("/bottom"), reason) in ((True, ""), (False, "unreadable")) and name.count("/d") >= 1800


def test_mistakes_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="PATH 2 does not exist"):
        walk([tmp_path / "in", tmp_path / "nowhere"])
    with pytest.raises(DataError, match="PATH 1 holds no file"):
        list(walk([tmp_path / "in"]))
    (tmp_path / "loop").symlink_to("loop")
    assert list(listed(tmp_path / "loop").values()) == ["symlink_loop"]


_PEAK = """
import sys, tracemalloc
from pathlib import Path
from lejepa_med.data.files.walk import walk
for path in sys.argv[1:]:
    sum(1 for _ in walk([Path(path)]))  # whatever Python keeps from a first time
    tracemalloc.start()
    print(sum(1 for _ in walk([Path(path)])), tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    for folder in range(60):
        make(tmp_path / "in", *(f"{folder:02}/{number}" for number in range(50)))
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "in" / "07"), str(tmp_path / "in")]
    few, many = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert few.split()[0] == "50" and many.split()[0] == "3000"
    assert int(many.split()[1]) < int(few.split()[1]) + 30_000  # 3,000 files in a list would be over a megabyte
