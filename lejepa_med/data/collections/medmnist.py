"""MedMNIST v2 as published: NAME.npz (2D 28 to 224, 3D 28 or 64) with {train,val,test}_{images,labels}.

Arrays are read row by row from the compressed file, so that no process ever holds a whole one, and never unpickled.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lejepa_med.data.collections.item import SPLITS, Collection, CollectionItem
from lejepa_med.errors import DataError

_COLOURS = (3,)  # sides of a last axis that are colours
_GREY = (19595, 38470, 7471)  # ITU-R 601-2 in 1/65536, rounded as Pillow does, which reads all other pictures
_DAMAGE = (OSError, ValueError, KeyError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def matches(folder: Path) -> bool:
    return any(folder.glob("*.npz"))


def file_of(folder: Path) -> Path:
    """The one file of a folder. Raises DataError if there are several."""
    files = sorted(folder.glob("*.npz"))
    if len(files) != 1:
        raise DataError(f"medmnist: the folder holds {len(files)} .npz files; name one: `prepare FOLDER/NAME.npz`")
    return files[0]


def read(file: Path) -> Collection:
    """One item per image, in the official split. Raises DataError if the file is damaged or none of MedMNIST."""
    items: list[CollectionItem] = []
    for split in SPLITS:
        shape, dtype = _described(file, f"{split}_images")
        labels = read_array(file, f"{split}_labels")
        if labels.shape[:1] != shape[:1] or labels.ndim not in (1, 2) or labels.dtype.kind not in "iubf":
            raise DataError(
                f"medmnist: {split}_labels has the shape {labels.shape} and type {labels.dtype}, expected one row of "
                f"numbers for each of {shape[0]} images"
            )
        if dtype != np.uint8 or _grey_sides(shape) is None:
            raise DataError(
                f"medmnist: {split}_images has the shape {shape} and type {dtype}, expected 8-bit "
                "[image, row, column], [.., 3] in colour or [image, x, y, z]"
            )
        items += _items(file, split, labels.reshape(len(labels), -1))
    return Collection("medmnist", items)


def _items(file: Path, split: str, labels: NDArray[np.generic]) -> Iterator[CollectionItem]:
    names = ["label"] if labels.shape[1] == 1 else [f"label_{number}" for number in range(labels.shape[1])]
    for row, values in enumerate(labels.tolist()):
        name = f"{split}_{row}"
        texts = {column: f"{value:g}" for column, value in zip(names, values, strict=True)}
        yield CollectionItem(
            name, file, name, name, row, f"{split}_images", modality="image", split=split, labels=texts
        )


def _grey_sides(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Sides of one image without its colours; None if it is neither 2D nor 3D."""
    sides = shape[1:]
    if len(sides) == 3 and sides[2] in _COLOURS:
        sides = sides[:2]
    return sides if len(sides) in (2, 3) and min(sides) > 0 else None


def _described(file: Path, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    with _archive(file, name) as archive, _opened(archive, name) as stream:
        return _header(stream, name)


def read_array(file: Path, name: str) -> NDArray[np.generic]:
    """A whole array. Raises DataError if it is damaged."""
    with _archive(file, name) as archive, _opened(archive, name) as stream:
        try:
            array: NDArray[np.generic] = np.lib.format.read_array(io.BytesIO(stream.read()), allow_pickle=False)
        except (*_DAMAGE, MemoryError):
            raise _damaged(name) from None
    return array


def _archive(file: Path, name: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except _DAMAGE:
        raise _damaged(name) from None


def _opened(archive: zipfile.ZipFile, name: str) -> zipfile.ZipExtFile:
    try:
        return cast(zipfile.ZipExtFile, archive.open(f"{name}.npy"))
    except KeyError:
        raise DataError(f"medmnist: the .npz file has no array `{name}`; expected those of MedMNIST v2") from None
    except _DAMAGE:
        raise _damaged(name) from None


def _damaged(name: str) -> DataError:
    return DataError(f"medmnist: array `{name}` of the .npz file is damaged or cut off; download it again")


def _header(stream: zipfile.ZipExtFile, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    try:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = reader(stream)
    except _DAMAGE:
        raise _damaged(name) from None
    if dtype.hasobject:
        raise DataError(f"medmnist: array `{name}` of the .npz file holds pickled objects, which are not loaded")
    if fortran or not shape:
        raise DataError(f"medmnist: array `{name}` of the .npz file is not stored row by row")
    return tuple(int(side) for side in shape), np.dtype(dtype)


class RowReader:
    """Rows of one array of a compressed file, cheap in ascending order: going back starts from the beginning."""

    def __init__(self, file: Path, name: str) -> None:
        self.name, self._archive = name, _archive(file, name)
        self._start()

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.close()
        if hasattr(self, "_archive"):
            self._archive.close()

    def _start(self) -> None:
        self._stream, self._next = _opened(self._archive, self.name), 0
        self._shape, self._dtype = _header(self._stream, self.name)
        self._bytes = int(np.prod(self._shape[1:])) * self._dtype.itemsize

    def row(self, number: int) -> NDArray[np.uint8]:
        """One image, grey. Raises DataError if the file is cut off or damaged there."""
        if number < self._next:
            self._stream.close()
            self._start()
        try:
            while self._next < number:
                self._stream.read(self._bytes)
                self._next += 1
            content = self._stream.read(self._bytes)
            self._next += 1
            image = np.frombuffer(content, self._dtype).reshape(self._shape[1:])
        except _DAMAGE:
            self._next = self._shape[0]  # the stream is of no more use
            raise _damaged(self.name) from None
        if image.ndim == 3 and image.shape[2] in _COLOURS:
            image = (image.astype(np.int64) @ np.array(_GREY) + 0x8000) >> 16
        return image.astype(np.uint8)
