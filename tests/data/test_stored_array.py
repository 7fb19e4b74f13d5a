"""What is read is what was saved, whatever the box, type and order; a file that is not whole names its series."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lejepa_med.data.stored_array import StoredArray
from lejepa_med.errors import DataError

SENTENCE = "series ab12 is damaged"
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHAPES, st.sampled_from(["u1", "<i2", ">i2", "f4", "?"]), st.booleans(), st.booleans(), st.data())
def test_any_box_is_as_numpy_cuts_it(
    tmp_path: Path, shape: tuple[int, ...], kind: str, fortran: bool, passing: bool, data: st.DataObject
) -> None:
    array = (np.arange(np.prod(shape)).reshape(shape) % 251).astype(kind)
    np.save(tmp_path / "a.npy", np.asfortranarray(array) if fortran else array)
    ends = [sorted(data.draw(st.lists(st.integers(0, side), min_size=2, max_size=2, unique=True))) for side in shape]
    box = tuple(slice(low, high) for low, high in ends)
    stored = StoredArray.open(tmp_path / "a.npy", SENTENCE)
    assert (stored.shape, stored.dtype, stored.nbytes) == (shape, array.dtype, array.nbytes)
    np.testing.assert_array_equal(stored.read(box, passing), array[box])
    np.testing.assert_array_equal(stored.whole(), array)
    assert not stored.whole().flags.writeable


def test_planes_that_are_not_needed_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100, 10, 10), np.uint8))
    stored, asked = StoredArray.open(tmp_path / "a.npy", SENTENCE), []
    fill = StoredArray._fill

    def counts(self: StoredArray, buffer: memoryview, offset: int) -> None:
        asked.append((len(buffer), offset - self.offset))
        fill(self, buffer, offset)

    monkeypatch.setattr(StoredArray, "_fill", counts)
    stored.read((slice(40, 43), slice(2, 5), slice(0, 10)))
    assert asked == [(300, 4000)]


def test_threads_do_not_share_the_memory_they_use_again(tmp_path: Path) -> None:
    arrays = [np.full((9, 9, 9), number, np.int16) for number in range(4)]
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"{number}.npy", array)
    wrong: list[int] = []
    together = threading.Barrier(4)

    def read(number: int) -> None:
        stored = StoredArray.open(tmp_path / f"{number}.npy", SENTENCE)
        for _ in range(200):
            together.wait()
            block = stored.read((slice(0, 9),) * 3, passing=True)
            together.wait()
            if (block != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("size", [0, 5, 60, 127, 128, 300, 627])
def test_a_cut_file_is_one_sentence(tmp_path: Path, size: int) -> None:
    file = tmp_path / "a.npy"
    np.save(file, np.zeros(500, np.uint8))
    content = file.read_bytes()
    assert len(content) == 628
    stored = StoredArray.open(file, SENTENCE)
    file.write_bytes(content[:size])
    with pytest.raises(DataError, match=rf"^{SENTENCE}$"):
        StoredArray.open(file, SENTENCE)
    with pytest.raises(DataError, match=rf"^{SENTENCE}$"):
        stored.whole()


@pytest.mark.parametrize("place", range(0, 128, 3))
def test_a_header_of_rubbish_is_one_sentence_or_harmless(tmp_path: Path, place: int) -> None:
    file = tmp_path / "a.npy"
    np.save(file, np.arange(600, dtype=np.int16))
    content = bytearray(file.read_bytes())
    for value in (0, 10, 39, 40, 57, 255):
        content[place] = value
        file.write_bytes(content)
        try:
            assert StoredArray.open(file, SENTENCE).whole().nbytes == 1200
        except DataError as error:
            assert str(error) == SENTENCE


def test_a_file_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(5))
    stored = StoredArray.open(tmp_path / "a.npy", SENTENCE)
    (tmp_path / "a.npy").unlink()
    for read in (stored.whole, lambda: StoredArray.open(tmp_path / "a.npy", SENTENCE)):
        with pytest.raises(DataError, match=SENTENCE):
            read()
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(DataError, match=SENTENCE):
        StoredArray.open(tmp_path / "a.npy", SENTENCE)
