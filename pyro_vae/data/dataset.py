"""One tensor of data, stored small, whose batches become float values when they are drawn."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.data.arrays import joined
from pyro_vae.data.columns import Kinds
from pyro_vae.data.containers import beside, numbers
from pyro_vae.tables import Table

Binarize: TypeAlias = Literal["none", "dynamic", "static", "threshold"]

_CHUNK = 4096  # data turned into floats at once where a float copy of the whole set would be too large


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
        for kind, tensor in [("labels", self.labels), *(("context", each) for each in self.context)]:
            if tensor is not None:
                checks.instance(subject, kind, tensor, Tensor, "Use conditioned_on for arrays.")
        if images.dtype != (torch.float32 if self.levels is None else torch.uint8):
            raise TypeError(
                f"{subject}: expected images of uint8 with levels, or of float32 without; got {images.dtype} with "
                f"levels={self.levels}. Use data.as_dataset to convert."
            )
        if images.ndim < 2 or images.numel() == 0:
            raise ValueError(
                f"{subject}: expected shape (N, ...) with at least one datum and one value each; got "
                f"{tuple(images.shape)}. Give images (N, C, H, W) or a table (N, D)."
            )
        if self.levels is not None and int(images.max()) > self.levels:
            raise ValueError(
                f"{subject}: expected values 0 to levels={self.levels}; got {int(images.max())}. Give the levels of "
                "the images, 255 for ordinary ones."
            )
        if self.levels is None and bool(images.isinf().any()):
            raise ValueError(
                f"{subject}: expected finite values, or NaN for missing ones; got infinity. Replace it by NaN."
            )
        _check_names(subject, self)
        if self.labels is not None:
            _check_labels(subject, self.labels)
        for kind, rows in [("labels", self.labels), *(("context", tensor) for tensor in self.context)]:
            if rows is None:
                continue
            if rows.ndim == 0 or len(rows) != len(images):
                raise ValueError(
                    f"{subject}: expected {kind} of length {len(images)}; got shape {tuple(rows.shape)}. "
                    "Give one row for each datum."
                )
            if rows.device != images.device:
                raise ValueError(
                    f"{subject}: expected {kind} on device {images.device}; got {rows.device}. Move it there."
                )
        if not isinstance(self.binarization, str) or self.binarization not in get_args(Binarize):
            raise ValueError(unknown("binarization", self.binarization, get_args(Binarize)))
        if self.binarization == "dynamic":
            _check_unit(self)

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
            x, float32 (B, *event_shape), and the rows (B, ...) of every context.
        """
        x = self._values(self.images.index_select(0, index.to(self.device)))
        if self.binarization == "dynamic":
            x = _bits(x, _given(generator, "dynamic binarization")).float()
        return x, *(tensor.index_select(0, index.to(self.device)) for tensor in self.context)

    def gather(self, index: Tensor, images: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        """A batch as ``batch`` gives it, of tensors that are arguments, with bits drawn from torch's global generator.

        For a step that is recorded as a graph: what it reads is an argument, and it draws like the rest of the step.

        Args:
            index: int64 (B,), on the set's device.
            images: the set's own.
            context: the set's own.
        """
        x = self._values(images.index_select(0, index))
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
            _given(generator, "dynamic binarization")
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
            generator = _given(generator, "shuffling")
            order = torch.randperm(len(self), generator=generator, device=generator.device).to(self.device)
        else:
            order = torch.arange(len(self), device=self.device)
        return iter(order[:n].split(batch_size))

    def mean(self) -> Tensor:
        """The mean of every element, float32 (*event_shape); of the grays of a dynamic set, of the values observed."""
        total = torch.zeros(self.event_shape, device=self.device)
        observed = torch.zeros(self.event_shape, device=self.device)
        for chunk in self.images.split(_CHUNK):
            values = self._values(chunk)
            total += values.nansum(0)
            observed += values.isfinite().sum(0)
        return total / observed

    def tensor(self) -> Tensor:
        """All values at once, float32 (N, *event_shape): the grays of a dynamic set, so that nothing is drawn."""
        return self._values(self.images)

    def _values(self, stored: Tensor) -> Tensor:
        return stored if self.levels is None else stored.float().div_(self.levels)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Dataset:
        return replace(
            self,
            images=change(self.images),
            labels=None if self.labels is None else change(self.labels),
            context=tuple(map(change, self.context)),
        )


def as_dataset(x: Any, name: str = "array", *, kinds: Kinds | None = None) -> Dataset:
    """A set of a tensor, array, table or set of torch; a Dataset is returned as it is.

    uint8 values of tensors and arrays are images, scaled by 1/255, unless none exceeds 1: these, and booleans, are
    bits. All other numbers, and those of tables and sparse matrices, become float32 as they are, so that counts and
    reals keep their values, and so does their shape (N, ...). What is masked or missing becomes NaN, categories and
    words their codes. Float32 and uint8 values are not copied.

    The set of a DataFrame says in its ``table`` which kind each column is taken for: whole numbers from 0 on are
    counts, 0 and 1 binary, numbers above 0 positive where their logarithms are less skewed, others real; words and
    categories are binary where there are two, ordinal where pandas has an order, else categories.

    Args:
        x: a tensor, a numpy array (masked or not), nested lists, a pandas DataFrame, a scipy matrix; AnnData, of which
            X is taken, or its ``raw``, or a layer, ``adata.layers["counts"]``; a Dataset or DataLoader of torch, read
            once, whose second parts are labels where they are whole numbers, or of which each datum is a dictionary
            with an image or x and a label or y; a Dataset of Hugging Face's, of which a column of images or arrays is
            taken, or else all columns as a table, and labels from a column of classes.
        name: What errors, histories and plots call the set.
        kinds: of columns of a DataFrame, by name, in place of those found: ``real``, ``positive``, ``count``,
            ``binary``, ``ordinal`` or ``category``; or the values of an ordinal in their order. The ``table`` of the
            training data reads a further frame, such as test data, in its columns and codes.

    Warns:
        UserWarning: What a set or a loader of torch does to data that is not done to these: other data at each reading,
            as random transforms give, a ``collate_fn``, an ``__iter__`` of its own.

    Raises:
        TypeError: Something else, or values that are not real numbers.
        ValueError: Another number of dimensions, channels last, numbers that float32 cannot hold, or what ``Dataset``
            refuses.

    Example:
        >>> as_dataset([[0.5, 7.0], [2.0, 3.0]], name="counts")
        Dataset('counts', 2 x (2,), real values from 0.5 to 7, binarization='none', device='cpu')
    """
    subject = f"Dataset {name!r}"
    if isinstance(x, Dataset):
        if kinds is not None:
            raise TypeError(f"{subject}: expected kinds for a DataFrame; got them for a Dataset. Give the DataFrame.")
        return x
    found = numbers(subject, x, kinds)
    values = found.values
    if values.ndim < 2:
        raise ValueError(f"{subject}: expected shape (N, D) or (N, ...); got {tuple(values.shape)}. Reshape it.")
    last = values.shape[-1]
    if values.ndim == 4 and values.dtype == torch.uint8 and last in (1, 3, 4) and values.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"{subject}: expected images (N, C, H, W); got channels last, {tuple(values.shape)}. Move the channels: "
            "x.transpose(0, 3, 1, 2) of an array, x.permute(0, 3, 1, 2) of a tensor."
        )
    levels: int | None = None
    if values.dtype in (torch.bool, torch.uint8):
        levels = 1 if values.dtype == torch.bool or values.numel() == 0 or int(values.max()) <= 1 else 255
    stored = values.to(torch.float32 if levels is None else torch.uint8)
    return Dataset(
        name, stored, found.labels, levels,
        columns=found.columns, categories=found.categories, note=found.note, table=found.table,
    )  # fmt: skip


def unknown(subject: str, name: str, choices: Sequence[str]) -> str:
    """The message for a name that is none of the choices."""
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), choices, n=1)
    remedy = f"Did you mean {close[0]!r}?" if close else "Choose one of these."
    return f"{subject}: expected one of {', '.join(choices)}; got {name!r}. {remedy}"


def present_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if isinstance(device, str) else "no name of a device"
        raise ValueError(
            f'device: expected a device of this machine; got {str(device)[:40]!r} ({reason}). Use device="cpu".'
        ) from error


def _given(generator: torch.Generator | None, purpose: str) -> torch.Generator:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"Dataset: expected a generator of torch for {purpose}; got {type(generator).__name__}. Pass such a one."
        )
    if generator is None:
        raise ValueError(
            f"Dataset: expected a generator for {purpose}; got None. Pass "
            "generator=torch.Generator(dataset.device).manual_seed(0), one for all epochs."
        )
    return generator


def _bits(grays: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(grays.shape, generator=generator, device=generator.device).to(grays.device) < grays


def _check_names(subject: str, dataset: Dataset) -> None:
    for kind, names in (("columns", dataset.columns), ("categories", dataset.categories)):
        if names and len(names) != dataset.images.shape[-1]:
            raise ValueError(
                f"{subject}: expected {kind} of each of {dataset.images.shape[-1]}; got {len(names)}. Give all or none."
            )


def _check_labels(subject: str, labels: Tensor) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(
            f"{subject}: expected labels of torch.int64; got {labels.dtype}. Use labels.long(), or carry other "
            "covariates with conditioned_on."
        )
    if labels.ndim > 1:
        raise ValueError(
            f"{subject}: expected labels of shape (N,); got {tuple(labels.shape)}. Use labels.argmax(-1) of one-hot "
            "ones, or labels[:, 0]."
        )
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(
            f"{subject}: expected labels from 0; got {int(labels.min())}. Number the classes from 0. "
            "SemiSupervisedVAE takes -1 for none with conditioned_on(labels)."
        )


def _check_unit(dataset: Dataset) -> None:
    images = dataset.images
    if bool(images.isnan().any()):
        raise ValueError(
            f"Dataset {dataset.name!r}: expected values in [0, 1] to binarize; got NaN, for missing ones. Fill them "
            'in, or use binarize="none".'
        )
    if dataset.levels is None and not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError(
            f"Dataset {dataset.name!r}: expected values in [0, 1] to binarize; got {images.min().item():.4g} to "
            f'{images.max().item():.4g}. Scale them, or use binarize="none".'
        )


def binarized(dataset: Dataset, mode: Binarize, generator: torch.Generator) -> Dataset:
    """The set made binary once, or marked to be made so by each batch."""
    if mode in ("none", "dynamic"):
        return replace(dataset, binarization=mode)
    _check_unit(dataset)
    images = torch.empty_like(dataset.images, dtype=torch.uint8)
    for stored, bits in zip(dataset.images.split(_CHUNK), images.split(_CHUNK), strict=True):
        grays = dataset._values(stored)
        bits.copy_(_bits(grays, generator) if mode == "static" else grays > 0.5)
    return replace(dataset, images=images, levels=1, binarization=mode)
