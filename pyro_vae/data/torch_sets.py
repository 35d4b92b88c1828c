"""Sets and loaders of torch, read once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from pyro_vae.data.arrays import Numbers, first, joined, of_part, stacked

# By which a column or a part of a dictionary is taken for the data, or for the classes.
VALUES = "image", "img", "images", "x", "data", "pixel_values"
LABELS = "label", "labels", "y", "target", "fine_label"
_READ_AGAIN = 8  # data of a set, to see whether it draws them: a flip at random escapes once in 256 times


def of_set(subject: str, x: Any) -> Numbers:
    """A set with a length, or the set of a loader, whose second parts are labels where they are whole numbers."""
    of = x.dataset if isinstance(x, DataLoader) else x
    notes = _loader_notes(subject, x) if isinstance(x, DataLoader) else []
    size = _size(subject, of)
    if not size:
        raise ValueError(f"{subject}: expected at least one datum; got none. Give data.")
    items = [item_of(subject, of, i) for i in range(size)]
    widths = sorted({len(item) for item in items})
    if len(widths) > 1:
        raise ValueError(
            f"{subject}: expected items of as many parts each; got {widths}. Give all of them a label, or none."
        )
    again = [item_of(subject, of, i)[0] for i in range(min(size, _READ_AGAIN))]
    if not all(_equal(item[0], other) for item, other in zip(items, again, strict=False)):
        notes.append("its data differ from one reading to the next, and are those of the first")
        warnings.warn(
            f"{subject}: {notes[-1]}, at every epoch too. For fresh ones take steps over a DataLoader: svi.step(x).",
            stacklevel=2,
        )
    values = stacked(subject, [item[0] for item in items])
    labels = _labels(subject, [item[1] for item in items]) if widths[0] > 1 else None
    if widths[0] > 1 and labels is None:
        notes.append("second parts of the data, which are no classes, are left out")
    if widths[0] > 2:
        notes.append(f"{widths[0] - 2} further parts of the data are left out")
    return Numbers(values, labels, note=joined(*notes))


def _size(subject: str, x: Any) -> int:
    try:
        if not isinstance(x, IterableDataset):
            return len(x)
    except (TypeError, NotImplementedError):
        pass
    raise TypeError(
        f"{subject}: expected a set with a length; got the stream {type(x).__name__}. Read it into an array first."
    )


def _loader_notes(subject: str, loader: Any) -> list[str]:
    _size(subject, loader.dataset)
    _check_order(subject, loader)
    notes = ["of a DataLoader, whose batches and order are left out"]
    ignored = []
    if loader.collate_fn not in (default_collate, default_convert):
        ignored.append("its collate_fn is not applied")
    if type(loader).__iter__ is not DataLoader.__iter__:
        ignored.append(f"what {type(loader).__name__} does to batches is not applied")
    for note in ignored:
        warnings.warn(f"{subject}: {note}. Let the set itself do what changes data.", stacklevel=2)
    return notes + ignored


def takes_whole_set(loader: Any) -> bool:
    """Whether a loader goes through each datum of a set with a length once, without selecting or weighing."""
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        return False
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)  # the loader's own is unused beside batches
    whole = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    whole = whole and type(loader.batch_sampler) in (BatchSampler, type(None))
    return whole and len(sampler) == len(loader.dataset)


def changes_batches(loader: Any) -> bool:
    """Whether a loader makes something else of its set's data than batches of them."""
    return (
        loader.collate_fn not in (default_collate, default_convert) or type(loader).__iter__ is not DataLoader.__iter__
    )


def _check_order(subject: str, loader: Any) -> None:
    """Raises for a loader that selects or weighs data, which its set does not show."""
    if not takes_whole_set(loader):
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        raise ValueError(
            f"{subject}: expected a DataLoader of a whole set; got one with {type(sampler).__name__}, which may select "
            "or repeat. Pass the data themselves, torch.utils.data.Subset(set, indices) for a part."
        )


def item_of(subject: str, x: Any, i: int) -> tuple[Any, ...]:
    """The values of a datum and its further parts, copied: a set may hand out one buffer for all its data."""
    try:
        item = x[i]
        parts = _by_name(item) if isinstance(item, dict) else tuple(item) if isinstance(item, list | tuple) else (item,)
        if isinstance(parts[0] if parts else None, Image.Image):
            parts[0].load()
    except _NamesError as error:
        raise TypeError(
            f"{subject}: expected data named {', '.join(VALUES)}, with labels named {', '.join(LABELS)}; got "
            f"{first(item)}. Name them so, or give (values, label)."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{subject}: expected a set of {len(x)} readable data; got {type(error).__name__} ({error}) at {i}. Mend "
            "its __getitem__."
        ) from error
    if not parts:
        raise TypeError(
            f"{subject}: expected data, with a label at most; got an empty {type(item).__name__} at {i}. Give "
            "the values first."
        )
    try:
        values = of_part(subject, parts[0]).clone()
    except TypeError as error:
        raise TypeError(f"{error} It was the datum {i}, a {type(item).__name__}.") from error
    return values, *(int(part) if is_whole(part) else part for part in parts[1:])


class _NamesError(Exception):
    """A dictionary of which it is not clear what the values are."""


def _by_name(item: dict[Any, Any]) -> tuple[Any, ...]:
    """The values, the label and what else is in a dictionary."""
    values = [name for name in item if name in VALUES]
    labels = [name for name in item if name in LABELS]
    if not values and len(item) == 1:
        values = list(item)
    if len(values) != 1 or len(labels) > 1:
        raise _NamesError
    others = [name for name in item if name not in (*values, *labels)]
    return tuple(item[name] for name in (*values, *labels, *others))


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())


def _labels(subject: str, second: list[Any]) -> Tensor | None:
    """Classes, int64 (N,), or None where nothing is one."""
    others = [i for i, label in enumerate(second) if not is_whole(label)]
    if len(others) == len(second):
        return None
    if others:
        raise ValueError(
            f"{subject}: expected a class for every datum; got {type(second[others[0]]).__name__} at {others[0]}. Give "
            "all of them a label, or none."
        )
    labels = [int(label) for label in second]
    if max(labels) >= 2**63:
        raise ValueError(f"{subject}: expected labels that int64 holds; got {max(labels)}. Number the classes from 0.")
    return torch.tensor(labels)


def is_whole(label: Any) -> bool:
    """Whether a part of a datum is one whole number, of Python, numpy or torch."""
    if isinstance(label, Tensor):
        return label.ndim == 0 and not label.is_floating_point() and not label.is_complex()
    return isinstance(label, int) or (
        isinstance(label, np.generic | np.ndarray) and label.ndim == 0 and label.dtype.kind in "biu"
    )
