"""Data that come one after the other, in an order of their own: sets without places, loaders that choose or combine."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vae.data.arrays import of_part
from pyro_vae.data.dataset import Place
from pyro_vae.data.streams.decoded import columns_of, dtype_of, row_of
from pyro_vae.data.streams.order import Permutation
from pyro_vae.data.streams.sources import Rows
from pyro_vae.data.streams.workers import Reading, of_workers
from pyro_vae.data.torch_sets import is_whole

_WINDOW, _WINDOW_BYTES = 8_192, 2**28  # data among which a sequence is shuffled, at most
_TOGETHER = 64


class Ordered:
    """Data in the order in which a loader or a set gives them, of which each rank reads all.

    They are read in a process of its own, seeded for each epoch, unless a loader has workers itself; so that what they
    draw neither depends on what training draws nor changes it.

    Args:
        name: of the stream.
        items: a loader of batches, or a set of data.
        length: how many data there are in an epoch.
    """

    def __init__(self, name: str, items: Any, length: int) -> None:
        self.name, self._items, self._length = name, items, length
        # Without a sampler of batches a loader passes on what its set gives: single data, as far as can be known.
        self._batched = isinstance(items, DataLoader) and items.batch_sampler is not None
        self.note = "in its own order, shuffled within windows"
        self._first: Rows | None = None  # what is read first, which all else is to be like

    def __len__(self) -> int:
        return self._length

    def where(self, number: int) -> str:
        return f"datum {number} of the sequence"

    def fingerprint(self) -> Any:
        return [self.name, self._length]

    def check_same(self, place: Place, checksum: int) -> None:
        """Raises where the data before a place are not those that a checksum was of."""
        if place.get("checksum", checksum) != checksum:
            raise ValueError(
                f"Stream {self.name!r}: expected the sequence to be the same again, to go on at datum "
                f"{place['position']} of it; got other data before that. Begin the epoch again, or make what draws "
                "their order follow a seed."
            )

    def __iter__(self) -> Iterator[Rows]:
        """Data some at a time, in this process."""
        if self._batched:
            yield from map(self._rows, self._items)
            return
        waiting: list[Rows] = []  # alike, since one by one they take long to come from another process
        for item in self._items:
            found = self._rows(item)
            if waiting and (len(waiting) == _TOGETHER or not _alike(waiting[0], found)):
                yield _joined(waiting)
                waiting = []
            waiting.append(found)
        if waiting:
            yield _joined(waiting)

    def _rows(self, item: Any) -> Rows:
        subject = f"Stream {self.name!r}"
        if isinstance(item, dict):
            column, label = columns_of(self.name, list(item))
            if not self._batched:
                features = getattr(self._items, "features", None)
                value, found = row_of(self.name, item, column, label, features and dtype_of(features[column]))
                return value[None], None if found is None else torch.tensor([found])
            item = (item[column], item[label]) if label else (item[column],)
        parts = tuple(item) if isinstance(item, list | tuple) else (item,)
        if not parts:
            raise ValueError(f"{subject}: expected data; got an empty {type(item).__name__}. Give the values first.")
        values = of_part(subject, parts[0])
        if not self._batched:
            labeled = len(parts) > 1 and is_whole(parts[1])
            return values[None], torch.tensor([int(parts[1])]) if labeled else None
        if len(parts) > 1 and isinstance(parts[1], Tensor) and parts[1].shape == (len(values),):
            return values, None if parts[1].is_floating_point() else parts[1].long()
        return values, None

    def read_all(self, seed: int) -> Iterator[Rows]:
        """Data some at a time, by the seed of an epoch."""
        if isinstance(self._items, DataLoader) and self._items.num_workers:
            with _seeded(seed):  # what a loader draws for its workers, and its sampler for their order
                items = of_workers(self.name, self._items)
                first = next(items, None)
            if first is not None:
                yield self._rows(first)
                yield from map(self._rows, items)
            return
        generator = torch.Generator().manual_seed(seed)
        loader: Any = DataLoader(Reading(self), batch_size=None, num_workers=1, generator=generator)
        yield from of_workers(self.name, loader)

    def windows(self, seed: int | None) -> Iterator[tuple[int, Tensor, Rows]]:
        """An epoch in windows, each shuffled: a checksum of all data up to its end, the data's numbers, the data.

        Raises:
            ValueError: more data than there should be, or fewer; data of several shapes or dtypes.
        """
        checksum = begin = 0
        rest: Rows | None = None
        chunks = self.read_all(0 if seed is None else seed)
        while begin < self._length:
            rest, size = self._filled(chunks, rest, begin)
            values, labels = rest[0][:size], None if rest[1] is None else rest[1][:size]
            rest = rest[0][size:], None if rest[1] is None else rest[1][size:]
            checksum = zlib.crc32(values.contiguous().numpy().tobytes(), checksum)
            order = torch.from_numpy(Permutation(size, None if seed is None else seed + begin)(np.arange(size)))
            begin += size
            if begin == self._length and (len(rest[0]) or next(chunks, None) is not None):
                raise ValueError(
                    f"Stream {self.name!r}: expected {self._length} data in an epoch, as length says; got more. Give "
                    "their number."
                )
            yield checksum, begin - size + order, (values[order], None if labels is None else labels[order])

    def _filled(self, chunks: Iterator[Rows], rest: Rows | None, begin: int) -> tuple[Rows, int]:
        """Rows of which the first so many are a window."""
        parts = [] if rest is None else [rest]
        have = sum(len(values) for values, _ in parts)
        while self._first is None or have < self._window(begin):
            chunk = next(chunks, None)
            if chunk is None:
                raise ValueError(
                    f"Stream {self.name!r}: expected {self._length} data in an epoch, as length says; got "
                    f"{begin + have}. Give their number, or what is missing."
                )
            self._first = self._first or chunk
            self._check(self._first, chunk, begin + have)
            parts.append(chunk)
            have += len(chunk[0])
        return _joined(parts), self._window(begin)

    def _window(self, begin: int) -> int:
        """The size of the window that begins at a place."""
        assert self._first is not None
        row = max(1, self._first[0][:1].nbytes)
        return min(_WINDOW, max(1, _WINDOW_BYTES // row), self._length - begin)

    def _check(self, first: Rows, chunk: Rows, number: int) -> None:
        (before, labels_before), (values, labels) = first, chunk
        if values.shape[1:] != before.shape[1:] or values.dtype != before.dtype:
            raise ValueError(
                f"Stream {self.name!r}: expected data like the first, {tuple(before.shape[1:])} of {before.dtype}; "
                f"got {tuple(values.shape[1:])} of {values.dtype} from datum {number} on. Make them alike."
            )
        if (labels is None) != (labels_before is None) or (labels is not None and len(labels) != len(values)):
            raise ValueError(
                f"Stream {self.name!r}: expected labels of all data or of none; got the contrary from datum {number} "
                "on. Give all of them one."
            )


def _alike(one: Rows, other: Rows) -> bool:
    (x, x_labels), (y, y_labels) = one, other
    return x.shape[1:] == y.shape[1:] and x.dtype == y.dtype and (x_labels is None) == (y_labels is None)


def _joined(parts: list[Rows]) -> Rows:
    labels = [each for _, each in parts if each is not None]
    return torch.cat([values for values, _ in parts]), torch.cat(labels) if labels else None


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Context manager with global generators of the CPU seeded, and as they were after it."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
