"""Where the data of a stream come from, read a few at a time by their numbers; and files of arrays."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from pyro_vae.data.archives import read_header
from pyro_vae.data.arrays import of_array
from pyro_vae.data.parsing import file_of, lost, reading
from pyro_vae.data.streams.order import Index

Rows = tuple[Tensor, Tensor | None]
"""Values (B, ...), as they are stored, and labels, int64 (B,), or None."""


class Source(Protocol):
    """N data, of which any few can be read. What it holds goes to worker processes, so it is no open file."""

    @property
    def name(self) -> str:
        """What errors and histories call it."""

    def __len__(self) -> int: ...

    def read(self, index: Index) -> Rows:
        """The data of some numbers, int64 (B,), in this order.

        Raises:
            ValueError: a file that has changed, or holds something else than it should.
            FileNotFoundError: a file that has vanished.
        """

    def where(self, number: int) -> str:
        """Which datum a number is, for messages."""

    def fingerprint(self) -> Any:
        """What tells it from others, beside the values of a sample: names and sizes of its files; as JSON."""


@dataclass(frozen=True)
class Stamp:
    """What a file was when it was first seen, to notice that it is another or has changed."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a file's status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    def check(self, path: Path, status: os.stat_result) -> None:
        """Raises where the file is not what it was."""
        present = Stamp.of(status)
        if present != self:
            what = "size" if present.size != self.size else "content or time of change"
            raise ValueError(
                f"{file_of(path)}: expected a file that stays as it is while it is read; got one of another {what} "
                "than before. Make the stream anew, and begin the epoch again."
            )


def opened(path: Path, stamp: Stamp) -> FileIO:
    """A file to read, which is what it was.

    Raises:
        FileNotFoundError, ValueError: it has vanished; it is another.
    """
    try:
        file = FileIO(path)
    except FileNotFoundError as error:
        raise vanished(path) from error
    try:
        stamp.check(path, os.fstat(file.fileno()))
    except ValueError:
        file.close()
        raise
    return file


def vanished(path: Path) -> FileNotFoundError:
    """The error of a file that was there when the stream was made."""
    return FileNotFoundError(
        f"{file_of(path)}: expected a file that stays as it is while it is read; got none. Put it back, and go on from "
        "the last checkpoint."
    )


class Arrays:
    """Files ``.npy`` of arrays (N, ...) that are one set, a part after the other, read row by row.

    Rows are read at their places in the files. Mapped into memory they would count as the process's own as soon as they
    were touched, all of them after an epoch; and a file that were cut short would end the process by a signal.

    Args:
        paths: of the files, in order.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        heads = [_head(path) for path in paths]
        for path, (shape, dtype, _, _) in zip(paths, heads, strict=True):
            first_shape, first_dtype = heads[0][:2]
            if shape[1:] != first_shape[1:] or dtype != first_dtype:
                raise ValueError(
                    f"{file_of(path)}: expected an array (N, {', '.join(map(str, first_shape[1:]))}) of {first_dtype}, "
                    f"as in {paths[0].name}; got {shape} of {dtype}. Make the parts of a set alike."
                )
        self._paths = list(paths)
        self._shape, self._dtype = heads[0][0][1:], heads[0][1]
        self._offsets = [offset for _, _, offset, _ in heads]
        self._stamps = [stamp for _, _, _, stamp in heads]
        self._starts = np.cumsum([0, *(shape[0] for shape, _, _, _ in heads)])
        self._row = int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize

    @property
    def name(self) -> str:
        return (
            self._paths[0].stem if len(self._paths) == 1 else f"{self._paths[0].parent.name}/{self._paths[0].stem}..."
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: Index) -> Rows:
        found = np.empty((len(index), self._row), np.uint8)
        for part, places, rows in self._parts(index):
            with opened(self._paths[part], self._stamps[part]) as file:
                for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                    self._read(file, part, row, found[place].data)
        values = found.reshape(-1).view(self._dtype).reshape(len(index), *self._shape)
        return of_array(f"Stream {self.name!r}", values), None

    def _read(self, file: FileIO, part: int, row: int, into: memoryview) -> None:
        file.seek(self._offsets[part] + row * self._row)
        got = more = file.readinto(into)
        while more and got < self._row:  # a signal may come in between
            more = file.readinto(into[got:])
            got += more
        if got < self._row:
            raise ValueError(
                f"{file_of(self._paths[part])}: expected {self._row} bytes for row {row}; got {got}. Write the file "
                "again."
            )

    def ahead(self, index: Index) -> None:
        """Lets the system read rows that are wanted soon, many at once, for which a disk is else asked one by one."""
        if not hasattr(os, "posix_fadvise"):  # as on macOS
            return
        for part, _, rows in self._parts(index):
            with opened(self._paths[part], self._stamps[part]) as file:
                for offset in (self._offsets[part] + rows * self._row).tolist():
                    os.posix_fadvise(file.fileno(), offset, self._row, os.POSIX_FADV_WILLNEED)

    def _parts(self, index: Index) -> Iterable[tuple[int, Index, Index]]:
        """The files that hold some data, the places of these in the index, and their rows in the file."""
        parts = np.searchsorted(self._starts, index, side="right") - 1
        for part in np.unique(parts).tolist():
            places = (parts == part).nonzero()[0]
            yield part, places, index[places] - self._starts[part]

    def where(self, number: int) -> str:
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        return f"row {number - self._starts[part]} of {self._paths[part].name}"

    def fingerprint(self) -> Any:
        return [[path.name, stamp.size] for path, stamp in zip(self._paths, self._stamps, strict=True)]


def _head(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int, Stamp]:
    """Shape and dtype of an array in a file, where its values begin, and the file's stamp."""
    with reading(path, "Write it again, as numbers, with numpy.save."), path.open("rb") as file:
        status = os.fstat(file.fileno())
        if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            raise ValueError("no .npy file")
        file.seek(0)
        shape, columns_first, dtype = read_header(file, status.st_size)
        offset = file.tell()
        if offset + math.prod(shape) * dtype.itemsize != status.st_size:
            raise lost(path, "one array; got something after it", "Save each array as a file")
    if columns_first and len(shape) > 1:
        raise ValueError(
            f"{file_of(path)}: expected rows one after the other, in C order; got Fortran order, in which a row is "
            "scattered over the file. Save numpy.ascontiguousarray(x)."
        )
    if not math.prod(shape) or len(shape) < 1:
        raise ValueError(f"{file_of(path)}: expected at least one datum (N, ...); got shape {shape}. Leave it out.")
    return shape, dtype, offset, Stamp.of(status)


class InMemory:
    """Rows of a tensor, such as a context of all data.

    Args:
        rows: (N, ...).
    """

    name = "a tensor"

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: Index) -> Rows:
        return self._rows[torch.from_numpy(index)], None

    def where(self, number: int) -> str:
        return f"row {number}"

    def fingerprint(self) -> Any:
        return list(self._rows.shape)


class Items(ABC):
    """Data that are made one by one: decoded files, items of a set of torch.

    Args:
        name: of the stream.
        size: their number.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name, self._size = name, size
        self._first = self.item(0)

    def __len__(self) -> int:
        return self._size

    @abstractmethod
    def item(self, number: int) -> tuple[Tensor, int | None]:
        """A datum, and its label, or None."""

    def where(self, number: int) -> str:
        return f"datum {number}"

    def fingerprint(self) -> Any:
        return [self.name, len(self)]

    def read(self, index: Index) -> Rows:
        values, labels = zip(*map(self._checked, index.tolist()), strict=True)
        return torch.stack(values), None if self._first[1] is None else torch.tensor(labels)

    def _checked(self, number: int) -> tuple[Tensor, int | None]:
        value, label = self.item(number)
        first, label_of_first = self._first
        if value.shape != first.shape or value.dtype != first.dtype:
            raise ValueError(
                f"Stream {self.name!r}: expected data like the first, {tuple(first.shape)} of {first.dtype}; got "
                f"{tuple(value.shape)} of {value.dtype} for {self.where(number)}. Make them alike."
            )
        if (label is None) != (label_of_first is None):
            raise ValueError(
                f"Stream {self.name!r}: expected labels of all data or of none; got the contrary for "
                f"{self.where(number)}. Give all of them one."
            )
        return value, label
