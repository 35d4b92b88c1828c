"""Whether the numbers of two sets mean the same, and whether a program takes them as they are."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from pyro_vae.data.dataset import Dataset

D = TypeVar("D", bound=Any)  # a Dataset or a Stream


def check_alike(subject: str, train: Dataset, validation: Dataset) -> None:
    """Raises for validation data whose numbers do not mean what those of the training data mean.

    Tables that a program meets one after the other may have their columns in another order, or codes 0, 1, ... for
    other categories; pixels may be scaled in one set and not in the other. Each gives a figure, of other data.

    Raises:
        ValueError: other columns, other categories, pixels on another scale.
    """
    if train.columns and validation.columns and train.columns != validation.columns:
        pairs = zip(train.columns, validation.columns, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(train.columns), len(validation.columns)))
        first, second = ((*names, "none")[place] for names in (train.columns, validation.columns))
        raise ValueError(
            f"{subject}: expected validation data with the columns of the training data; got {second!r} for {first!r} "
            f"as column {place}. Give both the same ones in one order: validation[list(train.columns)]."
        )
    for name, first, second in zip(train.columns, *map(_categories, (train, validation)), strict=False):
        if validation.columns and first != second:
            raise ValueError(
                f"{subject}: expected validation data with the categories of the training data; got {list(second)} for "
                f"{list(first)} of {name!r}, of which codes would differ. Give both one pandas.CategoricalDtype."
            )
    for scaled, other in ((train, validation), (validation, train)):
        if scaled.levels is not None and other.levels is None and _whole_beyond_one(other.images):
            raise ValueError(
                f"{subject}: expected training and validation data on one scale; got values up to 1, of uint8 scaled "
                f"by 1/{scaled.levels}, and whole numbers up to {float(other.images.nan_to_num(0).max()):g}. Give both "
                "in one dtype."
            )


def as_taken(program: object, dataset: D) -> D:
    """A set in the shape that a program takes: gray images get the axis of one channel that its likelihood asks for."""
    event_shape = getattr(getattr(program, "likelihood", None), "event_shape", None)
    if event_shape is not None and tuple(event_shape) == (1, *dataset.event_shape):
        return dataset.with_channel()
    return dataset


def _categories(dataset: Dataset) -> tuple[tuple[str, ...], ...]:
    return dataset.categories or ((),) * len(dataset.columns)


def _whole_beyond_one(x: Tensor) -> bool:
    x = x.nan_to_num(0)
    return bool((x > 1).any()) and bool((x == x.floor()).all())
