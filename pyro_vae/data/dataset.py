"""One tensor of data, stored small, whose batches become float values when they are drawn."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Binarize: TypeAlias = Literal["none", "dynamic", "static", "threshold"]

_CHUNK = 4096  # data turned into floats at once where a float copy of the whole set would be too large


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """N data on one device, of which each batch becomes float32 values when it is drawn.

    Args:
        name: What errors, histories and plots call the set.
        images: uint8 images (N, C, H, W) with ``levels``, or a float32 table (N, D) or images without. NaN marks a
            missing value of a float set.
        labels: Classes, int64 (N,), or None.
        levels: The stored value that stands for 1 (255 for ordinary images, 1 for bits); None for floats, unscaled.
        binarization: What has been done to the set (``"static"``, ``"threshold"``), what each batch does
            (``"dynamic"``), or ``"none"``.
        context: Tensors (N, ...) that every batch carries beside x.

    Raises:
        ValueError: An empty set, lengths or devices that differ, infinite values, a dynamic set outside [0, 1].
        TypeError: Images or labels of another dtype.

    Example:
        >>> grey = Dataset("grey", torch.full((6, 1, 2, 2), 51, dtype=torch.uint8), levels=255)
        >>> [tuple(x.shape) for (x,) in grey.batches(4)]
        [(4, 1, 2, 2), (2, 1, 2, 2)]
        >>> grey.mean().flatten().tolist() == [torch.tensor(0.2).item()] * 4
        True
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    levels: int | None = None
    binarization: Binarize = "none"
    context: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        subject, images = f"Dataset {self.name!r}", self.images
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
        if self.labels is not None and self.labels.dtype != torch.int64:
            raise TypeError(
                f"{subject}: expected labels of torch.int64; got {self.labels.dtype}. Use labels.long(), or carry "
                "other covariates with conditioned_on."
            )
        for kind, beside in [("labels", self.labels), *(("context", tensor) for tensor in self.context)]:
            if beside is None:
                continue
            if beside.ndim == 0 or len(beside) != len(images):
                raise ValueError(
                    f"{subject}: expected {kind} of length {len(images)}; got shape {tuple(beside.shape)}. "
                    "Give one row for each datum."
                )
            if beside.device != images.device:
                raise ValueError(
                    f"{subject}: expected {kind} on device {images.device}; got {beside.device}. Move it there."
                )
        if self.binarization not in get_args(Binarize):
            raise ValueError(unknown("binarization", self.binarization, get_args(Binarize)))
        if self.binarization == "dynamic":
            _check_unit(self)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        values = "real values" if self.levels is None else f"{self.levels + 1} levels"
        return (
            f"Dataset({self.name!r}, {len(self)} x {tuple(self.event_shape)}, {values}, "
            f"binarization={self.binarization!r}, device={str(self.device)!r})"
        )

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
        if n < 1:
            raise ValueError(f"Dataset.take: expected n of at least 1; got {n}. Ask for one datum or more.")
        return self._each(lambda tensor: tensor[:n])

    def subset(self, index: Tensor) -> Dataset:
        """The data of an index, int64 (M,), in its order."""
        index = index.to(self.device)
        return self._each(lambda tensor: tensor.index_select(0, index))

    def conditioned_on(self, *context: Tensor) -> Dataset:
        """The same data, of which each batch also carries these tensors (N, ...), after those it carries already."""
        return replace(self, context=(*self.context, *(tensor.to(self.device) for tensor in context)))

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
            x = _bits(x, _given(generator, "dynamic binarisation")).float()
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
            _given(generator, "dynamic binarisation")
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
        if batch_size < 1:
            raise ValueError(
                f"Dataset.batches: expected batch_size of at least 1; got {batch_size}. Use len(dataset) for one batch."
            )
        n = len(self) - len(self) % batch_size if drop_last else len(self)
        if shuffle:
            generator = _given(generator, "shuffling")
            order = torch.randperm(len(self), generator=generator, device=generator.device).to(self.device)
        else:
            order = torch.arange(len(self), device=self.device)
        return iter(order[:n].split(batch_size))

    def mean(self) -> Tensor:
        """The mean of every element, float32 (*event_shape); of the greys of a dynamic set, of the values observed."""
        total = torch.zeros(self.event_shape, device=self.device)
        observed = torch.zeros(self.event_shape, device=self.device)
        for chunk in self.images.split(_CHUNK):
            values = self._values(chunk)
            total += values.nansum(0)
            observed += values.isfinite().sum(0)
        return total / observed

    def tensor(self) -> Tensor:
        """All values at once, float32 (N, *event_shape): the greys of a dynamic set, so that nothing is drawn."""
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


def as_dataset(x: Dataset | Tensor | npt.NDArray[Any], name: str = "array") -> Dataset:
    """A set of a tensor or array; a Dataset is returned as it is.

    uint8 values are images, scaled by 1/255, unless none exceeds 1: these, and booleans, are bits. All other numbers
    become float32 as they are, so that counts and reals keep their values. Images are (N, H, W) or (N, C, H, W), tables
    (N, D). Float32 and uint8 values are not copied.

    Raises:
        TypeError: Something else, or numbers that are not real.
        ValueError: Another number of dimensions, channels last, or what ``Dataset`` refuses.

    Example:
        >>> as_dataset(np.array([[0.5, 7.0], [2.0, 3.0]]), name="counts")
        Dataset('counts', 2 x (2,), real values, binarization='none', device='cpu')
    """
    if isinstance(x, Dataset):
        return x
    subject = f"Dataset {name!r}"
    if isinstance(x, np.ndarray) and x.dtype.kind in "biuf":
        x = torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(x, Tensor) or x.is_complex():
        kind = f"array of {x.dtype}" if isinstance(x, (np.ndarray, Tensor)) else type(x).__name__
        raise TypeError(
            f"{subject}: expected a Dataset, or a tensor or array of real numbers; got {kind}. Convert it first, "
            "for instance with numpy.asarray(x, dtype=numpy.float32)."
        )
    if x.ndim not in (2, 3, 4):
        raise ValueError(
            f"{subject}: expected shape (N, D), (N, H, W) or (N, C, H, W); got {tuple(x.shape)}. Reshape it."
        )
    if x.ndim == 4 and x.dtype == torch.uint8 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"{subject}: expected images (N, C, H, W); got channels last, {tuple(x.shape)}. Move the channels: "
            "x.transpose(0, 3, 1, 2) of an array, x.permute(0, 3, 1, 2) of a tensor."
        )
    x = (x[:, None] if x.ndim == 3 else x).detach()
    if x.dtype not in (torch.bool, torch.uint8):
        return Dataset(name, x.to(torch.float32))
    bits = x.dtype == torch.bool or x.numel() == 0 or int(x.max()) <= 1
    return Dataset(name, x.to(torch.uint8), levels=1 if bits else 255)


def unknown(subject: str, name: str, choices: Sequence[str]) -> str:
    """The message for a name that is none of the choices."""
    close = difflib.get_close_matches(name.lower().replace("-", "_"), choices, n=1)
    remedy = f"Did you mean {close[0]!r}?" if close else "Choose one of these."
    return f"{subject}: expected one of {', '.join(choices)}; got {name!r}. {remedy}"


def present_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f'device: expected a device of this machine; got {str(device)!r} ({reason}). Use device="cpu".'
        ) from error


def _given(generator: torch.Generator | None, purpose: str) -> torch.Generator:
    if generator is None:
        raise ValueError(
            f"Dataset: expected a generator for {purpose}; got None. Pass "
            "generator=torch.Generator(dataset.device).manual_seed(0), one for all epochs."
        )
    return generator


def _bits(greys: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(greys.shape, generator=generator, device=generator.device).to(greys.device) < greys


def _check_unit(dataset: Dataset) -> None:
    images = dataset.images
    if dataset.levels is None and not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError(
            f"Dataset {dataset.name!r}: expected values in [0, 1] to binarise; got {images.min().item():.4g} to "
            f'{images.max().item():.4g}. Scale them, or use binarize="none".'
        )


def binarized(dataset: Dataset, mode: Binarize, generator: torch.Generator) -> Dataset:
    """The set made binary once, or marked to be made so by each batch."""
    if mode in ("none", "dynamic"):
        return replace(dataset, binarization=mode)
    _check_unit(dataset)
    images = torch.empty_like(dataset.images, dtype=torch.uint8)
    for stored, bits in zip(dataset.images.split(_CHUNK), images.split(_CHUNK), strict=True):
        greys = dataset._values(stored)
        bits.copy_(_bits(greys, generator) if mode == "static" else greys > 0.5)
    return replace(dataset, images=images, levels=1, binarization=mode)
