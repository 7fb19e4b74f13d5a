"""Archives read in place: what is in them, that it reads as if unpacked, and what they claim and cannot hold."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lejepa_med.data.files import images, nifti, packed, storage
from lejepa_med.data.files.walk import Found, walk

CONTENTS = {
    "sub-01/a.bin": bytes(range(256)) * 40,
    "sub-01/b.bin": np.random.default_rng(0).bytes(70_000),
    "c.bin": b"c",
}
KINDS = ("zip", "stored.zip", "bzip2.zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")
_ZIP = {"zip": zipfile.ZIP_DEFLATED, "stored.zip": zipfile.ZIP_STORED, "bzip2.zip": zipfile.ZIP_BZIP2}
_TAR = {"tar": "w:", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def pack(path: Path, kind: str, contents: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind in _ZIP:
        with zipfile.ZipFile(path, "w", _ZIP[kind]) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, data in contents.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, _TAR[kind]) as archive:
            for name, data in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(path: str) -> bytes:
    with storage.open_binary(path) as file:
        return file.read()


def found_in(root: Path) -> dict[str, Found]:
    return {found.relative: found for found in walk([root])}


def reasons(root: Path) -> dict[str, str]:
    return {name: found.reason for name, found in found_in(root).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_members_read_as_if_unpacked(tmp_path: Path, kind: str) -> None:
    pack(tmp_path / "in" / f"A.{kind}", kind, CONTENTS)
    found = found_in(tmp_path / "in")
    assert list(found) == [f"in/A.{kind}!/{name}" for name in CONTENTS]
    for name, data in CONTENTS.items():
        member = found[f"in/A.{kind}!/{name}"]
        assert member.path == f"{tmp_path}/in/A.{kind}!/{name}" == str(Path(member.path))
        assert (member.size, member.reason) == (len(data), "")
        assert storage.identity(member.path) == (member.size, member.mtime)
        assert storage.archive_of(member.path) == f"{tmp_path}/in/A.{kind}"
        with storage.open_binary(member.path) as file:
            assert file.read() == data
            assert file.seek(0, os.SEEK_END) == len(data) and file.read(1) == b""
            for start in (len(data) // 2, 0, len(data) - 1):
                file.seek(start)
                assert file.read(300) == data[start : start + 300]
    assert names_in(tmp_path) == ["in"] and len(names_in(tmp_path / "in")) == 1


def test_a_plain_file_is_no_member(tmp_path: Path) -> None:
    (tmp_path / "odd.zip!").mkdir()
    (tmp_path / "odd.zip!" / "x").write_bytes(b"plain")
    pack(tmp_path / "odd.zip", "zip", {"x": b"member"})
    found = found_in(tmp_path)
    contents = {name.partition("/")[2]: content(file.path) for name, file in found.items()}
    assert contents == {"odd.zip!/x": b"plain", "odd.zip!!/x": b"member"}
    assert storage.archive_of(tmp_path / "odd.zip!" / "x") is None and storage.size(tmp_path / "odd.zip!" / "x") == 5
    for missing in ("nowhere", "odd.zip!!/y", "odd.zip/x"):
        with pytest.raises(OSError):
            storage.open_binary(tmp_path / missing)
        with pytest.raises(OSError):
            storage.identity(tmp_path / missing)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_are_only_names(tmp_path: Path, kind: str) -> None:
    names = ("../../evil", "/etc/passwd", "./a//b", "a/b", "d/", "c\ud8ff" if kind == "tar" else "c\\d")
    path = tmp_path / "in" / "x" / f"n.{kind}"
    with_names = {
        name: name.encode("utf-8", "surrogatepass") for name in names if kind == "zip" or "\ud8ff" not in name
    }
    pack(path, kind, with_names)
    found = found_in(tmp_path / "in")
    inner = [name.partition("!/")[2] for name in found]
    expected = ["../../evil", "etc/passwd", "a/b", "~2/a/b", "d", "c/d"][: len(with_names)]
    assert inner == expected
    for name, file in zip(with_names, found.values(), strict=True):
        assert content(file.path) == name.encode()
    assert names_in(tmp_path) == ["in"] and names_in(tmp_path / "in") == ["x"]


def test_a_name_that_is_not_utf8_is_readable_in_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "n.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        info = tarfile.TarInfo("J\xfcrgen")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    (member,) = walk([path])
    assert member.relative == f"{tmp_path.name}/n.tar!/J\\xfcrgen" and not member.reason
    assert content(member.path) == b"abc"


def test_an_archive_that_changes_gives_its_members_another_identity(tmp_path: Path) -> None:
    path = pack(tmp_path / "in" / "a.zip", "zip", {"x": b"first", "y": b"same"})
    time = path.stat().st_mtime_ns
    before = found_in(tmp_path / "in")
    assert content(f"{path}!/x") == b"first"
    pack(path, "zip", {"x": b"other", "y": b"same"})
    os.utime(path, ns=(time, time))
    after = found_in(tmp_path / "in")
    assert path.stat().st_mtime_ns == time and before["in/a.zip!/x"].size == after["in/a.zip!/x"].size
    assert before["in/a.zip!/x"].mtime != after["in/a.zip!/x"].mtime
    os.utime(path, ns=(time, time + 10**9))
    again = found_in(tmp_path / "in")
    assert all(again[name].mtime != before[name].mtime for name in before)
    assert content(f"{path}!/x") == b"other"


def test_what_is_not_read_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in"
    inner = pack(tmp_path / "inner.zip", "zip", CONTENTS).read_bytes()
    pack(root / "a.zip", "zip", {"in.zip": inner, "b.7z": b"7z", "none": b"", "bomb": bytes(70 << 20)})
    data = bytearray(pack(root / "b.zip", "zip", {"secret": b"s" * 50}).read_bytes())
    for magic, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(magic) + place] |= 1
    (root / "b.zip").write_bytes(data)
    with tarfile.open(root / "c.tar", "w") as archive:
        for name, kind, target in (
            ("f", tarfile.REGTYPE, ""), ("l", tarfile.SYMTYPE, "./f"), ("h", tarfile.LNKTYPE, "f"),
            ("g", tarfile.SYMTYPE, "../gone"), ("p", tarfile.FIFOTYPE, ""), ("dir", tarfile.DIRTYPE, ""),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 2 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"ff"))
    pack(root / "d.zip", "zip", {})
    pack(root / "e.tar", "tar", {})
    (root / "f.zip").write_bytes(b"PK\3\4 and no more")
    (root / "g.tar").write_text("no tar")
    (root / "h.tgz").touch()
    assert reasons(root) == {
        "in/a.zip!/in.zip": "packed", "in/a.zip!/b.7z": "packed", "in/a.zip!/none": "empty_file",
        "in/a.zip!/bomb": "too_large", "in/b.zip!/secret": "encrypted", "in/c.tar!/f": "",
        "in/c.tar!/l": "linked_twice", "in/c.tar!/h": "linked_twice", "in/c.tar!/g": "broken_link",
        "in/c.tar!/p": "special_file", "in/d.zip": "empty_file", "in/e.tar": "empty_file", "in/f.zip": "unreadable",
        "in/g.tar": "unreadable", "in/h.tgz": "empty_file",
    }  # fmt: skip
    for name in ("a.zip!/bomb", "b.zip!/secret"):
        with pytest.raises(OSError):
            storage.open_binary(root / name)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_a_cut_archive_keeps_what_is_whole(tmp_path: Path, kind: str) -> None:
    noise = {f"{number}": np.random.default_rng(number).bytes(600_000) for number in range(8)}
    path = pack(tmp_path / "in" / f"a.{kind}", kind, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    found = found_in(tmp_path / "in")
    assert found[f"in/a.{kind}"].reason == "truncated"
    whole = [member for member in found.values() if not member.reason]
    assert len(whole) >= 3
    for member in whole:
        assert content(member.path) == noise[member.path[-1]]


def test_a_tar_that_turns_into_something_else_is_reported(tmp_path: Path) -> None:
    path = pack(tmp_path / "in" / "a.tar", "tar", CONTENTS)
    data = bytearray(path.read_bytes())
    data[512 + 10_240 : 512 + 10_240 + 20] = b"\xff" * 20  # the header of the second member
    path.write_bytes(data)
    assert reasons(tmp_path / "in") == {"in/a.tar!/sub-01/a.bin": "", "in/a.tar": "unreadable"}


def test_a_tar_made_to_go_round_for_ever_ends(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", "tar", {"x": b"1" * 600, "y": b"2" * 600})
    data = bytearray(path.read_bytes())
    second = 512 + 1024
    data[second + 124 : second + 136] = b"\xff" * 11 + bytes([0])  # a size below zero, in base 256
    data[second + 135] = 0x00
    data[second + 148 : second + 156] = b" " * 8
    data[second + 148 : second + 156] = f"{sum(data[second : second + 512]):06o}\0 ".encode()
    path.write_bytes(data)
    found = reasons(tmp_path)
    assert found[f"{tmp_path.name}/a.tar"] in ("unreadable", "truncated")
    assert found[f"{tmp_path.name}/a.tar!/x"] == ""


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "tar.bz2"])
def test_a_compressed_bomb_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lejepa_med.data.files.packed_tar.SMALL", 1 << 20)
    monkeypatch.setattr("lejepa_med.data.files.packed_tar.LARGEST_RATIO", 100)
    pack(tmp_path / "in" / f"a.{kind}", kind, {"zeros": bytes(4 << 20)})
    assert reasons(tmp_path / "in") == {f"in/a.{kind}": "too_large"}


def test_damaged_bytes_are_an_os_error(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", "zip", {"x": b"text " * 1000})
    data = bytearray(path.read_bytes())
    place = 30 + 1 + 10
    data[place] ^= 0xFF
    path.write_bytes(data)
    with storage.open_binary(f"{path}!/x") as file, pytest.raises(OSError, match="damaged archive"):
        file.read()


def test_a_zip_that_lies_about_its_size_holds_what_it_holds(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", "zip", {"x": b"text " * 1000})
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\1\2")
    data[directory + 24 : directory + 28] = struct.pack("<I", 9_000_000)
    path.write_bytes(data)
    (member,) = walk([path])
    assert member.size == 9_000_000
    assert content(member.path) == b"text " * 1000


def test_only_a_few_archives_stay_open_and_nothing_stays_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for number in range(7):
        pack(tmp_path / "in" / f"{number}.tgz", "tgz", {"x": b"%d" % number})
        pack(tmp_path / "in" / f"{number}.zip", "zip", {"x": b"%d" % number})
    before = len(names_in(Path("/proc/self/fd")))
    files = list(walk([tmp_path / "in"]))
    late = storage.open_binary(files[0].path)
    for file in files:
        assert content(file.path).decode() == Path(file.path).parent.name[0]
    assert late.read() == b"0"  # opened before its archive left the few
    late.close()
    assert len(packed._open) == 4 and sum(archive.temporary for _, archive in packed._open.values()) == 1
    assert len(names_in(Path("/proc/self/fd"))) <= before + 4 and names_in(tmp_path / "tmp") == []


@pytest.mark.parametrize("kind", ["zip", "stored.zip", "tar", "tar.gz"])
def test_scans_are_read_from_archives(tmp_path: Path, kind: str) -> None:
    array = np.random.default_rng(0).normal(100, 30, (6, 7, 8)).astype(np.float32)
    whole = nibabel.Nifti1Image(array, np.diag([1, 1, 2, 1])).to_bytes()
    picture = io.BytesIO()
    from PIL import Image

    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(picture, "PNG")
    contents = {"a.nii": whole, "b.nii.gz": gzip.compress(whole), "c.png": picture.getvalue()}
    path = pack(tmp_path / f"a.{kind}", kind, contents)
    for name in ("a.nii", "b.nii.gz"):
        member = Path(f"{path}!/{name}")
        assert nifti.look(member)[0].shape == (6, 7, 8)
        np.testing.assert_array_equal(nifti.read(member, 0, "mri").array, array)
    assert images.look(Path(f"{path}!/c.png"))[0].high == 199
    np.testing.assert_array_equal(images.read(Path(f"{path}!/c.png"), 0).array.ravel(), np.arange(200))
