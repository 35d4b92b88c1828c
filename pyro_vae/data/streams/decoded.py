"""Data that are decoded when they are read: folders of images, archives of samples, sets of others' packages."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_vae.checks import printable
from pyro_vae.data.archives import read_header
from pyro_vae.data.arrays import first, of_array, of_part
from pyro_vae.data.files import listed_images
from pyro_vae.data.hugging_face import label_column
from pyro_vae.data.images import read_image, suffixes
from pyro_vae.data.parsing import file_of, lost, reading
from pyro_vae.data.streams.sources import Items, Stamp, opened
from pyro_vae.data.torch_sets import LABELS, VALUES, is_whole, item_of


class Images(Items):
    """A folder of images of one size, whose subfolders, if any, are the classes, as ``data.load`` reads them.

    Args:
        folder: its path.
    """

    def __init__(self, folder: Path) -> None:
        self._paths, labels, self.note = listed_images(folder)
        self._labels = None if labels is None else np.array(labels)
        status = [path.stat() for path in self._paths]
        self._stamps = np.array([(s.st_size, s.st_mtime_ns, s.st_ino) for s in status])
        super().__init__(folder.name, len(self._paths))

    def item(self, number: int) -> tuple[Tensor, int | None]:
        path = self._paths[number]
        with io.BufferedReader(opened(path, Stamp(*self._stamps[number].tolist()))) as file:
            image = _opaque(path, file)
        return image, None if self._labels is None else int(self._labels[number])

    def where(self, number: int) -> str:
        return printable(self._paths[number].name)

    def fingerprint(self) -> Any:
        return [self.name, len(self), int(self._stamps[:, 0].sum())]


def _opaque(path: Path, file: IO[bytes]) -> Tensor:
    image, seen_through = read_image(path, file)
    if seen_through:
        raise lost(path, "an image without transparency, of which a stream would drop it; got some", "Flatten it")
    return torch.from_numpy(np.require(image, requirements=["C", "W"]))


class Tars(Items):
    """Archives ``.tar`` of samples, as WebDataset has them: files of one name are a sample, their suffixes its parts.

    The value is a ``.npy`` array or an image, the label a ``.cls`` file with a whole number. Places of all of them are
    read from the archives' headers at once, so that samples can be taken in any order.

    Args:
        paths: of the archives, in order.

    References:
        WebDataset, https://github.com/webdataset/webdataset
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        found = [_samples(path) for path in paths]
        self._stamps = [stamp for stamp, _, _, _ in found]
        self._starts = np.cumsum([0, *(len(places) for _, places, _, _ in found)])
        self._places = np.concatenate([places for _, places, _, _ in found])
        self._suffixes = sorted({suffix for _, _, suffixes, _ in found for suffix in suffixes})
        self._kinds = np.array([self._suffixes.index(s) for _, _, each, _ in found for s in each], np.int16)
        others = sorted({other for _, _, _, each in found for other in each})
        self.note = f"left out parts of samples: {first(others)}" if others else ""
        super().__init__(
            paths[0].stem if len(paths) == 1 else f"{paths[0].parent.name}/{paths[0].stem}...", len(self._kinds)
        )

    def item(self, number: int) -> tuple[Tensor, int | None]:
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        path = self._paths[part]
        begin, size, label_begin, label_size = self._places[number].tolist()
        with io.BufferedReader(opened(path, self._stamps[part])) as file:
            file.seek(begin)
            content = file.read(size)
            file.seek(label_begin)
            words = file.read(label_size)
        if len(content) < size or len(words) < label_size:
            raise ValueError(f"{file_of(path)}: expected a whole archive; got one cut short. Write it again.")
        if self._suffixes[self._kinds[number]] == ".npy":
            value = _array(path, self.name, content)
        else:
            value = _opaque(path, io.BytesIO(content))
        if not label_size:
            return value, None
        if not words.strip().isdigit():
            raise lost(
                path, f"a whole number from 0 as .cls of {self.where(number)}; got {printable(words)}", "Mend it"
            )
        return value, int(words)

    def where(self, number: int) -> str:
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        return f"sample {number - self._starts[part]} of {self._paths[part].name}"

    def fingerprint(self) -> Any:
        return [[path.name, stamp.size] for path, stamp in zip(self._paths, self._stamps, strict=True)]


def _samples(path: Path) -> tuple[Stamp, npt.NDArray[np.int64], list[str], set[str]]:
    """The stamp of an archive, where the values and labels of its samples lie, and the suffixes of values and others.

    Places are rows of begin and size of the value, begin and size of the label, which has size 0 where there is none.
    """
    readable = {".npy", *suffixes()}
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    with reading(path), path.open("rb") as file:
        stamp = Stamp.of(os.fstat(file.fileno()))
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.isdir():
                        continue
                    if not member.isreg() or member.sparse:
                        raise lost(path, f"plain files; got {printable(member.name)}, a link or a hole", "Copy it")
                    folder, _, name = member.name.rpartition("/")
                    stem, dot, suffix = name.partition(".")
                    parts = samples.setdefault(f"{folder}/{stem}", {})
                    if (
                        parts.setdefault(f"{dot}{suffix}".lower(), (member.offset_data, member.size))[0]
                        != member.offset_data
                    ):
                        raise lost(path, f"samples of distinct names; got {printable(member.name)} twice", "Rename one")
        except tarfile.TarError as error:
            raise ValueError(f"{error}; of a compressed archive: unpack it") from error
    places, kinds, others = [], [], set()
    for name, parts in samples.items():
        values = [suffix for suffix in parts if suffix in readable]
        if len(values) != 1:
            raise lost(path, f"one array or image in sample {printable(name)}; got {first(list(parts))}", "Mend it")
        places.append((*parts[values[0]], *parts.get(".cls", (0, 0))))
        kinds.append(values[0])
        others |= parts.keys() - {values[0], ".cls"}
    if not places:
        raise lost(path, "samples; got none", "Leave it out")
    return stamp, np.array(places), kinds, others


def _array(path: Path, name: str, content: bytes) -> Tensor:
    with reading(path, "Write it again, as numbers."):
        file = io.BytesIO(content)
        read_header(file, len(content))
        file.seek(0)
        return of_array(f"Stream {name!r}", np.lib.format.read_array(file, allow_pickle=False))


class TorchSet(Items):
    """A set of torch with a length, whose second parts are labels where they are whole numbers.

    Args:
        name: of the stream.
        items: the set.
    """

    def __init__(self, name: str, items: Any) -> None:
        self._items = items
        super().__init__(name, len(items))

    def item(self, number: int) -> tuple[Tensor, int | None]:
        value, *others = item_of(f"Stream {self.name!r}", self._items, number)
        return value, int(others[0]) if others and is_whole(others[0]) else None


class HuggingFace(Items):
    """A set of Hugging Face's ``datasets``, which keeps it in files that are mapped into memory.

    Args:
        name: of the stream.
        rows: the set.
    """

    def __init__(self, name: str, rows: Any) -> None:
        transformed = rows.format["type"] == "custom"  # by a function of the user's, which makes the columns
        columns = list(rows[0]) if transformed else rows.column_names
        # As data.as_dataset has it, where it is said what the columns are.
        own = None if transformed else label_column({each: rows.features[each] for each in columns}) or ""
        self._column, self._label = columns_of(name, columns, own)
        wanted = [column for column in (self._column, self._label) if column]
        self._rows = rows if transformed else rows.with_format(None).select_columns(wanted)
        self.note = f"left out columns: {first(left)}" if (left := sorted(set(columns) - set(wanted))) else ""
        self._dtype = None if transformed else dtype_of(rows.features[self._column])
        super().__init__(name, len(rows))

    def item(self, number: int) -> tuple[Tensor, int | None]:
        return row_of(self.name, self._rows[number], self._column, self._label, self._dtype)


def columns_of(name: str, columns: Sequence[str], label: str | None = None) -> tuple[str, str]:
    """The column of the values and the one of the labels, or no name; by their names where it is not given."""
    labels = [column for column in LABELS if column in columns] if label is None else [label] if label else []
    values = [column for column in VALUES if column in columns] or [c for c in columns if c not in labels]
    if len(values) != 1:
        raise ValueError(
            f"Stream {name!r}: expected one column of data, such as {', '.join(VALUES[:3])}; got "
            f"{first(list(columns))}. Choose it with select_columns([...])."
        )
    return values[0], labels[0] if labels else ""


def row_of(name: str, row: Any, column: str, label: str, dtype: str | None) -> tuple[Tensor, int | None]:
    """Value and label of a row of columns."""
    value = np.asarray(row[column], dtype=dtype) if dtype else row[column]
    if label and not is_whole(row[label]):
        raise ValueError(
            f"Stream {name!r}: expected whole numbers in column {label!r}; got {type(row[label]).__name__}. Leave it "
            "out with remove_columns."
        )
    return of_part(f"Stream {name!r}", value), int(row[label]) if label else None


def dtype_of(feature: Any) -> str | None:
    """The dtype of the numbers in a feature, which rows as Python's lists no longer have; None of images."""
    while not isinstance(getattr(feature, "dtype", None), str):
        inner = getattr(feature, "feature", None)
        if inner is None:
            return None
        feature = inner
    dtype = feature.dtype
    return dtype if dtype in ("bool", "uint8", "float16", "float32", "float64") or "int" in dtype else None
