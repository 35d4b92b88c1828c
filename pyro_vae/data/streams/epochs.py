"""What of a stream is read in an epoch, in which order, and by whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vae.data.arrays import no_pixels
from pyro_vae.data.dataset import Place
from pyro_vae.data.streams.order import Index, Permutation
from pyro_vae.data.streams.sequences import Ordered
from pyro_vae.data.streams.sources import Arrays, Source
from pyro_vae.data.streams.workers import ReadBy, announced, of_workers

DEPTH = 4  # batches that are ready before they are asked for, and as many more that the system is told to read
_CHUNK = 2**13  # data whose numbers are computed at once

Read = tuple[Place, list[Tensor]]
"""Where an epoch is after a batch; the numbers of its data, int64 (B,), ascending, their values, and contexts."""


@dataclass(frozen=True)
class Epoch:
    """The batches of one pass, or of what is left of it.

    Args:
        source: of the data.
        context: ``"labels"`` of the source, or other sources.
        workers: processes that read.
        rank: whose share of every batch this is: its data at the places rank, rank + world_size, ...
        world_size: number of ranks.
        begins: places at which batches begin.
        end: the place at which the last one ends.
        place: what was read before; ``seed`` is of the order, which is the source's own without.
    """

    source: Source | Ordered
    context: tuple[str | Source, ...]
    workers: int
    rank: int
    world_size: int
    begins: range
    end: int
    place: Place

    def __iter__(self) -> Iterator[Read]:
        return self._of_sequence(self.source) if isinstance(self.source, Ordered) else self._of_places(self.source)

    def _after(self, begin: int) -> int:
        return min(begin + self.begins.step, self.end)

    def _of_places(self, source: Source) -> Iterator[Read]:
        """Batches of data that can be read in any order."""
        read = partial(rows_of, source, self.context)
        ends = map(self._after, self.begins)
        if self.workers:
            loader: Any = DataLoader(
                ReadBy(read), None, sampler=self._numbers(), num_workers=self.workers, collate_fn=_as_it_is
            )
            results: Iterator[list[Tensor]] = of_workers(source.name, loader)
        else:
            numbers: Iterator[Index] = self._numbers()
            results = map(read, announced(numbers, source.ahead, DEPTH) if isinstance(source, Arrays) else numbers)
        for end, tensors in zip(ends, results, strict=True):
            yield {**self.place, "position": end}, tensors

    def _numbers(self) -> Iterator[Index]:
        """The numbers of the data of each batch."""
        permutation = Permutation(len(self.source), self.place.get("seed"))
        for several in _in_runs(self.begins, max(1, _CHUNK // self.begins.step)):
            numbers = permutation(np.arange(several[0], self._after(several[-1])))
            for begin in several:
                batch = numbers[begin - several[0] : self._after(begin) - several[0]]
                yield np.sort(batch[self.rank :: self.world_size])

    def _of_sequence(self, source: Ordered) -> Iterator[Read]:
        """Batches of data that come in an order: those before the place are read again, and compared."""
        windows = source.windows(self.place.get("seed"))
        kept: list[Tensor] = []
        seen = 0
        place = self.place
        for begin in self.begins:
            end = self._after(begin)
            while seen < end:
                checksum, numbers, (values, labels) = next(windows)
                if self.context and labels is None:
                    raise ValueError(
                        f"Stream {source.name!r}: expected labels of all data; got none from datum {seen} on. Give all "
                        "of them one."
                    )
                window = [numbers, values, *(labels for _ in self.context if labels is not None)]
                if seen < self.place["position"] <= seen + len(numbers):
                    source.check_same(self.place, checksum)
                seen += len(numbers)
                kept = [torch.cat(pair) for pair in zip(kept, window, strict=True)] if kept else window
                kept = [each[max(0, len(each) - seen + min(begin, seen)) :] for each in kept]
                place = {**self.place, "checksum": checksum}
            first = seen - len(kept[0])  # the place of the first that is kept
            share = [each[begin - first : end - first][self.rank :: self.world_size] for each in kept]
            order = share[0].argsort()
            if end == self.end:
                for _ in windows:  # so that data that are missing, or too many, are noticed before the last step
                    pass
            yield {**place, "position": end}, [*(each[order] for each in share)]


def rows_of(source: Source, context: Sequence[str | Source], numbers: Index) -> list[Tensor]:
    """The numbers of some data, their values, and their contexts."""
    values, labels = source.read(numbers)
    found = [torch.from_numpy(numbers), values]
    for each in context:
        rows = labels if isinstance(each, str) else context_of(each, numbers)
        assert rows is not None
        found.append(rows)
    return found


def context_of(source: Source, numbers: Index) -> Tensor:
    """Rows of a context: whole numbers as int64, all others as float32."""
    rows = no_pixels(source.read(numbers)[0])
    return rows if rows.dtype == torch.int64 else rows.to(torch.float32)


def _in_runs(begins: range, size: int) -> Iterator[range]:
    return (begins[i : i + size] for i in range(0, len(begins), size))


def _as_it_is(result: Any) -> Any:
    return result
