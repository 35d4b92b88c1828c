"""Data that are read while they are used: a stream, and the batches of its epochs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.data.binarization import bits, check_unit, floats, given
from pyro_vae.data.containers import beside
from pyro_vae.data.dataset import Dataset, Place, check_place
from pyro_vae.data.options import present_device
from pyro_vae.data.requirements import check_images, check_labels
from pyro_vae.data.streams.epochs import DEPTH, Epoch, Read, context_of
from pyro_vae.data.streams.order import Permutation
from pyro_vae.data.streams.sequences import Ordered
from pyro_vae.data.streams.sources import Arrays, InMemory, Source
from pyro_vae.data.streams.workers import ahead

_SAMPLE, _SAMPLE_BYTES = 5_000, 2**26


@dataclass(frozen=True, eq=False, repr=False)
class Stream:
    """N data that are read batch by batch; made by :func:`~pyro_vae.data.stream`, which says what it does.

    Shapes: N data, B of a batch.

    Args:
        name: What errors, histories and plots call it.
        source: Where they come from.
        sample: Some of them, in memory, with the ``levels`` and the ``binarization`` of all.
        context: What each batch carries beside x: ``"labels"``, the source's own, or sources of N rows.
        workers: Processes that read; 0 for the thread alone.
        rank: Of this process.
        world_size: Number of processes, each of which has its share of every batch.
        channel: Whether data get the axis of one channel.
        check: Raises for data ``(x, *context)`` that a program cannot have; called for every batch.
    """

    name: str
    source: Source | Ordered
    sample: Dataset
    context: tuple[str | Source, ...] = ()
    workers: int = 0
    rank: int = 0
    world_size: int = 1
    channel: bool = False
    check: Callable[..., None] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        values = "real values" if self.sample.levels is None else f"{self.sample.levels + 1} levels"
        shared = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        note = f", note={self.sample.note!r}" if self.sample.note else ""
        return (
            f"Stream({self.name!r}, {len(self)} x {tuple(self.event_shape)}, {values}, "
            f"binarization={self.sample.binarization!r}, device={str(self.device)!r}{shared}{note})"
        )

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one datum."""
        return self.sample.event_shape

    @property
    def device(self) -> torch.device:
        """Where its batches are."""
        return self.sample.device

    def to(self, device: str | torch.device) -> Stream:
        """The same data in batches on another device."""
        return replace(self, sample=self.sample.to(present_device(device)))

    def conditioned_on(self, *context: Any) -> Stream:
        """The same data, of which each batch also carries these, after those it carries already.

        Args:
            context: ``"labels"`` for the source's own; the path of a ``.npy`` file of N rows, read as the data are;
                tensors, arrays or tables of N rows, which stay in memory. Whole numbers become int64, all others
                float32.
        """
        subject, sample = f"Stream {self.name!r}", self.sample
        added: list[str | Source] = []
        for each in context:
            if isinstance(each, str):
                if each != "labels" or sample.labels is None:
                    raise ValueError(
                        f"{subject}: expected 'labels' of a source that has them, rows, or a Path, as context; got "
                        f"{each!r:.60} and {'no ' if sample.labels is None else ''}labels. Pass an array."
                    )
                added.append(each)
                sample = sample.conditioned_on(sample.labels)
                continue
            if isinstance(self.source, Ordered):
                raise ValueError(
                    f"{subject}: expected 'labels' as the context of a sequence, which numbers its data as they come; "
                    f"got {type(each).__name__}. Let the sequence give pairs."
                )
            is_path = isinstance(each, os.PathLike)
            rows: Source = Arrays([Path(each)]) if is_path else InMemory(beside(f"{subject}, context", each)[0].cpu())
            if len(rows) != len(self):
                raise ValueError(
                    f"{subject}: expected context of length {len(self)}; got {len(rows)}. Give one row for each datum."
                )
            added.append(rows)
            numbers = Permutation(len(self), 0)(np.arange(len(sample)))  # of the sample's data
            sample = sample.conditioned_on(context_of(rows, numbers))
        return replace(self, sample=sample, context=(*self.context, *added))

    @property
    def held(self) -> tuple[Tensor, ...]:
        """What ``gather`` takes beside the index, for the sample: its values, their numbers there, its contexts."""
        return self.sample.images, torch.arange(len(self.sample), device=self.device), *self.sample.context

    def with_channel(self) -> Stream:
        """The same data with an axis of one channel before the others."""
        return replace(self, channel=True, sample=self.sample.with_channel())

    def gather(self, index: Tensor, images: Tensor, numbers: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        """``(x, *context)`` of some of the data of a batch, as ``Dataset.gather``.

        Args:
            index: numbers of data, int64 (B,).
            images: of the batch, as they are stored.
            numbers: of the batch's data, ascending.
            context: of the batch.
        """
        return self.sample.gather(torch.searchsorted(numbers, index), images, *context)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, ...]]:
        """One pass over this rank's data in batches ``(x, *context)``; arguments as those of ``Dataset.batches``."""
        dynamic = self.sample.binarization == "dynamic"
        own = given(generator, "dynamic binarization") if dynamic else None
        feed = self.feed(batch_size, shuffle=shuffle, generator=generator, drop_last=drop_last)

        def values(images: Tensor) -> Tensor:
            x = floats(images, self.sample.levels)
            return x if own is None else bits(x, own).float()

        return ((values(images), *context) for _, (_, images, _, *context) in feed)

    def feed(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
        place: Place | None = None,
    ) -> Iterator[tuple[Place, tuple[Tensor, ...]]]:
        """One pass as arguments of ``gather``, and the place after each batch, from which another pass may go on.

        Args:
            batch_size: Data in a batch of all ranks together; the last batch holds what is left.
            shuffle: Goes through a permutation that follows from a number, which ``generator`` draws.
            generator: Draws that number.
            drop_last: Leaves out a last batch that is not full.
            place: Goes on behind it, with any batch size and number of ranks.

        Raises:
            ValueError: a batch with fewer data than there are ranks; what ``Source.read`` raises; data that differ from
                those before the place; values that are infinite, over the levels, or that ``check`` refuses.
            RuntimeError: a worker process that dies.
        """
        subject, n = f"Stream {self.name!r}", len(self)
        batch_size = checks.whole(f"{subject}.feed", "batch_size", batch_size)
        for name, value in (("shuffle", shuffle), ("drop_last", drop_last)):
            checks.flag(f"{subject}.feed", name, value)
        place = check_place(subject, place, n)
        seed: int | None = place.get("seed")
        if place["position"] and shuffle != (seed is not None):
            raise ValueError(
                f"{subject}: expected a place of a pass that is {'' if shuffle else 'not '}shuffled, to "
                f"go on with such a one; got {place}. Give shuffle={not shuffle}."
            )
        if shuffle and seed is None:
            generator = given(generator, "shuffling")
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        if seed is not None:
            place = {**place, "seed": seed}
        end = n - (n - place["position"]) % batch_size if drop_last else n
        begins = range(place["position"], end, batch_size)
        smallest = end - begins[-1] if begins else self.world_size
        if smallest < self.world_size:
            raise ValueError(
                f"{subject}: expected at least one datum for each of {self.world_size} ranks in every batch; got "
                f"{smallest} in one. Use drop_last=True, or another batch_size."
            )
        epoch = Epoch(self.source, self.context, self.workers, self.rank, self.world_size, begins, end, place)
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        return _given(ahead(map(partial(_ready, self, side), epoch), DEPTH))


def _given(batches: Iterator[Read]) -> Iterator[tuple[Place, tuple[Tensor, ...]]]:
    """Places and arguments of ``gather``."""
    for place, (numbers, images, *context) in batches:
        arguments = numbers, images, numbers, *context
        for tensor in arguments:
            if tensor.is_cuda:  # it was made on another stream of the device than it is used on
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        yield place, arguments


def _ready(stream: Stream, side: torch.cuda.Stream | None, read: Read) -> Read:
    """A batch as it is stored, checked, on the device; made in the thread that reads ahead.

    Raises:
        TypeError, ValueError: naming the first datum that cannot be.
    """
    place, (numbers, values, *context) = read
    images = values.to(stream.sample.images.dtype)
    tensors = [numbers, images.unsqueeze(1) if stream.channel else images, *context]
    with contextlib.nullcontext() if side is None else torch.cuda.stream(side):
        if side is not None:
            tensors = [tensor.pin_memory().to(stream.device, non_blocking=True) for tensor in tensors]
        try:
            _check(stream, *tensors[1:])
        except (TypeError, ValueError):
            for i, number in enumerate(numbers.tolist()):
                try:
                    _check(stream, *(each[i : i + 1] for each in tensors[1:]))
                except (TypeError, ValueError) as error:
                    raise type(error)(f"Datum {number}, {stream.source.where(number)}: {error}") from error
            raise
    if side is not None:
        side.synchronize()
    return place, tensors


def _check(stream: Stream, images: Tensor, *context: Tensor) -> None:
    """Raises for data that the stream, or the program, does not take."""
    subject, levels = f"Stream {stream.name!r}", stream.sample.levels
    check_images(subject, images, levels)
    for each, rows in zip(stream.context, context, strict=True):
        if isinstance(each, str):
            check_labels(subject, rows)
    dynamic = stream.sample.binarization == "dynamic"
    if dynamic and levels is None:
        check_unit(stream.name, images, levels)
    if stream.check is not None and (context or not dynamic):  # bits are what the sample's are
        x = floats(images, levels)
        stream.check((x > 0.5).float() if dynamic else x, *context)


def sampled(source: Source | Ordered) -> tuple[Tensor, Tensor | None]:
    """Values and labels of at most 5,000 data and 64 MB: drawn once for all; of a sequence the first."""
    n = len(source)
    if isinstance(source, Ordered):
        _, _, (values, labels) = next(source.windows(None))
        size = _size(n, values)
        return values[:size], None if labels is None else labels[:size]
    first, _ = source.read(np.zeros(1, np.int64))
    return source.read(Permutation(n, 0)(np.arange(_size(n, first))))


def _size(n: int, values: Tensor) -> int:
    return min(n, len(values) if len(values) > 1 else n, _SAMPLE, max(100, _SAMPLE_BYTES // values[:1].nbytes))
