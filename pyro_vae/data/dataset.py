"""One tensor of data, stored small, whose batches become float values when they are drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.data.arrays import joined
from pyro_vae.data.binarization import Binarize, bits, check_unit, floats, given
from pyro_vae.data.containers import beside
from pyro_vae.data.options import present_device, unknown
from pyro_vae.data.requirements import check_images, check_labels, check_rows, check_width
from pyro_vae.tables import Table

Place = dict[str, int]
"""Where an epoch is, in small numbers that a checkpoint keeps; ``position`` is how many data it has been through."""

CHUNK = 4096  # data turned into floats at once where a float copy of the whole set would be too large


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """N data on one device, of which each batch becomes float32 values when it is drawn.

    Shapes: N data, D columns of a table; C channels, H rows, W columns of an image.

    Args:
        name: What errors, histories and plots call the set.
        images: uint8 images (N, C, H, W) with ``levels``, or a float32 table (N, D) or images without. NaN marks a
            missing value of a float set.
        labels: Classes from 0, int64 (N,), or None.
        levels: The stored value that stands for 1 (255 for ordinary images, 1 for bits); None for floats, unscaled.
        binarization: What has been done to the set (``"static"``, ``"threshold"``), what each batch does
            (``"dynamic"``), or ``"none"``.
        context: Tensors (N, ...) that every batch carries beside x.
        columns: Names of the columns of a table.
        categories: Of each column those that its codes 0, 1, ... stand for, none of a column of numbers; or () where
            there are none at all.
        note: What was left out or changed on the way from its source.
        table: What the columns of a pandas DataFrame are; see :class:`~pyro_vae.tables.Table`.

    Raises:
        ValueError: An empty set, lengths or devices that differ, infinite values, negative labels, a dynamic set
            outside [0, 1].
        TypeError: Images or labels of another dtype.

    Example:
        >>> gray = Dataset("gray", torch.full((6, 1, 2, 2), 51, dtype=torch.uint8), levels=255)
        >>> [tuple(x.shape) for (x,) in gray.batches(4)]
        [(4, 1, 2, 2), (2, 1, 2, 2)]
        >>> gray.mean().flatten().tolist() == [torch.tensor(0.2).item()] * 4
        True
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    levels: int | None = None
    binarization: Binarize = "none"
    context: tuple[Tensor, ...] = ()
    columns: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] = ()
    note: str = ""
    table: Table | None = None

    def __post_init__(self) -> None:
        checks.instance("Dataset", "name", self.name, str, "Give a word.")
        subject, images = f"Dataset {self.name!r}", self.images
        checks.instance(subject, "images", images, Tensor, "Use data.as_dataset to convert.")
        if self.levels is not None:
            checks.whole(subject, "levels", self.levels)
        labels = [] if self.labels is None else [("labels", self.labels)]
        beside_images = [*labels, *(("context", each) for each in self.context)]
        for kind, rows in beside_images:
            checks.instance(subject, kind, rows, Tensor, "Use conditioned_on for arrays.")
        check_images(subject, images, self.levels)
        check_width(subject, "columns", self.columns, images)
        check_width(subject, "categories", self.categories, images)
        if self.labels is not None:
            check_labels(subject, self.labels)
        for kind, rows in beside_images:
            check_rows(subject, kind, rows, images)
        if not isinstance(self.binarization, str) or self.binarization not in get_args(Binarize):
            raise ValueError(unknown("binarization", self.binarization, get_args(Binarize)))
        if self.binarization == "dynamic":
            check_unit(self.name, images, self.levels)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        values = self._range() if self.levels is None else f"{self.levels + 1} levels"
        beside = "".join(
            f", {part}"
            for part in (
                "" if self.labels is None else f"labels of {int(self.labels.max()) + 1} classes",
                f"{len(self.context)} contexts" if self.context else "",
                f"note={self.note!r}" if self.note else "",
            )
            if part
        )
        return (
            f"Dataset({self.name!r}, {len(self)} x {tuple(self.event_shape)}, {values}, "
            f"binarization={self.binarization!r}, device={str(self.device)!r}{beside})"
        )

    def _range(self) -> str:
        present = self.images[~self.images.isnan()]
        missing = self.images.numel() - present.numel()
        span = f" from {float(present.min()):.4g} to {float(present.max()):.4g}" if present.numel() else ""
        return f"real values{span}" + (f", {missing} missing" if missing else "")

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one datum."""
        return self.images.shape[1:]

    @property
    def device(self) -> torch.device:
        """Where the set is stored and its batches are made."""
        return self.images.device

    def to(self, device: str | torch.device) -> Dataset:
        """The same set on another device."""
        there = present_device(device)
        return self._each(lambda tensor: tensor.to(there))

    @property
    def sample(self) -> Dataset:
        """What checks and figures look at in place of all data: of a set in memory, itself."""
        return self

    @property
    def held(self) -> tuple[Tensor, ...]:
        """What ``gather`` takes beside the index."""
        return self.images, *self.context

    def with_channel(self) -> Dataset:
        """The same data with an axis of one channel before the others."""
        return replace(self, images=self.images.unsqueeze(1))

    def take(self, n: int) -> Dataset:
        """The first n data, or all of them when there are fewer."""
        n = checks.whole("Dataset.take", "n", n)
        return self._each(lambda tensor: tensor[:n])

    def subset(self, index: Tensor) -> Dataset:
        """The data of an index, int64 (M,) in their order, or of a mask, bool (N,).

        Shapes: N data, M of them chosen.

        Raises:
            TypeError: neither of them.
            IndexError: an index outside of the set.
        """
        try:
            if np.ma.is_masked(index):
                raise TypeError("a mask, which a tensor would lose")
            index = torch.as_tensor(index if isinstance(index, Tensor) else np.array(index), device=self.device)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"Dataset.subset: expected index int64 (M,) or bool ({len(self)},); got {type(index).__name__}. "
                "Give a tensor, an array or a list of whole numbers."
            ) from error
        if index.dtype == torch.bool and index.shape == (len(self),):
            index = index.nonzero()[:, 0]
        if index.ndim != 1 or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise TypeError(
                f"Dataset.subset: expected index int64 (M,) or bool ({len(self)},); got {index.dtype} of shape "
                f"{tuple(index.shape)}. Use mask.nonzero()[:, 0], for example."
            )
        index = index.long()
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(
                f"Dataset.subset: expected indices from 0 to {len(self) - 1}; got {int(index.min())} to "
                f"{int(index.max())}. Count from the start."
            )
        return self._each(lambda tensor: tensor.index_select(0, index))

    def conditioned_on(self, *context: Any) -> Dataset:
        """The same data, of which each batch also carries these (N, ...), after those it carries already.

        Args:
            context: tensors, arrays or tables. Whole numbers, such as classes, become int64; all others float32.
        """
        for each in context:
            if isinstance(each, Dataset):
                raise TypeError(
                    f"Dataset {self.name!r}: expected context tensors, arrays or tables; got a Dataset. Pass its "
                    "tensor() or its labels."
                )
        found = [beside(f"Dataset {self.name!r}, context", each) for each in context]
        notes = [f"context: {note}" for _, note in found if note]
        tensors = (tensor.to(self.device) for tensor, _ in found)
        return replace(self, context=(*self.context, *tensors), note=joined(self.note, *notes))

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """The data of an index: ``(x, *context)``.

        Args:
            index: int64 (B,).
            generator: Draws the bits of a dynamic set, which cannot do without. One on the set's own device is
                quickest; one on the CPU draws the same bits for every device.

        Returns:
            x, float32 (B, \\*event_shape), and the rows (B, ...) of every context.
        """
        x = floats(self.images.index_select(0, index.to(self.device)), self.levels)
        if self.binarization == "dynamic":
            x = bits(x, given(generator, "dynamic binarization")).float()
        return x, *(tensor.index_select(0, index.to(self.device)) for tensor in self.context)

    def gather(self, index: Tensor, images: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        """A batch as ``batch`` gives it, of tensors that are arguments, with bits drawn from torch's global generator.

        For a step that is recorded as a graph: what it reads is an argument, and it draws like the rest of the step.

        Args:
            index: int64 (B,), on the set's device.
            images: the set's own.
            context: the set's own.
        """
        x = floats(images.index_select(0, index), self.levels)
        if self.binarization == "dynamic":
            x = (torch.rand(x.shape, device=x.device) < x).float()
        return x, *(tensor.index_select(0, index) for tensor in context)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, ...]]:
        """One pass over the set in batches, as ``batch`` gives them.

        Args:
            batch_size: Data in a batch; the last batch holds what is left, unless ``drop_last``.
            shuffle: Goes through a fresh permutation, drawn from ``generator``.
            generator: Draws the permutation and the bits of a dynamic set.
            drop_last: Leaves out a last batch that is not full.
        """
        if self.binarization == "dynamic":
            given(generator, "dynamic binarization")
        indices = self.indices(batch_size, shuffle=shuffle, generator=generator, drop_last=drop_last)
        return (self.batch(index, generator) for index in indices)

    def indices(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Tensor]:
        """One pass over the set as the indices of its batches, int64 (B,); arguments as those of ``batches``."""
        batch_size = checks.whole("Dataset.batches", "batch_size", batch_size)
        for name, value in (("shuffle", shuffle), ("drop_last", drop_last)):
            checks.flag("Dataset.batches", name, value)
        n = len(self) - len(self) % batch_size if drop_last else len(self)
        if shuffle:
            generator = given(generator, "shuffling")
            order = torch.randperm(len(self), generator=generator, device=generator.device).to(self.device)
        else:
            order = torch.arange(len(self), device=self.device)
        return iter(order[:n].split(batch_size))

    def feed(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
        place: Place | None = None,
    ) -> Iterator[tuple[Place, tuple[Tensor, ...]]]:
        """One pass as arguments of ``gather``, and the place after each batch; from a place on, if one is given."""
        begin = check_place("Dataset.feed", place, len(self))["position"]
        batch_size = checks.whole("Dataset.feed", "batch_size", batch_size)
        if begin % batch_size and begin < len(self):
            raise ValueError(
                f"Dataset.feed: expected a place at which a batch of {batch_size} begins; got {begin}. Give the batch "
                "size that it was reached with."
            )
        indices = self.indices(batch_size, shuffle=shuffle, generator=generator, drop_last=drop_last)
        steps = -(-begin // batch_size)
        left = enumerate(itertools.islice(indices, steps, None), start=steps)
        return (({"position": min((i + 1) * batch_size, len(self))}, (index, *self.held)) for i, index in left)

    def mean(self) -> Tensor:
        """The mean of every element, float32 (\\*event_shape); of grays if bits are drawn, of the values observed."""
        total = torch.zeros(self.event_shape, device=self.device)
        observed = torch.zeros(self.event_shape, device=self.device)
        for chunk in self.images.split(CHUNK):
            values = floats(chunk, self.levels)
            total += values.nansum(0)
            observed += values.isfinite().sum(0)
        return total / observed

    def tensor(self) -> Tensor:
        """All values at once, float32 (N, \\*event_shape): the grays of a dynamic set, so that nothing is drawn."""
        return floats(self.images, self.levels)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Dataset:
        return replace(
            self,
            images=change(self.images),
            labels=None if self.labels is None else change(self.labels),
            context=tuple(map(change, self.context)),
        )


def check_place(subject: str, place: Place | None, n: int) -> Place:
    """A place in an epoch of n data; its beginning where none is given.

    Raises:
        ValueError: something else than a place.
    """
    if place is None:
        return {"position": 0}
    names, values = set(place), list(place.values())
    if "position" not in names or names - {"position", "seed", "checksum"} or not all(
        type(value) is int and value >= 0 for value in values
    ) or place["position"] > n:  # fmt: skip
        raise ValueError(
            f"{subject}: expected a place with a position up to {n}, as a pass over these data gives it; got "
            f"{checks.printable(place)}. Give such a one."
        )
    return place
